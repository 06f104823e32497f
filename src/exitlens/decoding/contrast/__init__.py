"""Decoders that contrast layers, one file a decoder. To add one: a file here and a line in ``parse._BUILT_IN``."""

from exitlens.decoding.contrast.acd import ACD
from exitlens.decoding.contrast.base import (
    ContrastDecoder,
    Decoder,
    Option,
    Scores,
    candidate_layers,
    filter_option,
    lens_option,
    option,
    options_of,
    plausible,
)
from exitlens.decoding.contrast.controls import RandomLayer, StaticLayer, Vanilla
from exitlens.decoding.contrast.delta import DeLTa
from exitlens.decoding.contrast.dola import DoLa
from exitlens.decoding.contrast.early_logits import BoundDecoder, early_layers
from exitlens.decoding.contrast.end import END
from exitlens.decoding.contrast.parse import decoder_names, decoder_options, parse_decoder, register_decoder
from exitlens.decoding.contrast.sled import SLED

__all__ = [
    "ACD",
    "END",
    "SLED",
    "BoundDecoder",
    "ContrastDecoder",
    "DeLTa",
    "Decoder",
    "DoLa",
    "Option",
    "RandomLayer",
    "Scores",
    "StaticLayer",
    "Vanilla",
    "candidate_layers",
    "decoder_names",
    "decoder_options",
    "early_layers",
    "filter_option",
    "lens_option",
    "option",
    "options_of",
    "parse_decoder",
    "plausible",
    "register_decoder",
]

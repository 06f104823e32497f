"""Decoders that contrast layers, one file a decoder. To add one: a file here and a line in ``parse._BUILT_IN``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exitlens.lazy import lazy_names

if TYPE_CHECKING:
    from exitlens.decoding.contrast.acd import ACD as ACD
    from exitlens.decoding.contrast.base import ContrastDecoder as ContrastDecoder
    from exitlens.decoding.contrast.base import Decoder as Decoder
    from exitlens.decoding.contrast.base import Option as Option
    from exitlens.decoding.contrast.base import Scores as Scores
    from exitlens.decoding.contrast.base import candidate_layers as candidate_layers
    from exitlens.decoding.contrast.base import filter_option as filter_option
    from exitlens.decoding.contrast.base import lens_option as lens_option
    from exitlens.decoding.contrast.base import option as option
    from exitlens.decoding.contrast.base import options_of as options_of
    from exitlens.decoding.contrast.base import plausible as plausible
    from exitlens.decoding.contrast.controls import RandomLayer as RandomLayer
    from exitlens.decoding.contrast.controls import StaticLayer as StaticLayer
    from exitlens.decoding.contrast.controls import Vanilla as Vanilla
    from exitlens.decoding.contrast.delta import DeLTa as DeLTa
    from exitlens.decoding.contrast.dola import DoLa as DoLa
    from exitlens.decoding.contrast.early_logits import BoundDecoder as BoundDecoder
    from exitlens.decoding.contrast.early_logits import early_layers as early_layers
    from exitlens.decoding.contrast.end import END as END
    from exitlens.decoding.contrast.parse import decoder_names as decoder_names
    from exitlens.decoding.contrast.parse import decoder_options as decoder_options
    from exitlens.decoding.contrast.parse import parse_decoder as parse_decoder
    from exitlens.decoding.contrast.parse import register_decoder as register_decoder
    from exitlens.decoding.contrast.sled import SLED as SLED

_HOME = {
    "ACD": "acd",
    "BoundDecoder": "early_logits",
    "ContrastDecoder": "base",
    "DeLTa": "delta",
    "Decoder": "base",
    "DoLa": "dola",
    "END": "end",
    "Option": "base",
    "RandomLayer": "controls",
    "SLED": "sled",
    "Scores": "base",
    "StaticLayer": "controls",
    "Vanilla": "controls",
    "candidate_layers": "base",
    "decoder_names": "parse",
    "decoder_options": "parse",
    "early_layers": "early_logits",
    "filter_option": "base",
    "lens_option": "base",
    "option": "base",
    "options_of": "base",
    "parse_decoder": "parse",
    "plausible": "base",
    "register_decoder": "parse",
}

__all__ = list(_HOME)

__getattr__ = lazy_names(__name__, _HOME)

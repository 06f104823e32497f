"""One generation loop, and the decoders that listen to the layers."""

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
    from exitlens.decoding.generation import Generation as Generation
    from exitlens.decoding.loop import generate as generate
    from exitlens.decoding.loop import stream as stream
    from exitlens.decoding.sampling import Sampling as Sampling
    from exitlens.decoding.score import ContinuationScorer as ContinuationScorer
    from exitlens.decoding.trace import trace_answers as trace_answers

_HOME = {
    "ACD": "contrast.acd",
    "BoundDecoder": "contrast.early_logits",
    "ContinuationScorer": "score",
    "ContrastDecoder": "contrast.base",
    "DeLTa": "contrast.delta",
    "Decoder": "contrast.base",
    "DoLa": "contrast.dola",
    "END": "contrast.end",
    "Generation": "generation",
    "Option": "contrast.base",
    "RandomLayer": "contrast.controls",
    "SLED": "contrast.sled",
    "Sampling": "sampling",
    "Scores": "contrast.base",
    "StaticLayer": "contrast.controls",
    "Vanilla": "contrast.controls",
    "candidate_layers": "contrast.base",
    "decoder_names": "contrast.parse",
    "decoder_options": "contrast.parse",
    "early_layers": "contrast.early_logits",
    "filter_option": "contrast.base",
    "generate": "loop",
    "lens_option": "contrast.base",
    "option": "contrast.base",
    "parse_decoder": "contrast.parse",
    "plausible": "contrast.base",
    "register_decoder": "contrast.parse",
    "stream": "loop",
    "trace_answers": "trace",
}

__all__ = list(_HOME)

__getattr__ = lazy_names(__name__, _HOME)

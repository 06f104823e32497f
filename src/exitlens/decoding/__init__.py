"""One generation loop, and the decoders that listen to the layers."""

from .decoders import ACD, END, SLED, Decoder, DeLTa, DoLa, Scores, Vanilla
from .loop import Generation, generate, stream
from .registry import names, parse_decoder, register
from .sampling import Sampling
from .score import McScores, Scorer, mc_scores, score_continuations
from .traced import trace_answers

__all__ = [
    "ACD",
    "END",
    "SLED",
    "DeLTa",
    "Decoder",
    "DoLa",
    "Generation",
    "McScores",
    "Sampling",
    "Scorer",
    "Scores",
    "Vanilla",
    "generate",
    "mc_scores",
    "names",
    "parse_decoder",
    "register",
    "score_continuations",
    "stream",
    "trace_answers",
]

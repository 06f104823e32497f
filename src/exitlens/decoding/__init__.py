"""One generation loop, and the decoders that listen to the layers."""

from exitlens.decoding.contrast.decoders import ACD, END, SLED, Decoder, DeLTa, DoLa, Scores, Vanilla
from exitlens.decoding.contrast.parse import names, parse_decoder, register
from exitlens.decoding.loop import Generation, generate, stream
from exitlens.decoding.sampling import Sampling
from exitlens.decoding.score import ContinuationScorer, McScores, mc_scores, score_continuations
from exitlens.decoding.trace import trace_answers

__all__ = [
    "ACD",
    "END",
    "SLED",
    "ContinuationScorer",
    "DeLTa",
    "Decoder",
    "DoLa",
    "Generation",
    "McScores",
    "Sampling",
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

"""One generation loop, and the decoders that listen to the layers."""

from .decoders import ACD, END, SLED, Decoder, DeLTa, DoLa, Scores, Vanilla
from .loop import Generation, generate, stream
from .registry import names, parse_decoder, register
from .sampling import Sampling

__all__ = [
    "ACD",
    "END",
    "SLED",
    "DeLTa",
    "Decoder",
    "DoLa",
    "Generation",
    "Sampling",
    "Scores",
    "Vanilla",
    "generate",
    "names",
    "parse_decoder",
    "register",
    "stream",
]

"""A decoder as a run names it, with the penalty that goes with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from exitlens.arguments import as_penalty
from exitlens.decoding.contrast.parse import parse_decoder
from exitlens.errors import InputError

__all__ = ["DecoderSpec"]


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder as a run names it: ``dola:high``, or ``dola:high@1.2`` with a repetition penalty of its own."""

    text: str
    decoder: str
    penalty: float

    @classmethod
    def parse(cls, text: str, penalty: float = 1.0) -> DecoderSpec:
        """Raises InputError for an unknown decoder or a penalty that is not a positive number."""
        name, at, own = text.strip().partition("@")
        if at:
            try:
                penalty = float(own)
            except ValueError:
                penalty = float("nan")
            if not 0 < penalty < math.inf:
                raise InputError(
                    f"repetition penalty '{own}' in decoder '{text}' is not a number above 0: write {name}@1.2"
                )
        parse_decoder(name)
        return cls(text.strip(), name, as_penalty(penalty))

    @property
    def plain(self) -> bool:
        """True for the model's own greedy decoding."""
        return self.decoder == "vanilla"

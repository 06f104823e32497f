"""What is an answer: its text and tokens, why it ended, and what was read or reported while it was generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from exitlens.display import Shown
from exitlens.parsing import cut

__all__ = ["Generation", "ids_in"]


@dataclass(frozen=True, slots=True, repr=False)
class Generation(Shown):
    """One answer.

    Attributes:
        prompt: The prompt as text.
        text: The answer, without the stop string.
        token_ids: The tokens of ``text``, without stop string and end-of-text token.
        tokens: The same as texts.
        finish: Why it ended: ``stop`` (a stop string), ``eos`` (an end-of-text token) or ``length``.
        reads: Statistics by name ``[layers, tokens, …]``: a token's column describes the distributions that it was
            chosen from. :func:`exitlens.trace_answers` makes a trace of them.
        steps: What the decoder reported, by name ``[tokens, …]``; ``choice`` is a layer number.
        prompt_ids: Token ids of the prompt.
        read_layers: The layers of ``reads``.
        read_lens: The lens of ``reads``.
        vocabulary: Texts of the token ids in ``reads`` and in the answer.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    finish: Literal["stop", "eos", "length"]
    reads: Mapping[str, np.ndarray] = field(default_factory=dict)
    steps: Mapping[str, np.ndarray] = field(default_factory=dict)
    prompt_ids: tuple[int, ...] = ()
    read_layers: tuple[int, ...] = ()
    read_lens: str = ""
    vocabulary: Mapping[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        read = f", read at {len(self.read_layers)} layers ({', '.join(self.reads)})" if self.reads else ""
        return (
            f"Generation of {len(self.token_ids)} tokens, finish {self.finish}{read}\n"
            f"  prompt {cut(repr(self.prompt[-70:]))}\n"
            f"  text   {cut(repr(self.text), 200)}"
        )


def ids_in(answer: Generation) -> set[int]:
    """Every token id that a view of the answer names: the prompt's last, the answer's, and those in ``top_ids``."""
    top = answer.reads.get("top_ids")
    return {*answer.prompt_ids[-1:], *answer.token_ids, *(np.unique(top).tolist() if top is not None else ())}

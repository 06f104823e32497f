"""Tokens that a checkpoint's own generation settings forbid: the mask that transformers' processors would make.

Applied on request only (``generation_config="model"``): without it an answer is the decoder's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.models.protocol import LayeredModel
from exitlens.models.text.generation_settings import settings_not_applied

__all__ = ["TokenRules", "rules_of"]

_KNOWN = (
    "repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids",
    "min_new_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What may not come next: token ids always, at the beginning, as the end of a sequence, or as a repeated n-gram."""

    penalty: float = 1.0
    never: tuple[int, ...] = ()
    not_first: tuple[int, ...] = ()
    sequences: tuple[tuple[int, ...], ...] = ()
    ngram: int = 0
    least: int = 0  # new tokens before an end of text
    ends: tuple[int, ...] = ()

    def forbidden(self, prompt: Sequence[int], new: Sequence[int]) -> set[int]:
        """Token ids that may not follow ``prompt`` and ``new``."""
        out = set(self.never)
        if not new:
            out.update(self.not_first)
        if len(new) < self.least:
            out.update(self.ends)
        text = [*prompt, *new]
        for words in self.sequences:
            before = words[:-1]
            if not before or tuple(text[-len(before) :]) == before:
                out.add(words[-1])
        n = self.ngram
        if n and len(text) + 1 >= n:
            last = text[len(text) - n + 1 :]
            out.update(text[i + n - 1] for i in range(len(text) - n + 1) if text[i : i + n - 1] == last)
        return out

    def apply(self, scores: Tensor, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
        """``scores [rows, vocab]`` with what is forbidden after each row's ``(prompt, new)`` at −inf."""
        out = scores.clone()
        for i, (prompt, new) in enumerate(rows):
            ids = [t for t in self.forbidden(prompt, new) if t < out.shape[-1]]
            if ids:
                out[i, torch.tensor(ids, device=out.device)] = -torch.inf
        return out


def rules_of(lm: LayeredModel, source: str | None) -> TokenRules | None:
    """The rules of the model's own settings for ``source="model"``, None for None.

    Raises :class:`InputError` for another source, and for a setting that is not known here.
    """
    if source is None:
        return None
    if source != "model":
        raise InputError(f"unknown generation settings {source[:80]!r}: the only ones are model, the checkpoint's own")
    model: Any = lm.model
    said = settings_not_applied(model)
    unknown = [name for name in said if name not in _KNOWN]
    if unknown:
        raise InputError(f"{lm.name}: its generation setting {unknown[0]} cannot be applied: leave the option out")
    return TokenRules(
        penalty=float(said.get("repetition_penalty", 1.0)),
        never=tuple(said.get("suppress_tokens", ())),
        not_first=tuple(said.get("begin_suppress_tokens", ())),
        sequences=tuple(tuple(words) for words in said.get("bad_words_ids", ()) if words),
        ngram=int(said.get("no_repeat_ngram_size", 0)),
        least=int(said.get("min_new_tokens", 0)),
        ends=tuple(lm.eos_ids),
    )

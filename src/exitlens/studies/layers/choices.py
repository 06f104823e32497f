"""What stands for an answer choice: its first distinguishing token, or the whole sequence of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from exitlens.errors import InputError
from exitlens.models.protocol import LayeredModel

__all__ = ["ChoicePlan", "Rule", "plan_choices"]

Rule = Literal["auto", "first-token", "sequence"]


@dataclass(frozen=True, slots=True)
class ChoicePlan:
    """How the choices of one prompt are read.

    ``first-token``: after ``context`` (the prompt and what all choices begin with) the next token tells them apart:
    ``targets[i]`` has that one token. ``sequence``: ``targets[i]`` are all tokens of choice i after ``context``, and
    its log-probability is their sum.
    """

    rule: Literal["first-token", "sequence"]
    context: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]


def plan_choices(lm: LayeredModel, prompt: str, choices: Sequence[str], rule: Rule = "auto") -> ChoicePlan:
    """Tokens by which ``choices`` are told apart after ``prompt``.

    ``auto`` takes the first distinguishing token where there is one for every choice, else whole sequences. Raises
    InputError for empty choices, choices that are the same, and choices that one token cannot tell apart under
    ``first-token``.
    """
    texts = [choice.strip() for choice in choices]
    if len(texts) < 2:
        raise InputError(f"{len(texts)} choice given ({', '.join(map(repr, texts)) or 'none'}): give at least two")
    if "" in texts:
        raise InputError(f"choice number {texts.index('') + 1} is empty: leave it out")
    for a, b in combinations(texts, 2):
        if a == b:
            raise InputError(f"choice '{a}' is given twice: the two collide, leave one out")
    gap = "" if prompt[-1:].isspace() or not prompt else " "
    whole = [lm.encode(prompt + gap + text) for text in texts]
    start = _shared([lm.encode(prompt), *whole])
    if start == 0:
        raise InputError("the prompt has no token before the choices: give a prompt that is not empty")
    tails = [ids[start:] for ids in whole]
    for (i, first), (j, second) in combinations(enumerate(tails), 2):
        if first == second or not first or not second:
            raise InputError(f"choices '{texts[i]}' and '{texts[j]}' collide: they have the same tokens")
    shared = _shared(tails)
    firsts = [tail[shared] if len(tail) > shared else None for tail in tails]
    if rule != "sequence":
        clash = next(((i, j) for (i, a), (j, b) in combinations(enumerate(firsts), 2) if a == b), None)
        if None not in firsts and clash is None:
            context = (*whole[0][: start + shared],)
            return ChoicePlan("first-token", context, tuple((first,) for first in firsts if first is not None))
        if rule == "first-token":
            i, j = clash if clash is not None else (firsts.index(None), (firsts.index(None) + 1) % len(texts))
            raise InputError(
                f"choices '{texts[i]}' and '{texts[j]}' collide: no first token tells them apart; use --rule sequence"
            )
    return ChoicePlan("sequence", tuple(whole[0][:start]), tuple(map(tuple, tails)))


def _shared(texts: Sequence[Sequence[int]]) -> int:
    """Length of the beginning that all token lists share."""
    count = 0
    for column in zip(*texts, strict=False):
        if any(token != column[0] for token in column):
            break
        count += 1
    return count

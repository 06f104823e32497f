"""What stands for an answer choice: its first distinguishing token in every spelling, or the sequence of its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from exitlens.errors import InputError
from exitlens.models.protocol import LayeredModel

__all__ = ["ChoicePlan", "Rule", "check_choices", "plan_choices", "spellings"]

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


def check_choices(choices: Sequence[str]) -> list[str]:
    """The choices without white space around them; needs no model.

    Raises:
        InputError: Fewer than two, an empty one, or one that is given twice.
    """
    texts = [choice.strip() for choice in choices]
    if len(texts) < 2:
        raise InputError(f"{len(texts)} choice given ({', '.join(map(repr, texts)) or 'none'}): give at least two")
    if "" in texts:
        raise InputError(f"choice number {texts.index('') + 1} is empty: leave it out")
    for a, b in combinations(texts, 2):
        if a == b:
            raise InputError(f"choice '{a[:80]}' is given twice: the two collide, leave one out")
    return texts


def plan_choices(lm: LayeredModel, prompt: str, choices: Sequence[str], rule: Rule = "auto") -> ChoicePlan:
    """Tokens by which ``choices`` are told apart after ``prompt``.

    ``auto`` takes the first distinguishing token where there is one for every choice, else whole sequences. Raises
    InputError for empty choices, choices that are the same, and choices that one token cannot tell apart under
    ``first-token``.
    """
    texts = check_choices(choices)
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


def spellings(lm: LayeredModel, prompt: str, choices: Sequence[str], plan: ChoicePlan) -> tuple[tuple[int, ...], ...]:
    """The tokens that stand for each choice: the plan's own first, then those that differ in case or leading space.

    A model may begin its answer with ``Tokyo``, `` Tokyo`` or `` tokyo``; what it gives a choice is the sum over them.
    Nothing is guessed: another token counts only where the text after the prompt, spelt that way, begins with it, and
    where both it and the choice's own token are the choice's whole first word (``OS`` is no spelling of ``Osaka``,
    though `` Os`` may stand for it). A token with which two choices may begin counts for neither, unless it is the own
    token of one. After a beginning that all choices share, each choice keeps its own token alone.

    Args:
        lm: The model.
        prompt: The text before the choices.
        choices: The choices, in the plan's order.
        plan: What :func:`plan_choices` made of them.

    Returns:
        For each choice its tokens, none twice and none in two choices; under rule ``sequence`` nothing.
    """
    if plan.rule == "sequence":
        return ()
    own = [target[0] for target in plan.targets]
    if plan.context != tuple(lm.encode(prompt)):
        return tuple((token,) for token in own)
    texts = [choice.strip() for choice in choices]
    begins = [{token, *_beginnings(lm, prompt, text, plan.context)} for text, token in zip(texts, own, strict=True)]
    claims = Counter(token for tokens in begins for token in tokens)
    out: list[tuple[int, ...]] = []
    for text, token, tokens in zip(texts, own, begins, strict=True):
        word = text.split()[0].casefold()
        whole = sorted(t for t in tokens if claims[t] == 1 and lm.decode([t]).strip().casefold() == word)
        alone = lm.decode([token]).strip().casefold() != word  # its own token is a part of the word
        out.append((token,) if alone else (token, *(t for t in whole if t != token)))
    return tuple(out)


def _beginnings(lm: LayeredModel, prompt: str, choice: str, context: tuple[int, ...]) -> Iterator[int]:
    """The token after the prompt of every spelling of ``choice``, where the prompt's own tokens stay as they are."""
    first, rest = choice[:1], choice[1:]
    cases = dict.fromkeys([choice, first.upper() + rest, first.lower() + rest, choice.lower(), choice.upper()])
    for gap in (" ", ""):
        for spelt in cases:
            ids = lm.encode(prompt + gap + spelt)
            if tuple(ids[: len(context)]) == context and len(ids) > len(context):
                yield ids[len(context)]


def _shared(texts: Sequence[Sequence[int]]) -> int:
    """Length of the beginning that all token lists share."""
    count = 0
    for column in zip(*texts, strict=False):
        if any(token != column[0] for token in column):
            break
        count += 1
    return count

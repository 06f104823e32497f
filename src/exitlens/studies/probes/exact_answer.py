"""Which tokens of a generated text are the answer: what it says that the question did not say.

The tokens are found without looking at any reference answer. A rule that sought the reference would find it in correct
answers only, and a probe could then tell from the place alone what it is asked to tell from the state.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from exitlens.models.protocol import LayeredModel

__all__ = ["Span", "answer_span", "exact_answer"]

_WORD = re.compile(r"[^\W_]+(?:['’.,-][^\W_]+)*")
# A sentence ends at a mark behind a word of three letters or more ("St." and "U.S." do not end one), or with the line.
_END = re.compile(r"(?<=\w{3})[.!?](?=\s|$)|[。！？\n]")
_VERDICTS = frozenset({"yes", "no", "true", "false"})
# Words that only hold others together: they neither begin nor end an answer, and do not make one.
_SMALL = frozenset(
    _WORD.findall(
        "a an and are as at be been but by called can could did do does for from had has have he her his i in into "
        "is it its known located made many may might much named of on or originally she should so some than that the "
        "their them there these they this those to usually actually was we were which who will with would you your"
    )
)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``first`` to ``end`` (exclusive) of a generated answer.

    Attributes:
        first: The first token.
        end: The token after the last.
        text: What these tokens say.
        found_by: How they were found: verdict (a leading yes, no, true or false), alignment (what the question does
            not say), or sentence (nothing else was left).
    """

    first: int
    end: int
    text: str
    found_by: str


def exact_answer(question: str, answer: str) -> tuple[int, int, str]:
    """The characters ``start`` to ``end`` of ``answer`` that answer ``question``, and how they were found.

    Of the first sentence: a leading yes, no, true or false; else the longest run of words that the question does not
    hold (compared by their first six letters, case ignored), without small words at its ends, the later of two runs
    that are as long; else the sentence.
    """
    opening = _WORD.search(answer)
    if opening is None:
        return 0, len(answer), "sentence"
    stop = _END.search(answer, opening.end())
    words = list(_WORD.finditer(answer, 0, stop.start() if stop else len(answer)))
    if _stem(words[0].group()) in _VERDICTS:
        return words[0].start(), words[0].end(), "verdict"
    asked = {_stem(word) for word in _WORD.findall(question)}
    best: list[re.Match[str]] = []
    run: list[re.Match[str]] = []
    for word in [*words, None]:
        if word is not None and (_small(word.group()) or _stem(word.group()) not in asked):
            run.append(word)
            continue
        trimmed = _trimmed(run)
        if trimmed and _content(trimmed) >= _content(best):
            best = trimmed
        run = []
    if best:
        return best[0].start(), best[-1].end(), "alignment"
    return words[0].start(), words[-1].end(), "sentence"


def answer_span(lm: LayeredModel, question: str, ids: Sequence[int]) -> Span:
    """The tokens of a generated answer that :func:`exact_answer` finds in its text.

    Args:
        lm: The model, for its tokenizer.
        question: What was asked.
        ids: The answer's tokens as they were generated, one or more.

    Returns:
        The tokens that hold a character of it; a token counts as soon as one of its characters does.
    """
    text = lm.decode(list(ids))
    start, stop, found_by = exact_answer(question, text)
    # Where each token ends in the text. Half a character decodes to a mark that its rest replaces: ends never go back.
    ends: list[int] = []
    for count in range(1, len(ids) + 1):
        ends.append(max(len(lm.decode(list(ids[:count])).rstrip("\ufffd")), ends[-1] if ends else 0))
    first = next((k for k, end in enumerate(ends) if end > start), 0)
    last = next((k for k, end in enumerate(ends) if end >= stop), len(ids) - 1)
    end = max(last, first) + 1
    return Span(first, end, lm.decode(list(ids[first:end])).strip(), found_by)


def _trimmed(run: list[re.Match[str]]) -> list[re.Match[str]]:
    kept = [k for k, word in enumerate(run) if not _small(word.group())]
    return run[kept[0] : kept[-1] + 1] if kept else []


def _content(run: list[re.Match[str]]) -> int:
    return sum(not _small(word.group()) for word in run)


def _small(word: str) -> bool:
    return word.casefold() in _SMALL


def _stem(word: str) -> str:
    return word.casefold()[:6]

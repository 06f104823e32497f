"""Where an answer ends, and how its tokens read as text: end-of-text tokens, stop strings, spaces after the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from exitlens.errors import InputError

__all__ = ["StopStrings", "continued", "special_token", "undecided"]

_CONTEXT = 4  # tokens before an answer that it is decoded after; more where they begin within a character
_HALF = "\ufffd"  # what half a character is decoded to


def continued(decode: Callable[[Sequence[int]], str], before: Sequence[int], ids: Sequence[int]) -> str:
    """The text of ``ids`` as it goes on after the tokens ``before``.

    Decoded by itself, a SentencePiece text loses the space that it begins with (``▁sciences`` after ``is`` would read
    ``issciences``), so a few tokens before it are decoded along and taken off again.
    """
    if not before:
        return decode(ids)
    for count in range(_CONTEXT, 2 * _CONTEXT):  # a character takes at most four byte tokens
        context = list(before[-count:])
        known = decode(context)
        if not known.startswith(_HALF):
            break
    # A character that begins in the context and ends in the answer is the answer's.
    known, whole = known.rstrip(_HALF), decode([*context, *ids])
    return whole[len(known) :] if whole.startswith(known) else decode(ids)


def special_token(tokenizer: Any, text: str) -> int | None:
    """The id of the special token that is written ``text``, or None: decoding leaves it out, so it is no text."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return next((int(i) for i, token in added.items() if token.special and token.content == text), None)


class StopStrings:
    """Looks for any of ``stops`` in the text of a row's new tokens, decoded by ``decode``.

    Raises :class:`InputError` for an empty stop string and, where ``encode`` is given, for one that this tokenizer
    cannot write (it lowers case, drops line breaks or lacks a character), since it would never be found.
    """

    def __init__(
        self,
        stops: Sequence[str],
        decode: Callable[[Sequence[int]], str],
        encode: Callable[[str], Sequence[int]] | None = None,
    ) -> None:
        for stop in stops:
            if not stop:
                raise InputError("a stop string is empty: every answer would stop before it begins")
            # Between letters, since tokenizers may treat spaces at either end of a text apart.
            if encode is not None and stop not in (written := decode(encode(f"a{stop}a"))):
                raise InputError(
                    f"the stop string {stop[:80]!r} cannot be written by this tokenizer (it gives {written[:80]!r}): "
                    "use one that it keeps as it is"
                )
        self._stops = tuple(stops)
        self._decode = decode
        # A token writes at least one byte, so this many tokens always hold the longest stop, plus one that it may
        # share a token with at either end.
        self._window = max((len(stop.encode()) for stop in stops), default=0) + 2

    def found(self, ids: Sequence[int], before: Sequence[int] = ()) -> bool:
        """True when the last tokens of ``ids``, which go on after ``before``, complete a stop string."""
        if not self._stops:
            return False
        begin = max(0, len(ids) - self._window)
        context = ids[max(0, begin - _CONTEXT) : begin] if begin else before
        tail = continued(self._decode, context, ids[begin:])
        return any(stop in tail for stop in self._stops)

    def cut(self, ids: Sequence[int], before: Sequence[int] = ()) -> tuple[str, int]:
        """The text before the first stop string, and how many tokens it takes to write it."""

        def text_of(count: int) -> str:
            return continued(self._decode, before, ids[:count])

        text = text_of(len(ids))
        at = min((i for stop in self._stops if (i := text.find(stop)) >= 0), default=-1)
        if at < 0:
            return text, len(ids)
        if at == 0:
            return "", 0
        low, high = 0, len(ids)
        while low < high:  # the fewest tokens whose text reaches the stop
            middle = (low + high) // 2
            if len(text_of(middle)) >= at:
                high = middle
            else:
                low = middle + 1
        # Half a character counts as one until the rest of it comes: take the tokens that complete it.
        while low < len(ids) and not text_of(low).startswith(text[:at]):
            low += 1
        return text[:at], low


def undecided(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that may be the beginning of a stop string."""
    for n in range(min(max(map(len, stops), default=0), len(text)), 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return n
    return 0

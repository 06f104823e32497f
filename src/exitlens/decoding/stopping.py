"""Where an answer ends: end-of-text tokens and stop strings, also when a stop string is split over tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from exitlens.errors import InputError

__all__ = ["StopStrings", "undecided"]


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
                    f"the stop string {stop!r} cannot be written by this tokenizer (it gives {written!r}): "
                    "use one that it keeps as it is"
                )
        self._stops = tuple(stops)
        self._decode = decode
        # A token writes at least one byte, so this many tokens always hold the longest stop, plus one that it may
        # share a token with at either end.
        self._window = max((len(stop.encode()) for stop in stops), default=0) + 2

    def found(self, ids: Sequence[int]) -> bool:
        """True when the last tokens of ``ids`` complete a stop string."""
        if not self._stops:
            return False
        tail = self._decode(ids[-self._window :])
        return any(stop in tail for stop in self._stops)

    def cut(self, ids: Sequence[int]) -> tuple[str, int]:
        """The text before the first stop string, and how many tokens it takes to write it."""
        text = self._decode(ids)
        at = min((i for stop in self._stops if (i := text.find(stop)) >= 0), default=-1)
        if at < 0:
            return text, len(ids)
        if at == 0:
            return "", 0
        low, high = 0, len(ids)
        while low < high:  # the fewest tokens whose text reaches the stop
            middle = (low + high) // 2
            if len(self._decode(ids[:middle])) >= at:
                high = middle
            else:
                low = middle + 1
        # Half a character counts as one until the rest of it comes: take the tokens that complete it.
        while low < len(ids) and not self._decode(ids[:low]).startswith(text[:at]):
            low += 1
        return text[:at], low


def undecided(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that may be the beginning of a stop string."""
    for n in range(min(max(map(len, stops), default=0), len(text)), 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return n
    return 0

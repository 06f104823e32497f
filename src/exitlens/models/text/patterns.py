"""Patterns of a tokenizer that backtrack without end, or slowly: found at load, or bounded in time when met later."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from exitlens.errors import UnsupportedModel
from exitlens.parsing import cut

__all__ = ["TooSlow", "check_patterns", "in_time", "panicked", "silent"]

T = TypeVar("T")
SECONDS = 10.0  # that 40 characters may take: they take microseconds
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d*,)")  # without one, time grows by a power of the length at most
_REPEATED = re.compile(r"[*+]|\{\d*,")  # with one alone, by its square, with a factor that no text shows
_LENGTH = 40
_LONG = (300, 1000)  # of texts that show a power: 10,000 letters then take 100 or 1,000 times as long
_SHORT = 20_000  # characters that take at most a second where time grows with the square of the length
_SPEED = 50_000  # characters a second that any tokenizer makes: fast ones make a million
_SLOW = 0.5  # seconds of the processor that they may take: they take 0.03 at most


def panicked(error: BaseException) -> bool:
    """Whether a library written in Rust gave up: its exception is no Exception, and no handler catches it."""
    return type(error).__name__ == "PanicException"


class TooSlow(Exception):
    """A text was not tokenised within the time that its length allows."""


def in_time(work: Callable[[], T], length: int) -> T:
    """What ``work`` returns, done by a tokenizer on a text of ``length`` characters.

    A pattern whose time grows with the square of the length does not show at load: a letter that repeats 300 times
    takes microseconds, a million times hours. Long texts are tokenised in a thread of their own, which is left behind,
    since nothing stops a library that does not look up. Raises :class:`TooSlow` after 10 s, and 1 s more for every
    50,000 characters.
    """
    if length <= _SHORT:
        return work()
    most = SECONDS + length / _SPEED
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            failed.append(error)

    thread = threading.Thread(target=run, name="exitlens-long-text", daemon=True)
    thread.start()
    thread.join(most)
    if failed:
        raise failed[0]
    if not done:
        raise TooSlow(f"it was not done within {most:.0f} s: a pattern takes time by the square of the length, or more")
    return done[0]


def check_patterns(tokenizer: Any, label: str) -> None:
    """Try what repeats on texts made of each pattern's own letters. Raises :class:`UnsupportedModel`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for field, pattern in _patterns(getattr(backend, part, None), part):
            lengths = [_LENGTH] if _REPEATED_GROUP.search(pattern) else []
            lengths += _LONG if len(_REPEATED.findall(pattern)) > 1 else ()
            for length in lengths:
                if trouble := _trouble(tokenizer, pattern, length):
                    raise UnsupportedModel(
                        f"{label}: the pattern {cut(pattern)!r} in tokenizer.json ({field}) backtracks {trouble} on a "
                        f"text of {length} characters: mend it, or use the model's own tokenizer"
                    )


def _patterns(part: Any, name: str) -> Iterator[tuple[str, str]]:
    """Each regular expression of a part of a tokenizer, with the field in which it stands."""
    if part is None or not hasattr(part, "__getstate__"):
        return
    try:
        state = json.loads(part.__getstate__())  # as in tokenizer.json; the vocabulary, which is long, is not in it
    except (TypeError, ValueError):
        return
    waiting = [(name, state)]
    while waiting:
        field, value = waiting.pop(0)
        if isinstance(value, dict):
            waiting += [(f"{field}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{field}.{i}", inner) for i, inner in enumerate(value)]
        elif isinstance(value, str) and field.endswith(".Regex"):
            yield field, value


def _trouble(tokenizer: Any, pattern: str, length: int) -> str:
    """How texts of repeated letters fail to be tokenised in time. A thread that does not come back is left behind."""
    own = "".join(dict.fromkeys(c for c in pattern if c.isprintable()))
    letters = dict.fromkeys(own + "ax0 \n")
    # Where a letter that a match must have is nowhere in a text the library does not search at all.
    ends = ("", "\x01", f"\x01{own}")
    endless = "without end"
    done: list[str] = []

    def seconds(text: str) -> float:
        begun = time.thread_time()  # of the processor: others that keep it busy are no fault of the pattern
        tokenizer(text, add_special_tokens=False)
        return time.thread_time() - begun

    def work() -> None:
        try:
            for letter in letters:
                for end in ends:
                    whole = seconds(letter * length + end)
                    # In proportion to the length it would be two.
                    if whole > _SLOW and whole > 3 * (half := seconds(letter * (length // 2) + end)):
                        done.append(f"for {whole:.2g} s, on half of it {half:.2g} s,")
                        return
        except BaseException as error:  # noqa: BLE001 - Rust's panic is one
            done.append(endless if panicked(error) else "")
        else:
            done.append("")

    with silent():  # the library writes where it panicked, over many lines
        thread = threading.Thread(target=work, name="exitlens-patterns", daemon=True)
        thread.start()
        thread.join(SECONDS)
    return done[0] if done else endless


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """What is written to standard error from outside of Python goes nowhere while open."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # closed
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

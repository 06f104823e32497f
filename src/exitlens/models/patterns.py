"""Patterns of a tokenizer that backtrack without end: found at load, told in one line when met later."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

from exitlens.errors import UnsupportedModel
from exitlens.parsing import cut

__all__ = ["check_patterns", "panicked"]

SECONDS = 10.0  # that 40 characters may take: they take microseconds
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d*,)")  # without one, time grows by a power of the length at most
_LENGTH = 40


def panicked(error: BaseException) -> bool:
    """Whether a library written in Rust gave up: its exception is no Exception, and no handler catches it."""
    return type(error).__name__ == "PanicException"


def check_patterns(tokenizer: Any, label: str) -> None:
    """Try repeated groups on texts made of each pattern's own letters. Raises :class:`UnsupportedModel`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for field, pattern in _patterns(getattr(backend, part, None), part):
            if _REPEATED_GROUP.search(pattern) and not _ends(tokenizer, pattern):
                raise UnsupportedModel(
                    f"{label}: the pattern {cut(pattern)!r} in tokenizer.json ({field}) backtracks without end on a "
                    f"text of {_LENGTH} characters: mend it, or use the model's own tokenizer"
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


def _ends(tokenizer: Any, pattern: str) -> bool:
    """Whether texts of repeated letters are tokenised in time. A thread that does not come back is left behind."""
    own = "".join(dict.fromkeys(c for c in pattern if c.isprintable()))
    letters = dict.fromkeys(own + "ax0 \n")
    # Where a letter that a match must have is nowhere in a text the library does not search at all.
    ends = ("", "\x01", f"\x01{own}")
    done: list[bool] = []

    def work() -> None:
        try:
            for letter in letters:
                for end in ends:
                    tokenizer(letter * _LENGTH + end, add_special_tokens=False)
        except BaseException as error:  # noqa: BLE001 - Rust's panic is one
            done.append(not panicked(error))
        else:
            done.append(True)

    with _silent():  # the library writes where it panicked, over many lines
        thread = threading.Thread(target=work, name="exitlens-patterns", daemon=True)
        thread.start()
        thread.join(SECONDS)
    return done == [True]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
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

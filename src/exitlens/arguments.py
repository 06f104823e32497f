"""What functions take from Python: texts, token ids, whole numbers; anything else is one line that says what is wanted.

A file or the command line gives text only, so a slip there has its line already. In a notebook the slip is a type: a
number where a list belongs, a tensor where texts do, one text where several do.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from typing import Any

from exitlens.errors import InputError
from exitlens.parsing import cut

__all__ = [
    "as_count",
    "as_id_rows",
    "as_names",
    "as_numbers",
    "as_path",
    "as_penalty",
    "as_texts",
    "is_whole",
    "wrong_kind",
]


def wrong_kind(what: str, value: object, remedy: str) -> InputError:
    """The error for a value of a type that ``what`` cannot be."""
    return InputError(f"{cut(repr(value), 40)} ({type(value).__name__}) was given as {what}: {remedy}")


def is_whole(value: object) -> bool:
    """Whether a value counts something: an int of Python, numpy or torch; True and False do not."""
    if type(value) is int:
        return True
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:  # an array of several numbers has the method and refuses
        return False
    return not isinstance(value, bool)


def as_count(value: Any, what: str, *, least: int = 1) -> int:
    """A whole number of at least ``least``. Raises :class:`InputError`."""
    if not is_whole(value):
        raise wrong_kind(what, value, "give a whole number")
    found = operator.index(value)
    if found < least:
        raise InputError(f"{what}={found} is out of range: at least {least}")
    return found


def as_penalty(value: Any) -> float:
    """A repetition penalty: a number above 0, 1 is none. Raises :class:`InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_kind("repetition_penalty", value, "give a number above 0")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise InputError(f"repetition_penalty {cut(str(value))} is out of range: a number above 0 (1 is none)")
    return number


def as_path(value: Any, what: str, remedy: str) -> str:
    """A name or a path as text. Raises :class:`InputError`, which says the ``remedy``."""
    if not isinstance(value, str | os.PathLike):
        raise wrong_kind(what, value, remedy)
    return os.fspath(value)


def as_texts(given: str | Iterable[str], what: str = "text") -> list[str]:
    """Texts: one text, or any number of them in whatever can be looked through. Raises :class:`InputError`."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, dict) or not _has_many(given):
        raise wrong_kind(f"{what}s", given, "give a text, or a list of texts")
    texts = list(given)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong_kind(f"{what} {i}", text, "give texts; read_ids and generate take lists of token ids")
    return texts


def as_names(given: Iterable[str], what: str) -> tuple[str, ...]:
    """Several words; one text standing alone is refused, since it would be taken letter by letter.

    Raises :class:`InputError`.
    """
    if isinstance(given, (str, dict)) or not _has_many(given):
        raise wrong_kind(what, given, "give a list of texts")
    names = tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise wrong_kind(f"one of {what}", name, "give texts")
    return names


def as_numbers(given: Iterable[Any], what: str) -> list[int]:
    """Whole numbers, in a list or in a tensor or array of one dimension. Raises :class:`InputError`."""
    if isinstance(given, (str, dict)) or not _has_many(given):
        raise wrong_kind(what, given, "give a list of whole numbers")
    found = list(given)
    for token in found:
        if not is_whole(token):
            raise wrong_kind(f"one of {what}", token, "give whole numbers")
    return [operator.index(token) for token in found]


def as_id_rows(given: Iterable[Iterable[Any]]) -> list[list[int]]:
    """Token ids of several texts. Raises :class:`InputError`, also where one text's ids stand alone."""
    if isinstance(given, (str, dict)) or not _has_many(given):
        raise wrong_kind("the token ids", given, "give a list of token ids a text: [[1, 2, 3]]")
    rows = list(given)
    for i, row in enumerate(rows):
        if is_whole(row) and not _has_many(row):
            raise wrong_kind(f"text {i}", row, "give a list of token ids a text: [[1, 2, 3]]")
    return [as_numbers(row, f"the token ids of text {i}") for i, row in enumerate(rows)]


def _has_many(value: object) -> bool:
    """Whether it can be looked through; a tensor or array of no dimension says that it can, and cannot."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0

"""JSON that others wrote: any text gives a value or one line that says what is wrong and where."""

from __future__ import annotations

import json
import re
from typing import Any

from exitlens.errors import DataError, ExitlensError

__all__ = ["cut", "parse_first", "parse_json"]

_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder()


def cut(text: object, most: int = 80) -> str:
    """``text`` as an error quotes it: no longer than ``most`` characters."""
    whole = str(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def parse_json(
    text: str, where: str, *, error: type[ExitlensError] = DataError, remedy: str = "", replace: bool = False
) -> Any:
    """The value that ``text`` spells.

    Args:
        text: The JSON.
        where: Opens the error: a file, and the line where there are many.
        error: What is raised.
        remedy: Ends the error.
        replace: Half a surrogate pair, which JSON can carry, becomes U+FFFD instead of an error.

    Raises:
        ExitlensError: Of the kind ``error``, in one line: no JSON, nested too deeply, a number of too many digits, half
            a surrogate pair.
    """
    value, end = parse_first(text, where, error=error, remedy=remedy, replace=replace)
    if text[end:].strip():
        raise error(_line(f"{where} is not JSON (more text after its end at {_place(text, end)})", remedy))
    return value


def parse_first(
    text: str, where: str, *, error: type[ExitlensError] = DataError, remedy: str = "", replace: bool = False
) -> tuple[Any, int]:
    """The first value that ``text`` spells, and where it ends. Raises as :func:`parse_json`."""
    begin = len(text) - len(text.lstrip())
    try:
        value, end = _DECODER.raw_decode(text, begin)
        halves = _HALF.search(text, begin, end) is not None
        whole = _whole(value) if halves else value
    except json.JSONDecodeError as why:
        raise error(_line(f"{where} is not JSON ({why.msg} at {_place(text, why.pos)})", remedy)) from None
    except RecursionError:
        raise error(_line(f"{where} is nested too deeply to be read", remedy)) from None
    except ValueError as why:  # Python refuses to read numbers of more than 4,300 digits: they take quadratic time
        raise error(_line(f"{where} holds a number that cannot be read ({cut(why)})", remedy)) from None
    if halves and not replace and whole != value:
        raise error(
            f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character: write it whole"
        )
    return whole, end


def _line(message: str, remedy: str) -> str:
    return f"{message}; {remedy}" if remedy else message


def _place(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    found = text[at : at + 40].split("\n", 1)[0].rstrip()
    return (f"column {column}" if line == 1 else f"line {line} column {column}") + (f": {found!r}" if found else "")


def _whole(value: Any) -> Any:
    """The value with U+FFFD in place of half pairs: no tokenizer, no table and no terminal takes those."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(part) for part in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(part) for key, part in value.items()}
    return value

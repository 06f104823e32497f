"""Files, JSON and TOML that others wrote: any of them gives a value, or one line that says what is wrong and where."""

from __future__ import annotations

import datetime
import json
import os
import re
import stat
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

from exitlens.errors import DataError, ExitlensError, InputError

__all__ = [
    "bound",
    "check_day",
    "check_plain",
    "counted",
    "cut",
    "parse_first",
    "parse_json",
    "parse_toml",
    "plainly",
    "read_bytes",
]

#: Bounds on what is read whole, MiB, and the environment variables that raise them.
BOUNDS = {"file": ("EXITLENS_MAX_FILE_MIB", 256), "line": ("EXITLENS_MAX_LINE_MIB", 8)}
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}

_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_COUNT = re.compile(r"(?P<number>[0-9][0-9_]{0,30}(?:\.[0-9]{1,18})?(?:[eE]\+?[0-9]{1,2})?)(?P<scale>[kKmMbBtT]?)")
_SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


class _Twice(Exception):
    """A field that stands twice in one object."""


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for i, name in enumerate(names) if name in names[:i]))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_fields)


def cut(text: object, most: int = 80) -> str:
    """``text`` as an error quotes it: no longer than ``most`` characters."""
    whole = str(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def check_day(text: str | None) -> str | None:
    """``text`` as it is where it is a day (``2026-11-27``) or None. Raises :class:`InputError` for anything else."""
    if text is None:
        return None
    try:
        day = datetime.date.fromisoformat(text)
    except (TypeError, ValueError):
        day = None
    if day is None or day.isoformat() != text:
        raise InputError(f"the date {cut(text)!r} is no day: write it as 2026-11-27")
    return text


def counted(text: str, what: str, most: int = 10**18) -> int:
    """A whole number as people write large ones: ``1000``, ``1_000``, ``1e9``, ``1.5B``, ``200M``, ``2T``.

    Raises:
        InputError: It is no whole number between 1 and ``most``.
    """
    found = _COUNT.fullmatch(text.strip())
    value = Decimal(0)
    if found is not None:
        value = Decimal(found["number"].replace("_", "")) * _SCALES[(found["scale"] or "").upper()]
    if not 1 <= value <= most or value != value.to_integral_value():
        raise InputError(f"{what} {cut(text)!r} is no whole number from 1 to {most:.0e}: write 1000, 1e9, 200M or 1.5B")
    return int(value)


def bound(what: str) -> tuple[int, str]:
    """Bytes that a ``file`` or a ``line`` may have, and how a message says that they can be raised.

    Raises:
        InputError: The environment variable is no positive number.
    """
    variable, standard = BOUNDS[what]
    given = os.environ.get(variable, str(standard))
    if not given.isdecimal() or not int(given[:12]) > 0:
        raise InputError(f"{variable} is {cut(given)!r}: give a positive number of MiB")
    return int(given[:12]) << 20, f"the limit is {given[:12]} MiB; {variable} raises it"


def check_plain(path: Path, *, error: type[ExitlensError] = DataError, holds: str = "text") -> int:
    """The size of a plain file in bytes, asked for before it is opened: a pipe would wait for ever.

    Raises:
        ExitlensError: Of the kind ``error``: it is missing, a folder, a pipe, a device or a socket.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise error(f"no such data file or folder: {str(path)!r}; check the path") from None
    except (OSError, ValueError) as why:
        reason = getattr(why, "strerror", None) or why
        raise error(f"cannot read {cut(repr(str(path)), 200)}: {reason}; check its name and permissions") from None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no plain file")
        raise error(f"{str(path)!r} is {kind}; give a file with {holds}")
    return found.st_size


def read_bytes(path: Path, *, error: type[ExitlensError] = DataError, holds: str = "text") -> bytes:
    """All bytes of a plain file; one over the bound on files is refused. Raises as :func:`check_plain`."""
    most, remedy = bound("file")
    size = check_plain(path, error=error, holds=holds)
    try:
        with path.open("rb") as handle:
            raw = handle.read(most + 1)  # it may have grown since
    except OSError as why:
        raise error(f"cannot read {str(path)!r}: {why.strerror or why}; check its permissions") from None
    if len(raw) > most:
        raise error(f"{str(path)!r} has {max(size, len(raw)):,} bytes, too many to be read whole: {remedy}")
    return raw


def parse_toml(raw: bytes, where: str, *, error: type[ExitlensError]) -> dict[str, Any]:
    """The table that UTF-8 TOML spells; a byte-order mark and CRLF are met. Raises ``error`` in one line."""
    try:
        return tomllib.loads(raw.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as why:
        raise error(f"{where} is not UTF-8 (byte 0x{raw[why.start]:02x}); save it as UTF-8") from None
    except RecursionError:
        raise error(f"{where} is nested too deeply to be read") from None
    except ValueError as why:  # no TOML, or a number of more than 4,300 digits
        raise error(f"{where} is not TOML: {cut(why)}") from None


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
            a surrogate pair, a field that stands twice.
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
    except _Twice as why:  # which of the two is meant nobody knows
        raise error(f"{where} has the field {cut(why)!r} twice; leave one of them out") from None
    except json.JSONDecodeError as why:
        raise error(_line(f"{where} is not JSON ({why.msg} at {_place(text, why.pos)})", remedy)) from None
    except RecursionError:
        raise error(_line(f"{where} is nested too deeply to be read", remedy)) from None
    except ValueError as why:  # Python refuses to read numbers of more than 4,300 digits: they take quadratic time
        raise error(_line(f"{where} holds a number that cannot be read ({cut(why)})", remedy)) from None
    if halves and not replace and whole != value:
        raise error(f"{where} holds half a surrogate pair (\\ud800 to \\udfff), which is no character: write it whole")
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


# What pydantic says of a value, which is written for programmers, and what is said here.
_THEIRS = (
    (r"Input should be a valid integer(,.*)?$", "give a whole number"),
    (r"Input should be a valid number(,.*)?$", "give a number"),
    (r"Input should be greater than or equal to (\S+)", r"give \1 or more"),
    (r"Input should be less than or equal to (\S+)", r"give \1 or less"),
    (r"Input should be greater than (\S+)", r"give more than \1"),
    (r"Input should be less than (\S+)", r"give less than \1"),
    (r"Input should be a finite number", "give a finite number"),
)


def plainly(message: str) -> str:
    """What pydantic says of a value, as what is to be given instead."""
    for theirs, ours in _THEIRS:
        message = re.sub(theirs, ours, message)
    return message

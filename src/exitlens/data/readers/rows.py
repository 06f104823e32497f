"""Rows of a JSON list, of JSON lines or of a CSV, each with its place for an error: the one parser of such files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from exitlens.data.sources import Source, csv_rows
from exitlens.errors import DataError
from exitlens.parsing import cut, parse_first, parse_json

__all__ = ["Row", "json_objects", "json_rows", "json_whole", "read_label", "table_rows"]

Row = tuple[str, dict[str, Any]]

_LABELS = dict.fromkeys(("1", "1.0", "true", "t", "yes", "y"), 1) | dict.fromkeys(
    ("0", "0.0", "false", "f", "no", "n"), 0
)


def read_label(value: Any) -> int | None:
    """1 or 0 for a label as people write it: 1, 1.0, true, yes, in any case, as text, number or boolean; else None."""
    if isinstance(value, bool | int | float):
        return int(value) if value in (0, 1) else None
    return _LABELS.get(value.strip().casefold()) if isinstance(value, str) else None


def json_whole(source: Source) -> Any | None:
    """The one JSON value that is the file, None where more values follow the first: JSON lines."""
    value, end = parse_first(source.text, repr(str(source.path)), remedy="the file may be cut short")
    return None if source.text[end:].strip() else value


def json_objects(source: Source) -> Iterator[Row]:
    """("'file' line 3", object) for every line that is not blank; DataError for a line that is not an object."""
    # Not str.splitlines(): it also cuts at U+2028 and its like, which JSON allows inside a text.
    for line, text in enumerate(source.text.split("\n"), start=1):
        if text.strip():
            where = f"{str(source.path)!r} line {line}"
            yield where, _object(where, parse_json(text, where, remedy="one object a line"))


def json_rows(source: Source) -> list[Row]:
    """The objects of a JSON list, of one object spread over lines, or of JSON lines. Raises DataError."""
    whole = json_whole(source)
    if whole is None:
        return list(json_objects(source))
    if isinstance(whole, list):
        places = ((f"{str(source.path)!r} row {number}", value) for number, value in enumerate(whole))
        return [(where, _object(where, value)) for where, value in places]
    where = f"{str(source.path)!r} line 1"
    return [(where, _object(where, whole))]


def table_rows(source: Source, columns: Sequence[str]) -> list[Row]:
    """Rows of JSON (as :func:`json_rows`) or of a CSV with a header, told apart by content.

    ``columns`` are those that are read. Raises DataError.
    """
    if source.text.lstrip()[:1] in {"{", "["}:
        return json_rows(source)
    return [(f"{str(source.path)!r} line {line}", dict(cells)) for line, cells in csv_rows(source, columns)]


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise DataError(f"{where} is a JSON {kind} ({cut(value, 60)}), not an object; one object a line")
    return value

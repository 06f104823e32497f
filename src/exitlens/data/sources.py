"""The bytes behind a data set: read once, hashed, decoded, with one-line errors."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from exitlens.errors import DataError
from exitlens.parsing import cut, read_bytes

__all__ = ["Source", "csv_header", "csv_rows", "delimiter_of", "folder_sha256", "quote_columns", "read_source"]


@dataclass(frozen=True, slots=True)
class Source:
    """A file's text (byte-order mark removed, otherwise unchanged) with the hash of its bytes."""

    path: Path
    text: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name without its last ending."""
        return self.path.stem


def read_source(path: Path, holds: str = "questions or statements") -> Source:
    """Reads ``path`` as UTF-8.

    Args:
        path: A plain file.
        holds: What should be in it, for messages.

    Raises:
        DataError: It is missing, no plain file, over the bound on files, unreadable, empty or not UTF-8.
    """
    raw = read_bytes(path, holds=holds)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{str(path)!r} is not UTF-8 (byte 0x{raw[error.start]:02x} in line {line}); save it as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{str(path)!r} is empty; give a file with {holds}")
    return Source(path, text, hashlib.sha256(raw).hexdigest())


def folder_sha256(paths: Sequence[Path]) -> str:
    """One hash over a folder's files: each name, a NUL, its length, a NUL, its bytes; in order of name."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        raw = read_bytes(path)
        digest.update(f"{path.name}\0{len(raw)}\0".encode())
        digest.update(raw)
    return digest.hexdigest()


def quote_columns(columns: Sequence[str]) -> str:
    """Column names for a message, shortened when there are many or long ones."""
    shown = ", ".join(repr(c if len(c) <= 40 else c[:37] + "...") for c in columns[:12])
    return shown + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")


_MARKS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def delimiter_of(source: Source, columns: Sequence[str]) -> str:
    """What separates the cells of a table: that under which the header has most of ``columns``, then most cells.

    ``columns``: names that are looked for, without regard to case. A comma where two do equally.
    """
    wanted = {name.strip().casefold() for name in columns}

    def fit(mark: str) -> tuple[int, int]:
        header = csv_header(source, mark)
        return sum(name.casefold() in wanted for name in header), len(header)

    return max(_MARKS, key=fit)  # the first of equal ones


def csv_header(source: Source, delimiter: str = ",") -> list[str]:
    """The column names of a CSV as written, white space at their ends removed."""
    reader = csv.reader(io.StringIO(source.text, newline=""), delimiter=delimiter)
    try:
        return next(([cell.strip() for cell in cells] for cells in reader if any(c.strip() for c in cells)), [])
    except csv.Error as error:
        raise DataError(f"{str(source.path)!r} line 1 is not readable as CSV ({error}); check its quotes") from None


def csv_rows(source: Source, columns: Sequence[str], delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV with a header: (line number where the row ends, {lower-case column: cell}).

    Empty lines are skipped. NUL bytes and any other text pass through.

    Raises:
        DataError: A broken quote, a row with more or fewer cells than the header, or one of ``columns``, those that are
            read, standing twice.
    """
    reader = csv.reader(io.StringIO(source.text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().casefold() for cell in cells]
                _check_header(source, header, columns)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{str(source.path)!r} line {reader.line_num}: {len(cells)} cells where the header has"
                    f" {len(header)}; put texts that hold {_MARKS[delimiter]} in double quotes"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{str(source.path)!r} line {reader.line_num} is not readable as CSV ({error});"
            " check the double quotes around its cells"
        ) from None


def _check_header(source: Source, header: Sequence[str], columns: Sequence[str]) -> None:
    """A name that stands twice could mean either column: labels from the wrong one would be inverted in silence."""
    twice = next((name for name in columns if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{str(source.path)!r} has the column {cut(twice)!r} twice; leave one of them out")

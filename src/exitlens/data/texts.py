"""Texts of any number from one file, one at a time: JSON lines, Parquet or plain text, in memory that does not grow.

===========================  =====================================================================================
file                         texts
===========================  =====================================================================================
``.jsonl``, ``.ndjson``,     one object a line; the text is its field ``text`` (or ``field``)
``.json``
``.parquet``                 the column ``text`` (or ``field``), read by row groups
anything else                UTF-8; a text a line, or with ``paragraphs`` whatever stands between blank lines
===========================  =====================================================================================

A text's number is its line, row or paragraph, counted from 0, whether or not the ones before it are empty, so that
results join with the source. Empty texts are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from exitlens.errors import DataError
from exitlens.parsing import bound, check_plain, cut, parse_json
from exitlens.storage.mirror import local_file

__all__ = ["SPLITS", "Split", "Survey", "TextFile"]

Split = Literal["lines", "paragraphs"]
SPLITS: tuple[str, ...] = get_args(Split)

ROWS = 256  # rows of a Parquet file in memory, fewer where they are long
UNPACKED = 64 << 20  # bytes of a Parquet file's rows in memory


@dataclass(frozen=True, slots=True)
class Survey:
    """What a first pass over a file found: how many texts (and characters) there are, how many were empty, its hash."""

    texts: int
    characters: int
    empty: int
    sha256: str


class TextFile:
    """A file of texts that is read from its beginning each time :meth:`texts` is called; never as a whole."""

    def __init__(self, path: str | Path, *, field: str = "text", split: Split = "lines") -> None:
        self.path = local_file(path)
        self.field = field
        self.split = split
        self.kind = _kind(self.path)

    def texts(self, start: int = 0, limit: int | None = None) -> Iterator[tuple[int, str]]:
        """``(number, text)`` of the texts from number ``start`` on, empty ones left out, up to number ``limit``.

        Raises DataError, naming the line or row, for what cannot be read as text.
        """
        for number, text in self._numbered():
            if limit is not None and number >= limit:
                return
            if number >= start and text.strip():
                yield number, text

    def survey(self, limit: int | None = None) -> Survey:
        """Read the file once: that all of it can be read is known before a model works for hours.

        Raises DataError for a file that is missing, damaged or holds no text.
        """
        texts = characters = seen = 0
        for number, text in self._numbered():
            if limit is not None and number >= limit:
                break
            seen += 1
            if text.strip():
                texts += 1
                characters += len(text)
        if not texts:
            raise DataError(f"'{self.path}' holds no text: give a file with at least one text that is not empty")
        with self.path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return Survey(texts, characters, seen - texts, digest)

    def _numbered(self) -> Iterator[tuple[int, str]]:
        check_plain(self.path, holds="texts")
        try:
            if self.kind == "parquet":
                yield from self._rows()
            elif self.kind == "json":
                yield from self._objects()
            elif self.split == "paragraphs":
                yield from self._paragraphs()
            else:
                yield from ((number, line.rstrip("\n")) for number, line in self._lines())
        except OSError as error:
            raise DataError(f"cannot read '{self.path}': {error.strerror or error}; check that you may") from None

    def _lines(self) -> Iterator[tuple[int, str]]:
        most, remedy = bound("line")
        with self.path.open("rb") as handle:
            number = 0
            while raw := handle.readline(most + 1):
                if len(raw) > most:
                    raise DataError(f"'{self.path}' line {number + 1} is too long: break it into lines ({remedy})")
                try:
                    line = raw.decode("utf-8-sig" if number == 0 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"'{self.path}' line {number + 1} is not UTF-8 (byte 0x{raw[error.start]:02x}): "
                        "save it as UTF-8"
                    ) from None
                yield number, line.replace("\r\n", "\n")
                number += 1

    def _paragraphs(self) -> Iterator[tuple[int, str]]:
        most, remedy = bound("line")
        number, size = 0, 0
        lines: list[str] = []
        for place, line in self._lines():
            if line.strip():
                lines.append(line)
                size += len(line)
                if size > most:
                    raise DataError(
                        f"'{self.path}' has too long a paragraph before line {place + 1}: break it with blank lines, "
                        f"or read a text a line with --split lines ({remedy})"
                    )
            elif lines:
                yield number, "".join(lines).rstrip("\n")
                number, size, lines = number + 1, 0, []
        if lines:
            yield number, "".join(lines).rstrip("\n")

    def _objects(self) -> Iterator[tuple[int, str]]:
        for number, line in self._lines():
            if not line.strip():
                yield number, ""
                continue
            value = parse_json(line, f"'{self.path}' line {number + 1}", remedy="give one object a line", replace=True)
            if not isinstance(value, dict) or self.field not in value:
                names = ", ".join(map(repr, value)) if isinstance(value, dict) else type(value).__name__
                raise DataError(
                    f"'{self.path}' line {number + 1} has no field '{self.field}' (it has {names[:80]}): name the "
                    "field of the text with --field"
                )
            yield number, self._text(value[self.field], f"line {number + 1}")

    def _rows(self) -> Iterator[tuple[int, str]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(self.path)
            count = schema.names.count(self.field)
            if count == 0:
                names = cut(", ".join(map(repr, schema.names)))
                raise DataError(
                    f"'{self.path}' has no column '{self.field}' (it has {names}): name the column of the text with "
                    "--field"
                )
            if count > 1:
                raise DataError(f"'{self.path}' has several columns '{self.field}': name one of its own with --field")
            kind = schema.field(self.field).type
            # Column chunks are streamed, and a text that stands in many rows is held once.
            once = [self.field] if pa.types.is_string(kind) or pa.types.is_large_string(kind) else []
            file = pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False, read_dictionary=once)
            number = 0
            for group in range(file.num_row_groups):
                rows = self._batch_rows(file.metadata.row_group(group), group)
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=[self.field]):
                    for value in batch.column(0):
                        yield number, self._text(_short(value, self.path, number), f"row {number}")
                        number += 1
        except DataError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            first = cut((str(error).splitlines() or [type(error).__name__])[0])
            raise DataError(f"'{self.path}' is not a whole Parquet file ({first})") from None

    def _batch_rows(self, group: Any, number: int) -> int:
        """How many rows of a row group are read at once, by what it says of its size.

        Raises DataError for a group of which a few bytes unpack to gigabytes: pages are unpacked as a whole.
        """
        chunks = [group.column(i) for i in range(group.num_columns)]
        mine = [c for c in chunks if c.path_in_schema.split(".")[0] == self.field]
        packed = sum(int(chunk.total_compressed_size) for chunk in mine)
        size = sum(int(chunk.total_uncompressed_size) for chunk in mine)
        if size > UNPACKED and size > 100 * packed:
            raise DataError(
                f"'{self.path}' row group {number} unpacks from {packed:,} to {size:,} bytes: write it again with "
                "fewer rows in a group, or as JSON lines"
            )
        return max(1, min(ROWS, UNPACKED * int(group.num_rows) // max(1, size)))

    def _text(self, value: Any, where: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise DataError(
                f"'{self.path}' {where}: '{self.field}' is {str(value)[:40]!r}, not a text: name the field of the text "
                "with --field"
            )
        # Half a surrogate pair, which JSON can carry, is no character: no tokenizer and no table takes it.
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def _short(value: Any, path: Path, row: int) -> Any:
    """A Parquet value as Python's. Raises DataError for a text that is longer than a line may be."""
    import pyarrow as pa

    inner = value.value if isinstance(value, pa.DictionaryScalar) and value.is_valid else value
    if isinstance(inner, pa.StringScalar | pa.LargeStringScalar) and inner.is_valid:
        size = inner.as_buffer().size
        most, remedy = bound("line")
        if size > most:
            raise DataError(f"'{path}' row {row} has a text of {size:,} bytes: cut it up ({remedy})")
    return value.as_py()


def _kind(path: Path) -> Literal["json", "parquet", "plain"]:
    ending = path.suffix.lower()
    if ending in (".jsonl", ".ndjson", ".json"):
        return "json"
    return "parquet" if ending in (".parquet", ".pq") else "plain"

"""Rows of a Parquet file, read whole within the bounds on files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from exitlens.data.readers.rows import Row
from exitlens.errors import DataError
from exitlens.parsing import bound, check_plain, cut

__all__ = ["is_parquet", "parquet_rows"]


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet does. Raises DataError for what is no plain file."""
    check_plain(path)
    try:
        with path.open("rb") as handle:
            return handle.read(4) == b"PAR1"
    except OSError as why:
        raise DataError(f"cannot read {str(path)!r}: {why.strerror or why}; check its permissions") from None


def parquet_rows(path: Path) -> tuple[list[str], list[Row], str]:
    """Column names, rows with their places, and the hash of the bytes.

    Raises:
        DataError: The file is damaged, or unpacks to more than a file may have.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    most, remedy = bound("file")
    try:
        file = pq.ParquetFile(path)
        names = list(file.schema_arrow.names)
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        # Pages are unpacked as a whole: what the file says of its size is looked at before a byte is.
        size = sum(int(group.column(i).total_uncompressed_size) for group in groups for i in range(group.num_columns))
        if size > most:
            raise DataError(f"{str(path)!r} unpacks to {size:,} bytes, too many to be read whole: {remedy}")
        columns = [column.to_pylist() for column in file.read().columns]
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as why:
        first = cut((str(why).splitlines() or [type(why).__name__])[0])
        raise DataError(f"{str(path)!r} is not a whole Parquet file ({first})") from None
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    rows: list[Row] = []
    for number, values in enumerate(zip(*columns, strict=True), start=1):
        cells: dict[str, Any] = dict(zip(names, values, strict=True))
        rows.append((f"{str(path)!r} row {number}", cells))
    return names, rows, digest

"""Many Parquet files as one table: read joined when it is asked for, or written joined without holding all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from exitlens.storage.atomic import parquet_options, write_file

__all__ = ["JoinedTables", "write_joined"]

# Rows of a row group: large enough to compress, small enough to be read back one at a time.
GROUP_ROWS = 1 << 16


class JoinedTables(Mapping[str, pd.DataFrame]):
    """Tables by name, each in files that are read anew whenever it is asked for: none is kept in memory."""

    def __init__(self, files: Mapping[str, Sequence[Path]], owner: object = None) -> None:
        self._files = dict(files)
        self._owner = owner  # the files live as long as it does

    def __getitem__(self, name: str) -> pd.DataFrame:
        files = self._files[name]
        schema = _schema(files)
        frame: pd.DataFrame = pa.concat_tables([_fit(pq.read_table(f), schema) for f in files]).to_pandas()
        return frame

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def files(self, name: str) -> tuple[Path, ...]:
        """The files of a table, in order."""
        return tuple(self._files[name])


def write_joined(path: Path, files: Sequence[Path]) -> str:
    """Write the rows of ``files`` as one Parquet file, some tens of thousands in memory; returns its sha256."""
    schema = _schema(files)

    def write(part: Path) -> None:
        with pq.ParquetWriter(part, schema, **parquet_options(schema)) as sink:
            held: list[Any] = []
            rows = 0
            for file in files:
                held.append(_fit(pq.read_table(file), schema))
                rows += len(held[-1])
                if rows >= GROUP_ROWS:
                    sink.write_table(pa.concat_tables(held))
                    held, rows = [], 0
            if rows or not files:
                sink.write_table(pa.concat_tables(held))

    return write_file(path, write)


def _schema(files: Sequence[Path]) -> Any:
    """The columns of all files; a table without rows knows no types, so others' count."""
    found = [(pq.read_metadata(file).num_rows, pq.read_schema(file).remove_metadata()) for file in files]
    filled = [schema for rows, schema in found if rows] or [found[0][1]]
    return pa.unify_schemas(filled, promote_options="permissive")


def _fit(table: Any, schema: Any) -> Any:
    if not len(table):
        return schema.empty_table()
    missing = [field for field in schema if field.name not in table.column_names]
    for field in missing:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)

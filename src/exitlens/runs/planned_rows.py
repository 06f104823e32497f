"""Which example stands in which row of which shard: a table in the order of shards, each found at once.

STORE/plan.parquet     id, label, topic, group, hash (of the text), n_tokens, shard, row
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from exitlens.storage.atomic import write_parquet

__all__ = ["COLUMNS", "PlannedRows", "read_places"]

COLUMNS = ("id", "label", "topic", "group", "hash", "n_tokens")
_PLACES = ("shard", "row")


class PlannedRows:
    """The plan of a store in ``folder``, as far as it is there and whole."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "plan.parquet"
        # Damaged: planned again; shards are found by the key of their rows.
        found = read_places(self._file)
        self._set(found if found is not None else pd.DataFrame({name: [] for name in (*COLUMNS, *_PLACES)}))

    def _set(self, table: pd.DataFrame) -> None:
        self.table = table.sort_values(["shard", "row"], kind="stable", ignore_index=True)
        # Where each shard begins: asked for 10^5 of them, a search through all rows for each would take hours.
        numbers, starts = np.unique(self.table["shard"].to_numpy(dtype=np.int64), return_index=True)
        self.shards: list[int] = numbers.tolist()
        bounds = [*starts.tolist(), len(self.table)]
        self._span: dict[int, tuple[int, int]] = dict(zip(self.shards, pairwise(bounds), strict=True))
        self._ids: NDArray[Any] = self.table["id"].to_numpy(dtype=object)
        self._hashes: NDArray[Any] = self.table["hash"].to_numpy(dtype=object)

    def __len__(self) -> int:
        return len(self.table)

    def add(self, rows: pd.DataFrame, shard_rows: int) -> None:
        """Reserve places in new shards for the examples that have none, in their order, and write the plan.

        An example is known by id and hash, so a changed text under an old id is a new example.
        """
        known = set(zip(self._ids, self._hashes, strict=True))
        new = [i for i, pair in enumerate(zip(rows["id"], rows["hash"], strict=True)) if pair not in known]
        if not new:
            return
        added = rows.iloc[new].loc[:, list(COLUMNS)].reset_index(drop=True)
        first = self.shards[-1] + 1 if self.shards else 0
        place = np.arange(len(added))
        added = added.assign(shard=first + place // shard_rows, row=place % shard_rows)
        self._set(pd.concat([self.table, added], ignore_index=True) if len(self) else added)
        write_parquet(self._file, self.table)

    def span(self, shard: int) -> tuple[int, int]:
        """The places of a shard's rows in ``table``, first and end; an unplanned one has none."""
        return self._span.get(shard, (0, 0))

    def of(self, shard: int) -> pd.DataFrame:
        """The rows of one shard, in order."""
        first, end = self.span(shard)
        return self.table.iloc[first:end].reset_index(drop=True)

    def names(self, shard: int) -> tuple[Sequence[str], Sequence[str]]:
        """The ids of a shard's examples, and the hashes of their texts."""
        first, end = self.span(shard)
        return self._ids[first:end].tolist(), self._hashes[first:end].tolist()


def read_places(file: Path) -> pd.DataFrame | None:
    """A table of examples; None where it is missing, damaged, or its places are no numbers of shards and rows."""
    try:
        found = pd.read_parquet(file)
    except (OSError, ValueError, pa.ArrowException):
        return None
    whole = {*COLUMNS, *_PLACES} <= set(found.columns) and all(
        pd.api.types.is_integer_dtype(found[name]) and bool((found[name] >= 0).all()) for name in _PLACES
    )
    return found if whole else None

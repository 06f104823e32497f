"""Measured times, put beside the tables for a reader.

Two runs with one seed have the same tables and never the same seconds, so a run keeps times in its manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas import DataFrame

__all__ = ["with_times"]


def with_times(tables: Mapping[str, DataFrame], manifest: Mapping[str, Any]) -> dict[str, DataFrame]:
    """The tables, ``decoding_cost`` with ``tokens_per_second`` and ``exits`` with ``predicted_time`` where known."""
    out = dict(tables)
    speed, times = manifest.get("tokens_per_second"), manifest.get("exit_times")
    cost, exits = out.get("decoding_cost"), out.get("exits")
    if isinstance(speed, Mapping) and cost is not None and "decoder" in cost:
        rates = pd.Series([speed.get(name) for name in cost["decoder"]], cost.index, dtype=object)
        out["decoding_cost"] = cost.assign(tokens_per_second=rates)
    if isinstance(times, list) and exits is not None and {"policy", "threshold"} <= set(exits):
        known = {
            (row.get("policy"), _key(row.get("threshold"))): row.get("predicted_time")
            for row in times
            if isinstance(row, Mapping)
        }
        keys = zip(exits["policy"], map(_key, exits["threshold"]), strict=True)
        out["exits"] = exits.assign(
            predicted_time=pd.Series([known.get(key) for key in keys], exits.index, dtype=object)
        )
    return out


def _key(threshold: Any) -> float | None:
    """Missing is None however it was stored; equal numbers are equal after their way through JSON."""
    return None if threshold is None or pd.isna(threshold) else float(threshold)

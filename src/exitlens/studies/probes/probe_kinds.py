"""The tables of a probe study as figures and report read them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from exitlens.probes import ProbeStudy, to_frame

__all__ = ["view_tables"]

# The roles under which the tables' readers know them.
_ROLES = {"model": "lm"}


def view_tables(study: ProbeStudy) -> dict[str, pd.DataFrame]:
    """The study's tables as figures and report read them: one row a predictor, its metrics as columns.

    ``probe_layers`` (probes and control by layer; floor and model as rows without a layer), ``probe_best``,
    ``probe_comparisons``.
    """
    by_layer = _wide(to_frame(study, "probe_layers"), ["kind", "role", "protocol", "layer", "n_seeds"])
    best = to_frame(study, "probe_best")
    flat = best[best["role"].isin(["floor", "model"])]
    without = _wide(flat, ["kind", "role", "protocol", "n_seeds"])
    layers = pd.concat([by_layer, without.assign(layer=pd.array([pd.NA] * len(without), dtype="Int64"))])
    keys = ["kind", "role", "protocol", "layers", "settings", "folds", "n_test", "n_seeds", "selectivity"]
    return {
        "probe_layers": layers.assign(n=len(study.labels)).reset_index(drop=True),
        "probe_best": _wide(best, keys),
        "probe_comparisons": to_frame(study, "probe_comparisons"),
    }


def _wide(long: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Long rows (metric, value, low, high) as one row a predictor, in order of first appearance."""
    kept = [key for key in keys if key in long.columns]
    rows: dict[tuple[object, ...], dict[str, object]] = {}
    for row in long.to_dict("records"):
        # NaN is not equal to itself: a missing value must still name the same row.
        key = tuple(None if pd.isna(row[k]) else row[k] for k in kept)
        wide = rows.setdefault(key, dict(zip(kept, key, strict=True)))
        name = str(row["metric"])
        wide |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    frame = pd.DataFrame(list(rows.values()))
    if "layer" in frame.columns:
        frame["layer"] = pd.array([pd.NA if v is None or v != v else int(v) for v in frame["layer"]], dtype="Int64")
    if "role" in frame.columns:
        frame["role"] = frame["role"].replace(_ROLES)
    if "selectivity" in frame.columns:
        frame["selectivity"] = frame["selectivity"].astype(np.float64)
    return frame

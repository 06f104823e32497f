"""The probe study that would survive review: every kind at every layer under one protocol, with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from exitlens.data import groups
from exitlens.data.records import Statement
from exitlens.models.protocol import LayeredModel
from exitlens.probes.controls import lm_baselines
from exitlens.probes.data import ProbeData, make_data
from exitlens.probes.evaluate import ProbeStudy, evaluate
from exitlens.probes.fit import Progress
from exitlens.probes.kinds import kind_named
from exitlens.probes.protocols import make_split
from exitlens.study.stage_layers import check_layers
from exitlens.study.state_store import StateStore
from exitlens.study.study_probes import said

__all__ = ["kinds_study", "probe_data", "view_tables"]

# The roles under which the tables' readers know them.
_ROLES = {"model": "lm"}


def probe_data(
    lm: LayeredModel,
    statements: Sequence[Statement],
    store: StateStore,
    layers: Sequence[int] | Literal["all"] = "all",
) -> ProbeData:
    """Stored states of ``layers`` (``[layers, n, d]``) with labels, topics, groups and texts, checked."""
    numbers = check_layers(lm, layers if layers == "all" else tuple(layers))
    return make_data(
        store.states(numbers, [statement.id for statement in statements]),
        [statement.label for statement in statements],
        groups(statements),
        [statement.topic for statement in statements],
        layers=numbers,
        negated=[statement.negated for statement in statements],
        texts=[statement.statement for statement in statements],
    )


def kinds_study(
    lm: LayeredModel,
    statements: Sequence[Statement],
    store: StateStore,
    kinds: Sequence[str],
    *,
    protocol: str = "leave-one-topic-out",
    layers: Sequence[int] | Literal["all"] = "all",
    seeds: int = 5,
    seed: int = 0,
    test_topic: str | None = None,
    progress: Progress | None = None,
) -> ProbeStudy:
    """Fit and measure ``kinds`` on stored states, beside the text-only floor, random labels and the model's own answer.

    Layer 0 holds the embedding of the last token alone, which is the same for every prompted statement, so it is left
    out of "all". Raises ProbeError as the protocols and kinds do.
    """
    for kind in kinds:
        kind_named(kind)
    numbers = range(1, lm.n_layers + 1) if layers == "all" else layers
    data = probe_data(lm, statements, store, list(numbers))
    split = make_split(data, protocol, seed=seed, test=(test_topic,) if test_topic is not None else ())
    baselines = ()
    if store.origin.setting == "prompted":
        right, probability = said(lm, store, [s.id for s in statements], data.labels)
        baselines = lm_baselines(data.labels, right, probability)
    return evaluate(
        data,
        split,
        kinds,
        seeds=tuple(range(seed, seed + seeds)),
        baselines=baselines,
        progress=progress,
    )


def view_tables(study: ProbeStudy) -> dict[str, pd.DataFrame]:
    """The study's tables as figures and report read them: one row a predictor, its metrics as columns.

    ``probe_layers`` (probes and control by layer; floor and model as rows without a layer), ``probe_best``,
    ``probe_comparisons``, ``probe_calibration``, ``probe_risk``.
    """
    by_layer = _wide(study.to_frame("probe_layers"), ["kind", "role", "protocol", "layer", "n_seeds"])
    best = study.to_frame("probe_best")
    flat = best[best["role"].isin(["floor", "model"])]
    without = _wide(flat, ["kind", "role", "protocol", "n_seeds"])
    layers = pd.concat([by_layer, without.assign(layer=pd.array([pd.NA] * len(without), dtype="Int64"))])
    calibration = study.to_frame("probe_calibration").rename(
        columns={"probability": "confidence", "share_true": "observed"}
    )
    keys = ["kind", "role", "protocol", "layers", "settings", "folds", "n_test", "n_seeds", "selectivity"]
    return {
        "probe_layers": layers.assign(n=len(study.labels)).reset_index(drop=True),
        "probe_best": _wide(best, keys),
        "probe_comparisons": study.to_frame("probe_comparisons"),
        "probe_calibration": calibration[calibration["n"] > 0].reset_index(drop=True),
        "probe_risk": study.to_frame("probe_risk_coverage"),
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

"""The probes' long tables, as pandas frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exitlens.errors import InputError
from exitlens.probes.results import Measured, ProbeStudy
from exitlens.stats import reliability_curve, resample_counts, share_interval, weighted_risk

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TABLES", "to_frame"]

TABLES = ("probe_layers", "probe_best", "probe_comparisons", "probe_calibration", "probe_risk")
POINTS = 50  # coverages of a risk-coverage curve: more cannot be told apart in a figure
_DRAWN = ("probe", "floor", "model")  # roles with curves of their own; ensembles would only crowd a figure


def to_frame(study: ProbeStudy, table: str, *, resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """One table of a study.

    probe_layers: kind, role, protocol, layer, metric, value, low, high, n_seeds (``random labels`` is the control,
    its seeds are draws).
    probe_best: kind, role, protocol, metric, value, low, high, n_seeds, layers and settings (chosen, one a fold,
    comma-separated), folds, n_test, selectivity. probe_comparisons: a, b, difference (accuracy), low, high, p,
    p_holm, protocol. probe_calibration: confidence (mean P(true) of the bin), observed, observed_low, observed_high,
    n, kind, protocol; bins with rows only. probe_risk: coverage, risk, risk_low, risk_high, kind, protocol.

    Args:
        study: What :func:`evaluate` returned.
        table: One of :data:`TABLES`.
        resamples: Bootstrap draws of the curves' intervals (the other tables have theirs already).
        seed: Seed of those draws.

    Raises:
        InputError: No such table.
    """
    import pandas as pd

    if table == "probe_layers":
        return pd.DataFrame(_long(study, study.layers)).astype({"layer": "Int64"})
    if table == "probe_best":
        return _best(study)
    if table == "probe_comparisons":
        columns = ["a", "b", "difference", "low", "high", "p", "p_holm"]
        rows = [[c.a, c.b, c.difference, c.low, c.high, c.p, c.p_holm] for c in study.comparisons]
        return pd.DataFrame(rows, columns=columns).assign(protocol=study.protocol)
    if table not in TABLES:
        raise InputError(f"no table '{table[:80]}' in a probe study: known are {', '.join(TABLES)}")
    curve = _calibration if table == "probe_calibration" else _risk
    frames = [
        curve(study, m.name, resamples, seed).assign(kind=m.name, protocol=study.protocol)
        for m in study.best
        if m.role in _DRAWN
    ]
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def _long(study: ProbeStudy, measured: tuple[Measured, ...]) -> list[dict[str, object]]:
    return [
        {
            "kind": m.name,
            "role": m.role,
            "protocol": study.protocol,
            "layer": m.layer,
            "metric": metric,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "n_seeds": m.n_seeds,
        }
        for m in measured
        for metric, found in m.values.items()
    ]


def _best(study: ProbeStudy) -> pd.DataFrame:
    import pandas as pd

    rows = _long(study, study.best)
    chosen = {r.kind: r for r in study.runs}
    for row in rows:
        run = chosen.get(str(row["kind"]))
        del row["layer"]
        row["layers"] = "" if run is None else ",".join(map(str, run.chosen_layers))
        row["settings"] = "" if run is None else ",".join("" if s is None else f"{s:g}" for s in run.chosen_settings)
        row["folds"] = "" if run is None else ",".join(run.fold_names)
        row["n_test"] = len(study.labels)
        row["selectivity"] = study.selectivity.get(str(row["kind"]), float("nan"))
    return pd.DataFrame(rows)


def _calibration(study: ProbeStudy, name: str, resamples: int, seed: int) -> pd.DataFrame:
    import pandas as pd

    p = study.predictions[name].float().numpy()
    seeds = len(p)
    counts = resample_counts(study.groups, resamples, seed)
    # All seeds' predictions are one set of rows, of which a group brings its own in every seed.
    curve = reliability_curve(p.ravel(), np.tile(study.labels, seeds), counts=np.tile(counts, (seeds, 1)))
    # An answer of yes or no has no calibration to speak of.
    used = curve.count > 0 if ((p > 0) & (p < 1)).any() else np.zeros(len(curve.count), np.bool_)
    return pd.DataFrame(
        {
            "confidence": curve.probability[used],
            "observed": curve.share[used],
            "observed_low": curve.low[used],
            "observed_high": curve.high[used],
            "n": curve.count[used] / seeds,
        }
    )


def _risk(study: ProbeStudy, name: str, resamples: int, seed: int) -> pd.DataFrame:
    import pandas as pd

    coverage = np.linspace(1 / POINTS, 1, POINTS)
    counts = resample_counts(study.groups, resamples, seed)
    risks = []
    for one in study.predictions[name].float().numpy():
        wrong = ((one > 0.5) != (study.labels == 1)).astype(np.float64)
        risks.append(weighted_risk(np.abs(one - np.float32(0.5)).astype(np.float64), wrong, counts, coverage)[1])
    risk, units, n = np.mean(risks, axis=0), len(np.unique(study.groups)), len(study.labels)
    found = [share_interval(one, units, max(1.0, share * n)) for one, share in zip(risk, coverage, strict=True)]
    low, high = [one.low for one in found], [one.high for one in found]
    return pd.DataFrame({"coverage": coverage, "risk": risk[:, 0], "risk_low": low, "risk_high": high})

"""The probes' long tables, as pandas frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from exitlens.errors import InputError
from exitlens.stats import reliability, risk_coverage

if TYPE_CHECKING:
    from exitlens.probes.evaluate import Measured, ProbeStudy

__all__ = ["TABLES", "to_frame"]

TABLES = ("probe_layers", "probe_best", "probe_comparisons", "probe_calibration", "probe_risk_coverage")
POINTS = 100  # points kept of a risk-coverage curve


def _long(study: ProbeStudy, measured: tuple[Measured, ...]) -> list[dict[str, object]]:
    return [
        {
            "kind": m.name,
            "role": m.role,
            "protocol": study.protocol,
            "layer": m.layer,
            "metric": metric,
            "value": value,
            "low": low,
            "high": high,
            "n_seeds": m.n_seeds,
        }
        for m in measured
        for metric, (value, low, high) in m.values.items()
    ]


def _best(study: ProbeStudy) -> pd.DataFrame:
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


def _calibration(study: ProbeStudy) -> pd.DataFrame:
    frames = []
    for name, p in study.predictions.items():
        curve = reliability(p.double().flatten().numpy(), np.tile(study.labels, len(p)), 15)
        frames.append(
            pd.DataFrame(
                {
                    "kind": name,
                    "protocol": study.protocol,
                    "bin_low": curve.edges[:-1],
                    "bin_high": curve.edges[1:],
                    "n": curve.count / len(p),
                    "probability": curve.probability,
                    "share_true": curve.share,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _risk(study: ProbeStudy) -> pd.DataFrame:
    frames = []
    at = np.unique(np.linspace(0, len(study.labels) - 1, min(POINTS, len(study.labels))).round().astype(np.int64))
    for name, p in study.predictions.items():
        curves = [
            risk_coverage((one.double() - 0.5).abs().numpy(), (one > 0.5).numpy() == study.labels.astype(bool))
            for one in p
        ]
        frames.append(
            pd.DataFrame(
                {
                    "kind": name,
                    "protocol": study.protocol,
                    "coverage": curves[0].coverage[at],
                    "risk": np.mean([c.risk[at] for c in curves], 0),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def to_frame(study: ProbeStudy, table: str) -> pd.DataFrame:
    """One table of a study.

    probe_layers: kind, role, protocol, layer, metric, value, low, high, n_seeds (``random labels`` is the control).
    probe_best: kind, role, protocol, metric, value, low, high, n_seeds, layers and settings (chosen, one a fold,
    joined by commas), folds, n_test, selectivity. probe_comparisons: a, b, difference (accuracy), low, high, p,
    p_holm, protocol. probe_calibration: kind, protocol, bin_low, bin_high, n, probability, share_true.
    probe_risk_coverage: kind, protocol, coverage, risk.
    """
    if table == "probe_layers":
        frame = pd.DataFrame(_long(study, study.layers))
        return frame.astype({"layer": "Int64"})
    if table == "probe_best":
        return _best(study)
    if table == "probe_comparisons":
        columns = ["a", "b", "difference", "low", "high", "p", "p_holm"]
        rows = [[c.a, c.b, c.difference, c.low, c.high, c.p, c.p_holm] for c in study.comparisons]
        return pd.DataFrame(rows, columns=columns).assign(protocol=study.protocol)
    if table == "probe_calibration":
        return _calibration(study)
    if table == "probe_risk_coverage":
        return _risk(study)
    raise InputError(f"no table '{table}' in a probe study: known are {', '.join(TABLES)}")

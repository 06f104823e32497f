"""Table of thresholds with a guarantee: each kind of policy by itself, and the best of all kinds, corrected for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from exitlens import stats
from exitlens.exits.policies import ExitPolicy, Kind
from exitlens.exits.replay_policies import Array, Cost, Outcome, Signals, apply_policy, caught_up
from exitlens.exits.risk_control import (
    Bound,
    Calibrated,
    Control,
    calibrate,
    calibrate_anytime,
    corrected,
    require_units,
    units_needed,
)
from exitlens.studies.exits.columns import CALIBRATION

__all__ = ["KINDS", "Candidates", "bound_of", "calibration_table", "candidates"]

KINDS: tuple[Kind, ...] = ("probability", "margin", "entropy", "patience", "cosine", "classifier")


@dataclass(frozen=True, slots=True, repr=False)
class Candidates:
    """A kind of policy at each threshold, conservative to loose: what it does, and ``losses [thresholds, answers]``.

    The loss is an answer's share of tokens that are not the full model's; answers are in the order of their numbers.
    """

    kind: Kind
    thresholds: list[float]
    outcomes: list[Outcome]
    losses: Array


def candidates(signals: Signals, cost: Cost, kinds: Sequence[Kind] = KINDS) -> list[Candidates]:
    """Every kind that these signals allow."""
    units = np.unique(signals.question)
    out = []
    for kind in kinds:
        if kind in signals.values:
            grid = _fine(kind, signals.n_layers)
            done = [apply_policy(signals, ExitPolicy(kind, t, signals.layers), cost) for t in grid]
            out.append(Candidates(kind, grid, done, np.stack([_loss(outcome, signals, units) for outcome in done])))
    return out


def calibration_table(
    signals: Signals,
    cost: Cost,
    *,
    deltas: Sequence[float] = (0.02, 0.05, 0.1),
    epsilon: float = 0.05,
    control: Control = "ltt",
    kinds: Sequence[Kind] = KINDS,
    strict: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Table ``exits_calibration``: thresholds chosen on half of the answers, tested on the other half.

    The risk is an answer's share of tokens that are not the full model's. ``outcome`` says what was chosen, ``nowhere``
    when no threshold passed, or how many answers are needed; ``strict`` raises :class:`InputError` instead of the last.
    A row a kind of policy is for a kind chosen beforehand (``chosen_among`` 1). Where there are several, one more row a
    risk has the one of K kinds that saves most on the calibration half, each tested at ε / K (``chosen_among`` K).
    """
    units = np.unique(signals.question)
    order = np.random.default_rng(seed).permutation(len(units))
    mine, other = order[: len(units) // 2], order[len(units) // 2 :]
    tried = candidates(signals, cost, kinds)
    order_of: dict[Any, int] = {each.kind: i for i, each in enumerate(tried)}
    rows: list[dict[str, Any]] = []
    for delta in deltas:
        if strict:
            require_units(len(mine), delta, epsilon, bound_of(control))
        among = [([each], epsilon) for each in tried]
        if len(tried) > 1:
            among.append((tried, corrected(epsilon, len(tried))))
        for group, level in among:
            row = {
                "policy": group[0].kind if len(group) == 1 else f"best of {len(group)}", "control": control,
                "delta": delta, "epsilon": epsilon, "chosen_among": len(group), "level": level,
                "n_calibration": len(mine), "n_test": len(other),
            }  # fmt: skip
            rows.append(row | _chosen(group, signals, cost, (mine, other), delta, level, control, seed))
    columns = CALIBRATION.columns
    # First the kinds by themselves, then the best of them; the sort is stable, so risks stay as they are given.
    rows.sort(key=lambda row: (row["chosen_among"], order_of[row["policy"]] if row["chosen_among"] == 1 else 0))
    table = pd.DataFrame(rows, columns=columns)
    return table.astype(dict.fromkeys(columns[columns.index("threshold") :], np.float64))


def _chosen(
    group: Sequence[Candidates], signals: Signals, cost: Cost, halves: tuple[Array, Array], delta: float, level: float,
    control: Control, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The threshold, of the kind that saves most on the calibration half, and what it does on the other half."""
    mine, other = halves
    needed = units_needed(delta, level, bound_of(control))
    if len(mine) < needed:
        return {"outcome": f"too few: {needed} calibration answers are needed"}
    test = calibrate_anytime if control == "anytime" else calibrate
    passed: list[tuple[float, Candidates, Calibrated]] = []
    for each in group:
        found = test(each.losses[:, mine], each.thresholds, delta=delta, epsilon=level)
        if found.threshold is not None:
            outcome = each.outcomes[each.thresholds.index(found.threshold)]
            passed.append((_saved(outcome, signals, cost, mine)[1], each, found))
    if not passed:
        return {"outcome": "nowhere: no threshold passed"}
    _, each, found = max(passed, key=lambda one: one[0])
    at = each.thresholds.index(found.threshold or 0.0)
    risk = stats.mean_interval(each.losses[at][other], seed=seed)
    layers, flops = _saved(each.outcomes[at], signals, cost, other)
    return {
        "policy": each.kind,
        "outcome": "threshold",
        "threshold": found.threshold,
        "calibration_risk": found.risk,
        "answers_used": float(found.passed_at[-1]) if found.passed_at else float(len(mine)),
        "test_risk": risk.value,
        "test_risk_low": risk.low,
        "test_risk_high": risk.high,
        "layers_saved": layers,
        "flops_saved": flops,
    }


def bound_of(control: Control) -> Bound:
    """The test of a control: by betting, or Hoeffding–Bentkus."""
    return "betting" if control == "anytime" else "hoeffding-bentkus"


def _saved(outcome: Outcome, signals: Signals, cost: Cost, answers: Array) -> tuple[float, float]:
    """Share of layers and of FLOPs saved on some answers, catching up counted."""
    tested = np.isin(signals.question, np.unique(signals.question)[answers])
    extra = caught_up(outcome.exit, signals.question, signals.step)
    layers = 1.0 - float(outcome.exit[tested].mean()) / signals.n_layers
    return layers, 1.0 - float((outcome.flops[tested] + extra[tested] * cost.block).mean()) / outcome.full


def _fine(kind: str, n_layers: int) -> list[float]:
    """More thresholds than the table of policies shows, from conservative to loose."""
    if kind == "entropy":
        return [float(v) for v in np.geomspace(0.005, 2.0, 25)]
    if kind == "patience":
        return [float(v) for v in range(n_layers, 1, -1)]
    if kind == "cosine":
        return [float(v) for v in 1.0 - np.geomspace(1e-4, 0.2, 25)]
    return [float(v) for v in 1.0 - np.geomspace(1e-3, 0.6, 30)]


def _loss(outcome: Outcome, signals: Signals, units: Array) -> Array:
    """Share of tokens of each answer that differ from the full model's."""
    total = np.bincount(signals.question, minlength=int(units.max(initial=0)) + 1)
    differing = np.bincount(signals.question, weights=~outcome.agrees, minlength=len(total))
    return np.asarray(differing[units] / np.maximum(total[units], 1), dtype=np.float64)

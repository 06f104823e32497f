"""Metrics of predictions under many weightings of the rows at once: point values and cluster-bootstrap intervals.

A bootstrap by group is a draw of how often each group counts, so every resample is a row of weights ``[B, n]`` and
every metric a weighted sum; all layers, seeds and metrics share the draws. The definitions are those of
:mod:`exitlens.stats` (tests compare them); what is added here is the weights, and AUROC within test folds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.stats.bootstrap import draws, quantiles

__all__ = ["METRICS", "bootstrap_weights", "interval", "metrics"]

METRICS = ("accuracy", "auroc", "brier", "ece", "selective_accuracy", "aurc")
BINS = 15
COVERAGE = 0.8


def bootstrap_weights(groups: NDArray[np.int64], resamples: int, seed: int) -> Tensor:
    """Weights ``[1 + resamples, n]`` float32: ones, then how often each row's group was drawn."""
    values, code = np.unique(groups, return_inverse=True)
    blocks = [torch.ones(1, len(code))]
    if resamples and len(values) > 1:
        blocks += [torch.from_numpy(b[:, code]).float() for b in draws(len(values), resamples, seed)]
    return torch.cat(blocks)


def _runs(ordered: Tensor) -> tuple[Tensor, Tensor] | None:
    """For sorted values: the position where each row's run of equal values starts, and ends (None: no ties)."""
    fresh = torch.ones(len(ordered), dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    if bool(fresh.all()):
        return None
    first = torch.nonzero(fresh)[:, 0]
    last = torch.cat([first[1:] - 1, torch.tensor([len(ordered) - 1])])
    run = torch.cumsum(fresh.long(), 0) - 1
    return first[run], last[run]


def _before(cumulated: Tensor, start: Tensor) -> Tensor:
    """Cumulated weight strictly before each row's run."""
    return torch.nn.functional.pad(cumulated, (1, 0))[:, start]


def _auroc(score: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """AUROC ``[B]``; ties count a half; NaN where a resample holds one class only."""
    order = torch.argsort(score)
    pos, w = positive[order], weights[:, order]
    negative = torch.cumsum(w * (1 - pos), 1)
    runs = _runs(score[order])
    below = negative if runs is None else (_before(negative, runs[0]) + negative[:, runs[1]]) / 2
    wins = (w * pos * below).sum(1, dtype=torch.float64)
    return (wins / ((w * pos).sum(1, dtype=torch.float64) * negative[:, -1].double())).float()


def _fold_auroc(p: Tensor, y: Tensor, folds: Tensor, weights: Tensor) -> Tensor:
    value, mass = torch.zeros(len(weights)), torch.zeros(len(weights))
    for f in torch.unique(folds):
        here = folds == f
        w = weights[:, here]
        one = _auroc(p[here], y[here], w)
        size = torch.where(torch.isnan(one), 0.0, w.sum(1))
        value += torch.nan_to_num(one) * size
        mass += size
    return value / mass


def _risk(confidence: Tensor, wrong: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights by falling confidence, weight covered so far, and errors so far (ties share theirs evenly) ``[B, n]``."""
    order = torch.argsort(confidence, descending=True, stable=True)
    w = weights[:, order]
    covered, errors = torch.cumsum(w, 1), torch.cumsum(w * wrong[order], 1)
    runs = _runs(confidence[order])
    if runs is not None:
        start, end = runs
        w0, e0 = _before(covered, start), _before(errors, start)
        rate = (errors[:, end] - e0) / (covered[:, end] - w0).clamp_min(1e-12)
        errors = e0 + rate * (covered - w0)
    return w, covered, errors


def metrics(p: Tensor, y: Tensor, folds: Tensor, weights: Tensor, names: Sequence[str] = METRICS) -> dict[str, Tensor]:
    """Metrics ``{name: [B]}`` of P(true) ``p [n]`` against ``y [n]`` 0/1 under ``weights [B, n]``.

    accuracy at 0.5; auroc within each test fold (``folds [n]`` codes: each fold has its own probe on its own scale),
    averaged by the folds' rows; brier; ece over 15 equal bins of P(true); selective_accuracy: of the 80 % of
    statements that the probe is surest of; aurc: mean error rate over all coverages.
    """
    p, y = p.float(), y.float()
    total = weights.sum(1)
    wrong = ((p > 0.5).float() != y).float()
    out: dict[str, Tensor] = {}
    if "accuracy" in names:
        out["accuracy"] = 1 - weights @ wrong / total
    if "brier" in names:
        out["brier"] = weights @ (p - y).square() / total
    if "ece" in names:
        bins = (p * BINS).long().clamp(0, BINS - 1)
        gap = torch.zeros(len(p), BINS).scatter_(1, bins[:, None], (p - y)[:, None])
        out["ece"] = (weights @ gap).abs().sum(1) / total
    if "auroc" in names:
        out["auroc"] = _fold_auroc(p, y, folds, weights)
    if "selective_accuracy" in names or "aurc" in names:
        w, covered, errors = _risk((p - 0.5).abs(), wrong, weights)
        if "aurc" in names:
            out["aurc"] = (w * errors / covered.clamp_min(1e-12)).sum(1) / total
        if "selective_accuracy" in names:
            at = torch.searchsorted(covered, (COVERAGE * total)[:, None] - 1e-3).clamp_max(len(p) - 1)
            out["selective_accuracy"] = 1 - (errors.gather(1, at) / covered.gather(1, at).clamp_min(1e-12))[:, 0]
    return {name: out[name] for name in names}


def interval(values: Tensor, level: float = 0.95) -> tuple[float, float, float]:
    """Value (of row 0), low and high (percentiles of the rest, NaN when there is none) of ``values [B]``."""
    if len(values) == 1:
        return float(values[0]), float("nan"), float("nan")
    low, high = quantiles(values[1:, None].double().numpy(), level)
    return float(values[0]), float(low[0]), float(high[0])

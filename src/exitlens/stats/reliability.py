"""How far probabilities can be believed (Brier, ECE, reliability) and what abstaining buys (risk–coverage)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exitlens.errors import InputError
from exitlens.stats.arrays import Array, Numbers, flags, numbers

__all__ = [
    "Reliability",
    "RiskCoverage",
    "aurc",
    "brier",
    "ece",
    "reliability",
    "risk_coverage",
    "selective_accuracy",
]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Reliability curve: bin ``edges [bins + 1]``, rows in each ``count [bins]``, their mean ``probability`` and the
    ``share`` of them labelled 1; both NaN in an empty bin."""

    edges: Array
    count: NDArray[np.int64]
    probability: Array
    share: Array


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Risk (share of wrong rows) among the most confident ``coverage`` share of rows, for 1..n rows kept: ``[n]``."""

    coverage: Array
    risk: Array
    confidence: Array


def brier(probability: Numbers, label: Numbers) -> float:
    """``mean((p − y)²)`` of P(label 1) ``[n]``: 0 is perfect, always saying ½ gives ¼. InputError outside 0..1."""
    p, y = _probabilities(probability, label)
    return float(np.mean((p - y) ** 2))


def ece(probability: Numbers, label: Numbers, bins: int = 15, by: str = "width") -> float:
    """Expected calibration error ``Σ_b n_b/n · |share of ones − mean p|`` of P(label 1) ``[n]``.

    Of the probability of label 1 itself, not of the more probable class. ``by="width"``: equal bins of 0..1 (a
    probability on an edge belongs to the bin above, 1 to the last); ``"mass"``: equally many rows in each (ties may
    make them unequal).
    """
    curve = reliability(probability, label, bins, by)
    used = curve.count > 0
    gaps = np.abs(curve.share[used] - curve.probability[used])
    return float((curve.count[used] * gaps).sum() / curve.count.sum())


def reliability(probability: Numbers, label: Numbers, bins: int = 15, by: str = "width") -> Reliability:
    """Reliability curve of P(label 1) ``[n]``; bins as in :func:`ece`. Raises InputError for fewer than one bin."""
    p, y = _probabilities(probability, label)
    if bins < 1:
        raise InputError(f"{bins} bins are too few: ask for at least 1")
    if by == "width":
        edges = np.linspace(0.0, 1.0, bins + 1)
    elif by == "mass":
        edges = np.quantile(p, np.linspace(0.0, 1.0, bins + 1))
    else:
        raise InputError(f"unknown bins {by!r}: use 'width' or 'mass'")
    which = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_p = np.bincount(which, weights=p, minlength=bins) / count
        share = np.bincount(which, weights=y, minlength=bins) / count
    return Reliability(edges, count.astype(np.int64), mean_p, share)


def risk_coverage(confidence: Numbers, right: Numbers) -> RiskCoverage:
    """Risk among the k most confident rows for k = 1..n, from ``confidence [n]`` and ``right [n]`` (0/1).

    Rows of equal confidence come in no order: they share their errors evenly (the expectation over random orders), so
    the curve does not depend on the order of the rows.
    """
    data = numbers(confidence, "confidence", ndim=(1,))
    wrong = 1.0 - flags(right, len(data), "right")
    order = np.argsort(-data, kind="stable")
    ordered, errors = data[order], wrong[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sizes = np.diff(np.append(starts, len(data)))
    even = np.repeat(np.add.reduceat(errors, starts) / sizes, sizes)
    kept = np.arange(1, len(data) + 1)
    return RiskCoverage(kept / len(data), np.cumsum(even) / kept, ordered)


def aurc(confidence: Numbers, right: Numbers) -> float:
    """Area under the risk–coverage curve, ``mean_k risk(k)``, of ``confidence [n]`` and ``right [n]`` (0/1).

    Lower is better; confidence that says nothing gives the plain error rate.
    """
    return float(risk_coverage(confidence, right).risk.mean())


def selective_accuracy(confidence: Numbers, right: Numbers, coverage: float = 0.8) -> float:
    """Accuracy on the most confident ``coverage`` share of rows (at least one row). Raises InputError outside 0..1."""
    if not 0 < coverage <= 1:
        raise InputError(f"coverage {coverage!r} is not above 0 and at most 1: use for example 0.8")
    curve = risk_coverage(confidence, right)
    # The hair taken off keeps 0.7 of 10 rows at 7, where 0.7 · 10 is 7.000…01.
    kept = int(np.ceil(coverage * len(curve.risk) - 1e-9))
    return float(1.0 - curve.risk[kept - 1])


def _probabilities(probability: Numbers, label: Numbers) -> tuple[Array, Array]:
    p = numbers(probability, "probability", ndim=(1,))
    if p.min() < 0 or p.max() > 1:
        worst = p.min() if p.min() < 0 else p.max()
        raise InputError(f"probability {worst:g} is outside 0..1: give P(label 1), not a score")
    return p, flags(label, len(p), "label").astype(np.float64)

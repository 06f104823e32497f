"""How far probabilities can be believed (Brier, ECE, reliability) and what abstaining buys (risk–coverage).

Functions that take ``counts [rows, b]`` of :func:`~exitlens.stats.bootstrap.resample_counts` give the statistic of the
data and of every resample; the plain ones are those with each row counted once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exitlens.errors import InputError
from exitlens.stats.arrays import Array, Numbers, flags, numbers
from exitlens.stats.bootstrap import Counts, quantiles, weighted_mean, weighted_sums
from exitlens.stats.ranking import runs_of

__all__ = [
    "Reliability",
    "RiskCoverage",
    "aurc",
    "brier",
    "ece",
    "reliability_curve",
    "risk_coverage",
    "selective_accuracy",
    "weighted_brier",
    "weighted_ece",
    "weighted_ece_noise",
    "weighted_risk",
]

BINS = 15  # as in Guo et al. 2017, so that values can be compared with published ones
_TOGETHER = 128  # resamples worked on together; see ranking


@dataclass(frozen=True, slots=True)
class Reliability:
    """Reliability curve: bin ``edges [bins + 1]`` and, for each bin, the rows in it ``count``, their mean
    ``probability`` and the ``share`` of them labelled 1, with its interval ``low``, ``high``; NaN in an empty bin."""

    edges: Array
    count: Array
    probability: Array
    share: Array
    low: Array
    high: Array


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Risk (share of incorrect rows) among the most confident ``coverage`` share of rows, for 1..n rows kept ``[n]``.

    ``confidence [n]``: that of the last row kept.
    """

    coverage: Array
    risk: Array
    confidence: Array


def brier(probability: Numbers, label: Numbers) -> float:
    """``mean((p − y)²)`` of P(label 1) ``[n]``: 0 is perfect, always saying ½ gives ¼ (Brier 1950).

    Raises InputError outside 0..1.
    """
    p, y = _probabilities(probability, label)
    return float(weighted_brier(p, y, _once(len(p)))[0])


def weighted_brier(p: Array, y: Array, counts: Counts) -> Array:
    """:func:`brier` of ``p [n]`` against ``y [n]`` for every column of ``counts [n, b]`` → ``[b]``."""
    return weighted_mean((p - y) ** 2, counts)


def ece(probability: Numbers, label: Numbers, bins: int = BINS, by: str = "width") -> float:
    """Expected calibration error ``Σ_b n_b/n · |share of ones − mean p|`` of P(label 1) (Naeini et al. 2015).

    Of the probability of label 1 itself, not of the more probable class.

    Args:
        probability: P(label 1) ``[n]``.
        label: 0/1 ``[n]``.
        bins: Number of bins.
        by: ``"width"``: equal bins of 0..1 (a probability on an edge belongs to the bin above, 1 to the last);
            ``"mass"``: equally many rows in each (ties may make them unequal).

    Raises:
        InputError: A probability outside 0..1, fewer than one bin, or another ``by``.
    """
    p, y = _probabilities(probability, label)
    return float(weighted_ece(p, y, _once(len(p)), bins, by)[0])


def weighted_ece(p: Array, y: Array, counts: Counts, bins: int = BINS, by: str = "width") -> Array:
    """:func:`ece` of ``p [n]`` against ``y [n]`` for every column of ``counts [n, b]`` → ``[b]``."""
    out: Array = np.abs(_gaps(p, y, counts, bins, by)).sum(axis=0)
    return out


def weighted_ece_noise(p: Array, y: Array, counts: Counts, bins: int = BINS, by: str = "width") -> tuple[Array, Array]:
    """:func:`weighted_ece` ``[1 + b]``, and by how much the bins' gaps of each resample differ from the data's ``[b]``.

    ``counts [n, 1 + b]``: the data, then resamples.
    """
    gaps = _gaps(p, y, counts, bins, by)
    return np.abs(gaps).sum(axis=0), np.abs(gaps[:, 1:] - gaps[:, :1]).sum(axis=0)


def _gaps(p: Array, y: Array, counts: Counts, bins: int, by: str) -> Array:
    """``n_b/n · (share of ones − mean p)`` of each bin ``[bins, b]``."""
    # n_b · (share − mean p) is the bin's summed y − p, so that no bin needs a mean of its own.
    out: Array = _by_bin(y - p, _bins(p, bins, by)[1], bins, counts) / counts.sum(axis=0, dtype=np.float64)
    return out


def reliability_curve(
    probability: Numbers, label: Numbers, bins: int = BINS, by: str = "width", counts: Counts | None = None
) -> Reliability:
    """Reliability curve of P(label 1) ``[n]``; bins as in :func:`ece`.

    ``counts [n, 1 + b]``: adds percentile intervals over these resamples. Raises InputError as :func:`ece` does.
    """
    p, y = _probabilities(probability, label)
    edges, which = _bins(p, bins, by)
    weight = _once(len(p)) if counts is None else counts
    rows = _by_bin(np.ones(len(p)), which, bins, weight)
    total = _by_bin(p, which, bins, weight[:, :1])[:, 0]
    with np.errstate(invalid="ignore"):
        share = _by_bin(y, which, bins, weight) / rows
        mean_p = total / rows[:, 0]
    # A resample may hold no row of a bin: it then says nothing about it.
    low, high = quantiles(share[:, 1:].T, 0.95)
    return Reliability(edges, rows[:, 0], mean_p, share[:, 0], low, high)


def risk_coverage(confidence: Numbers, correct: Numbers) -> RiskCoverage:
    """Risk among the k most confident rows for k = 1..n (El-Yaniv and Wiener 2010).

    Rows of equal confidence come in no order: they share their errors evenly (the expectation over random orders), so
    the curve does not depend on the order of the rows.

    Args:
        confidence: Numbers ``[n]``, higher is more confident.
        correct: 0/1 ``[n]``.
    """
    data, wrong = _answers(confidence, correct)
    covered, errors, _ = next(_risk_blocks(data, wrong, _once(len(data))))
    return RiskCoverage(covered[:, 0] / len(data), errors[:, 0] / covered[:, 0], np.sort(data)[::-1])


def aurc(confidence: Numbers, correct: Numbers) -> float:
    """Area under the risk–coverage curve, ``mean_k risk(k)``, of ``confidence [n]`` and ``correct [n]`` (0/1).

    Lower is better; confidence that says nothing gives the plain error rate (Geifman, Uziel and El-Yaniv 2019).
    """
    data, wrong = _answers(confidence, correct)
    return float(weighted_risk(data, wrong, _once(len(data)), [1.0])[0][0])


def selective_accuracy(confidence: Numbers, correct: Numbers, coverage: float = 0.8) -> float:
    """Accuracy on the most confident ``coverage`` share of rows (at least one row). Raises InputError outside 0..1."""
    if not 0 < coverage <= 1:
        raise InputError(f"coverage {coverage!r} is not above 0 and at most 1: use for example 0.8")
    data, wrong = _answers(confidence, correct)
    return float(1.0 - weighted_risk(data, wrong, _once(len(data)), [coverage])[1][0, 0])


def weighted_risk(confidence: Array, wrong: Array, counts: Counts, coverages: Numbers) -> tuple[Array, Array]:
    """AURC ``[b]``, and the risk at each of ``coverages [c]`` ``[c, b]``, for every column of ``counts [n, b]``."""
    shares = np.asarray(coverages, dtype=np.float64)
    areas: list[Array] = []
    risks: list[Array] = []
    for covered, errors, part in _risk_blocks(confidence, wrong, counts):
        # Rows that were not drawn stand before the first covered one, where nothing divides by nothing.
        risk = errors / np.maximum(covered, 1e-12)
        areas.append((part * risk).sum(axis=0) / covered[-1])
        # The hair taken off keeps 0.7 of 10 rows at 7, where 0.7 · 10 is 7.000…01.
        wanted = shares[:, None] * covered[-1] - 1e-6
        each = np.ascontiguousarray(covered.T)
        at = np.stack([np.searchsorted(one, want) for one, want in zip(each, wanted.T, strict=True)], axis=1)
        risks.append(np.take_along_axis(risk, np.minimum(at, len(risk) - 1), axis=0))
    return np.concatenate(areas), np.concatenate(risks, axis=1)


def _risk_blocks(confidence: Array, wrong: Array, counts: Counts) -> Iterator[tuple[Array, Array, Array]]:
    """Blocks of resamples: counts covered so far, errors so far, and counts, all ``[n, b]`` by falling confidence."""
    order = np.argsort(-confidence, kind="stable")
    first = runs_of(confidence[order])
    last = np.append(first[1:], len(order)) - 1
    size = last - first + 1
    run = np.repeat(np.arange(len(first)), size)
    tied = np.flatnonzero(size[run] > 1)
    of = run[tied]
    for start in range(0, counts.shape[1], _TOGETHER):
        part = counts[order, start : start + _TOGETHER].astype(np.float64)
        covered, errors = np.cumsum(part, axis=0), np.cumsum(part * wrong[order, None], axis=0)
        if len(tied):
            # Within a run of ties errors grow evenly with the rows covered; most rows stand in no such run.
            zero = np.zeros((1, part.shape[1]))
            ends, totals = np.concatenate([zero, errors[last]]), np.concatenate([zero, covered[last]])
            rate = np.diff(ends, axis=0) / np.maximum(np.diff(totals, axis=0), 1e-12)
            errors[tied] = ends[of] + rate[of] * (covered[tied] - totals[of])
        yield covered, errors, part


def _bins(p: Array, bins: int, by: str) -> tuple[Array, NDArray[np.int64]]:
    """Edges ``[bins + 1]`` and each row's bin ``[n]``."""
    if bins < 1:
        raise InputError(f"{bins} bins are too few: ask for at least 1")
    if by not in ("width", "mass"):
        raise InputError(f"unknown bins {by!r}: use 'width' or 'mass'")
    steps = np.linspace(0.0, 1.0, bins + 1)
    edges: Array = steps if by == "width" else np.quantile(p, steps)
    return edges, np.clip(np.searchsorted(edges, p, side="right") - 1, 0, bins - 1)


def _by_bin(values: Array, which: NDArray[np.int64], bins: int, counts: Counts) -> Array:
    """Sums of ``values [n]`` over the rows of each bin, for every column of ``counts [n, b]`` → ``[bins, b]``."""
    spread = np.zeros((bins, len(values)))
    spread[which, np.arange(len(values))] = values
    return weighted_sums(spread, counts)


def _once(n: int) -> Counts:
    return np.ones((n, 1), np.float32)


def _answers(confidence: Numbers, correct: Numbers) -> tuple[Array, Array]:
    data = numbers(confidence, "confidence", ndim=(1,))
    return data, 1.0 - flags(correct, len(data), "correct").astype(np.float64)


def _probabilities(probability: Numbers, label: Numbers) -> tuple[Array, Array]:
    p = numbers(probability, "probability", ndim=(1,))
    if p.min() < 0 or p.max() > 1:
        worst = p.min() if p.min() < 0 else p.max()
        raise InputError(f"probability {worst:g} is outside 0..1: give P(label 1), not a score")
    return p, flags(label, len(p), "label").astype(np.float64)

"""AUROC with ties counted half, for many layers and all bootstrap resamples at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exitlens.stats.arrays import Array, Numbers, codes, columns, flags, level_of, numbers
from exitlens.stats.bootstrap import MIN_UNITS, Counts, Interval, Intervals

__all__ = [
    "auroc",
    "auroc_columns",
    "auroc_interval",
    "auroc_intervals",
    "logit_interval",
    "perfect_room",
    "runs_of",
    "weighted_auroc",
]

# Resamples worked on together: their running sums over some thousand rows stay in the processor's cache (of blocks
# of 64 to 1,000, 128 and less were the fastest at 6,261 rows).
_TOGETHER = 128


def auroc(score: Numbers, label: Numbers) -> float:
    """P(a row labelled 1 scores higher than a row labelled 0), ties counted half (Mann–Whitney U / n₁n₀).

    Args:
        score: Numbers ``[n]``.
        label: 0/1 ``[n]``.

    Returns:
        0..1; NaN when one class is missing.

    Raises:
        InputError: A score is NaN, or a label neither 0 nor 1.
    """
    return float(auroc_columns(numbers(score, "score", ndim=(1,)), label)[0])


def auroc_columns(score: Numbers, label: Numbers) -> Array:
    """:func:`auroc` of every column of ``score [n, k]`` → ``[k]``."""
    data = columns(score, "score")
    positive = flags(label, len(data), "label")
    once = np.ones((len(data), 1), np.float32)
    return np.concatenate([weighted_auroc(column, positive, once) for column in data.T])


def auroc_interval(score: Numbers, label: Numbers, groups: Numbers | None = None, level: float = 0.95) -> Interval:
    """:func:`auroc_intervals` of one column ``score [n]``."""
    return auroc_intervals(numbers(score, "score", ndim=(1,)), label, groups, level)[0]


def auroc_intervals(score: Numbers, label: Numbers, groups: Numbers | None = None, level: float = 0.95) -> Intervals:
    """:func:`auroc` of every column of ``score [n, k]`` with intervals that stay inside 0..1.

    DeLong's standard error (DeLong, DeLong and Clarke-Pearson 1988), summed by ``groups [n]`` (Obuchowski 1997), and a
    normal interval on the logit scale (Pepe 2003, section 5.2), half a win and half a loss added first. Where the
    classes do not overlap there is no such error: then Newcombe's score interval (2006, method 5), so that a perfect
    AUROC of few rows is not certain. NaN for fewer than three groups of either class.
    """
    data = columns(score, "score")
    positive = flags(label, len(data), "label")
    value = auroc_columns(data, positive)
    group, units = codes(groups, len(data))
    ones, zeros = int(positive.sum()), int((~positive).sum())
    held = [len(np.unique(group[side])) for side in (positive, ~positive)]
    least = min(held)
    error = np.full_like(value, np.nan)
    if least >= MIN_UNITS:
        from scipy.stats import rankdata

        for j, column in enumerate(data.T):
            # Each row's share of wins over the other class, from its rank among all and among its own class.
            ranks = rankdata(column)
            wins = np.where(positive, 0.0, float(ones))
            for side, other, sign in ((positive, zeros, 1), (~positive, ones, -1)):
                wins[side] += sign * (ranks[side] - rankdata(column[side]))
                wins[side] /= other
            pull = (wins - value[j]) * np.where(positive, _factor(held[0], ones), _factor(held[1], zeros))
            error[j] = np.sqrt((np.bincount(group, weights=pull, minlength=units) ** 2).sum())
    low, high = logit_interval((value * ones * zeros + 0.5) / (ones * zeros + 1), error, level)
    if least >= MIN_UNITS:
        room = perfect_room(held[0], held[1], level)
        low, high = np.where(value == 1, 1 - room, low), np.where(value == 0, room, high)
    return Intervals(value, np.minimum(low, value), np.maximum(high, value), np.full(len(value), least))


def logit_interval(value: Array, error: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Ends of a normal interval on the logit scale, of ``value`` strictly inside 0..1 with standard error ``error``."""
    from scipy.special import expit, logit, ndtri

    with np.errstate(invalid="ignore", divide="ignore"):
        half = ndtri(level_of(level)[1]) * error / (value * (1 - value))
        return expit(logit(value) - half), expit(logit(value) + half)


def _factor(groups: int, rows: int) -> float:
    """Weight of a row's deviation: 1 / rows, with the small-sample factor of so many groups."""
    return float(np.sqrt(groups / (groups - 1)) / rows)


def perfect_room(ones: int, zeros: int, level: float = 0.95) -> float:
    """How far below 1 a true AUROC can lie when the classes do not overlap.

    The other solution of ``(1 − a)² = z² v(a)``, with v the variance at a for exponential scores (Hanley and McNeil).
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    z, middle = ndtri(level_of(level)[1]), (ones + zeros) / 2 - 1

    def beyond(a: float) -> float:
        # Divided by 1 − a, so that only the wanted solution is left.
        spread = 1 + middle * (1 - a) / (2 - a) + middle * a / (1 + a)
        return float((1 - a) - z**2 * a / (ones * zeros) * spread)

    return 1 - float(brentq(beyond, 0.0, 1.0))


def weighted_auroc(score: Array, positive: NDArray[np.bool_], counts: Counts) -> Array:
    """AUROC of rows that count ``counts [n, b]`` times → ``[b]``; NaN where a column holds one class only.

    Every sum is of whole or half numbers, so the result does not depend on the order of equal scores.
    """
    order = np.argsort(score, kind="stable")
    first = runs_of(score[order])
    label = positive[order, None]
    parts = []
    for start in range(0, counts.shape[1], _TOGETHER):
        part = counts[order, start : start + _TOGETHER].astype(np.float64)
        ones = np.where(label, part, 0.0)
        zeros = part - ones
        if len(first) < len(order):
            ones, zeros = np.add.reduceat(ones, first, axis=0), np.add.reduceat(zeros, first, axis=0)
        below = np.cumsum(zeros, axis=0)
        # A positive beats every negative below it and half of those at its own score.
        wins = np.einsum("rb,rb->b", ones, below) - 0.5 * np.einsum("rb,rb->b", ones, zeros)
        pairs = ones.sum(axis=0) * below[-1]
        parts.append(np.divide(wins, pairs, out=np.full_like(wins, np.nan), where=pairs > 0))
    return np.concatenate(parts)


def runs_of(ordered: Array) -> NDArray[np.int64]:
    """Where each run of equal values of ``ordered [n]`` begins."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])).astype(np.int64)

"""Bootstrap intervals by question.

The units that are drawn with replacement are groups (questions, entities), and every row of a drawn group comes with
it: rows of one question are not independent (Davison and Hinkley 1997, section 3.8). The same draws serve all columns,
so that layers are compared on the same resamples. All intervals are *percentile* intervals (Efron and Tibshirani 1993,
chapter 13). One group alone says nothing about spread: its interval is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exitlens.stats.arrays import (
    BLOCK,
    Array,
    Numbers,
    check_count,
    codes,
    columns,
    level_of,
    numbers,
    positive_weights,
    sum_by,
)

__all__ = [
    "Counts",
    "Interval",
    "Intervals",
    "bootstrap_interval",
    "draws",
    "interval_of",
    "mean_interval",
    "mean_intervals",
    "quantiles",
    "resample_counts",
    "weighted_mean",
    "weighted_sums",
]

# float32 counts whole numbers exactly up to 2^24 and takes half the memory of float64; sums are made in float64.
Counts = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its interval; ``low`` and ``high`` are NaN where nothing can be said."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Intervals:
    """:class:`Interval` for many columns at once: arrays ``[k]``."""

    value: Array
    low: Array
    high: Array

    def __getitem__(self, column: int) -> Interval:
        return Interval(float(self.value[column]), float(self.low[column]), float(self.high[column]))


def draws(units: int, n: int, seed: int) -> Iterator[Array]:
    """How often each of ``units`` is drawn in each of ``n`` resamples: blocks ``[b, units]`` of counts."""
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // units)
    for start in range(0, n, block):
        rows = min(block, n - start)
        picks = rng.integers(units, size=(rows, units)) + np.arange(rows)[:, None] * units
        yield np.bincount(picks.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)


def resample_counts(groups: Numbers, n: int, seed: int) -> Counts:
    """What each row counts ``[rows, 1 + n]``: once in the data itself, then as often as its group was drawn.

    A resample is then a column of weights, and a statistic of all resamples one pass over the rows. One group alone
    (or ``n = 0``) gives the first column only.
    """
    group, units = codes(groups, len(groups))
    blocks = [np.ones((len(group), 1), np.float32)]
    if n and units > 1:
        # A row of the result is one row's counts, so that running sums over rows read memory in order.
        blocks += [block.astype(np.float32).T[group] for block in draws(units, n, seed)]
    return np.concatenate(blocks, axis=1)


def weighted_mean(values: Array, counts: Counts) -> Array:
    """``Σ c v / Σ c`` of ``values [rows]`` for every column of ``counts [rows, b]`` → ``[b]``."""
    top, total = weighted_sums(np.stack([values, np.ones_like(values)]), counts)
    out: Array = top / total
    return out


def weighted_sums(values: Array, counts: Counts) -> Array:
    """``Σ c v`` of ``values [k, rows]`` for every column of ``counts [rows, b]`` → ``[k, b]``."""
    out = np.zeros((len(values), counts.shape[1]))
    # In float64 the whole of ``counts`` would be copied; 256 rows of it at a time stay in the processor's cache.
    for start in range(0, len(counts), 256):
        out += values[:, start : start + 256] @ counts[start : start + 256].astype(np.float64)
    return out


def quantiles(resampled: Array, level: float) -> tuple[Array, Array]:
    """Percentile interval over axis 0 ``[n, k]`` → ``[k], [k]``.

    Resamples that are NaN (a class was not drawn) are left out; a column with none left gives NaN.
    """
    low, high = level_of(level)
    out = np.full((2, resampled.shape[1]), np.nan)
    whole = ~np.isnan(resampled).any(axis=0)
    if whole.any() and len(resampled):
        out[:, whole] = np.quantile(resampled[:, whole], [low, high], axis=0)
    for column in np.flatnonzero(~whole):
        kept = resampled[~np.isnan(resampled[:, column]), column]
        if len(kept):
            out[:, column] = np.quantile(kept, [low, high])
    return out[0], out[1]


def interval_of(found: Array, level: float = 0.95) -> Interval:
    """Interval of a statistic ``found [1 + n]`` under :func:`resample_counts`: of the data, then of each resample."""
    low, high = quantiles(found[1:, None], level)
    return Interval(float(found[0]), float(low[0]), float(high[0]))


def mean_interval(
    values: Numbers, groups: Numbers | None = None, n: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """:func:`mean_intervals` of one column ``values [rows]``."""
    return mean_intervals(numbers(values, "values", ndim=(1,)), groups, n, level, seed)[0]


def mean_intervals(
    values: Numbers,
    groups: Numbers | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    weights: Numbers | None = None,
) -> Intervals:
    """Percentile intervals of the mean of every column, one set of draws for all.

    Args:
        values: Numbers ``[rows, k]``.
        groups: Group of each row ``[rows]`` (None: each row is its own).
        n: Resamples.
        level: Share of samples whose interval holds the true value, 0..1.
        seed: The same seed gives the same intervals.
        weights: ``[rows]``, non-negative: weighted means ``Σ w v / Σ w`` (weights are resampled with their rows).

    Returns:
        Means and intervals ``[k]``; NaN intervals for one group.

    Raises:
        InputError: Values are missing, NaN or infinite; ``n < 1``; groups or weights of another length.
    """
    data = columns(values, "values")
    weight = positive_weights(weights, len(data), zero=True)
    check_count(n)
    group, units = codes(groups, len(data))
    total = sum_by(group, data * weight[:, None], units)
    size = sum_by(group, weight[:, None], units)[:, 0]
    value = total.sum(axis=0) / size.sum()
    if units == 1:
        nothing = np.full_like(value, np.nan)
        return Intervals(value, nothing, nothing.copy())
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.concatenate([(w @ total) / (w @ size)[:, None] for w in draws(units, n, seed)])
    return Intervals(value, *quantiles(found, level))


def bootstrap_interval(
    values: Numbers,
    statistic: Callable[[Array], float],
    groups: Numbers | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of any statistic of ``values [rows]``; arguments and errors as for :func:`mean_intervals`.

    ``statistic`` maps the resampled values ``[m]`` to a number and is called ``n`` times.
    """
    data = numbers(values, "values", ndim=(1,))
    check_count(n)
    group, units = codes(groups, len(data))
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group, minlength=units))[:-1])
    found = [float(statistic(data))]
    if units > 1:
        for block in draws(units, n, seed):
            for counts in block:
                picked = np.concatenate([np.repeat(rows[u], int(counts[u])) for u in np.flatnonzero(counts)])
                found.append(float(statistic(data[picked])))
    return interval_of(np.array(found), level)

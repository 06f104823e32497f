"""Bootstrap intervals by question.

The units that are drawn with replacement are groups (questions, entities), and every row of a drawn group comes with
it: rows of one question are not independent (Davison and Hinkley 1997, section 3.8). The same draws serve all columns,
so that layers are compared on the same resamples. Intervals here are *percentile* intervals (Efron and Tibshirani 1993,
chapter 13), for statistics that have no better one; those of means, proportions, differences and AUROC stand in
:mod:`exitlens.stats.means` and :mod:`exitlens.stats.ranking`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from exitlens.stats.arrays import (
    BLOCK,
    Array,
    Numbers,
    check_count,
    codes,
    level_of,
    numbers,
)

__all__ = [
    "ENOUGH",
    "MIN_UNITS",
    "PERCENTILES_ENOUGH",
    "Counts",
    "Interval",
    "Intervals",
    "bootstrap_interval",
    "draws",
    "interval_note",
    "interval_of",
    "quantiles",
    "resample_counts",
    "too_narrow",
    "weighted_mean",
    "weighted_sums",
]

# float32 counts whole numbers exactly up to 2^24 and takes half the memory of float64; sums are made in float64.
Counts = NDArray[np.float32]


MIN_UNITS = 3  # of one or two answers nothing can be said: no interval
ENOUGH = 15  # below this, simulated intervals of skewed values cover less than .93 instead of .95
PERCENTILES_ENOUGH = 60  # the same of percentile intervals


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its interval; ``low`` and ``high`` are NaN where nothing can be said.

    ``n``: the independent units (groups; of two classes, those of the smaller) that it rests on. ``enough``: of
    these, how many its method needs to hold the level.
    """

    value: float
    low: float
    high: float
    n: int
    enough: int = field(default=ENOUGH, repr=False)

    @property
    def note(self) -> str:
        """What must stand beside it: '', that it is too narrow, or that there is none, with the reason."""
        return interval_note(self.n, self.enough)


@dataclass(frozen=True, slots=True)
class Intervals:
    """:class:`Interval` for many columns at once: arrays ``[k]``."""

    value: Array
    low: Array
    high: Array
    n: NDArray[np.int64]

    def __getitem__(self, column: int) -> Interval:
        value, low, high = (float(part[column]) for part in (self.value, self.low, self.high))
        return Interval(value, low, high, int(self.n[column]))

    def within(self, least: float, most: float) -> Intervals:
        """Cut at the bounds of what is estimated: no true value lies beyond them, so the level stays."""
        return replace(self, low=np.clip(self.low, least, most), high=np.clip(self.high, least, most))


def too_narrow(n: int, enough: int = ENOUGH) -> bool:
    """Whether ``n`` independent units give an interval, but fewer than ``enough``: then it may not hold its level."""
    return MIN_UNITS <= n < enough


def interval_note(n: int, enough: int = ENOUGH) -> str:
    """What must stand beside an interval that rests on ``n`` independent units; '' when they are ``enough``."""
    if n < MIN_UNITS:
        return f"no interval: n = {n}"
    return f"interval too narrow: n = {n}" if too_narrow(n, enough) else ""


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


def interval_of(found: Array, units: int, level: float = 0.95) -> Interval:
    """Percentile interval of a statistic ``found [1 + b]`` under :func:`resample_counts`: of the data, then resamples.

    ``units``: groups that were drawn.
    """
    low, high = quantiles(found[1:, None], level) if units >= MIN_UNITS else (np.full(1, np.nan), np.full(1, np.nan))
    return Interval(float(found[0]), float(low[0]), float(high[0]), units)


def bootstrap_interval(
    values: Numbers,
    statistic: Callable[[Array], float],
    groups: Numbers | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of any statistic of ``values [rows]``; arguments and errors as for ``mean_intervals``.

    ``statistic`` maps the resampled values ``[m]`` to a number and is called ``n`` times.
    """
    data = numbers(values, "values", ndim=(1,))
    check_count(n)
    group, units = codes(groups, len(data))
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group, minlength=units))[:-1])
    found = [float(statistic(data))]
    if units >= MIN_UNITS:
        for block in draws(units, n, seed):
            for counts in block:
                picked = np.concatenate([np.repeat(rows[u], int(counts[u])) for u in np.flatnonzero(counts)])
                found.append(float(statistic(data[picked])))
    return replace(interval_of(np.array(found), units, level), enough=PERCENTILES_ENOUGH)

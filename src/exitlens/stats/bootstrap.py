"""Bootstrap intervals by question, and paired differences with a sign-flip test.

All intervals are *percentile* intervals of a cluster bootstrap: the units that are drawn with replacement are groups
(questions, entities), and every row of a drawn group comes with it. The same draws serve all columns, so that
layers are compared on the same resamples. One group alone says nothing about spread: its interval is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exitlens.errors import InputError
from exitlens.stats.arrays import Array, Numbers, codes, columns, level_of, numbers

__all__ = [
    "Difference",
    "Differences",
    "Interval",
    "Intervals",
    "bootstrap",
    "bootstrap_columns",
    "draws",
    "mean",
    "paired_difference",
    "paired_differences",
    "quantiles",
    "sign_flip_p",
]

_BLOCK = 1 << 22  # numbers a block of resamples may hold (32 MiB)


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


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference ``mean(a − b)`` with its interval and two-sided p."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Differences:
    """:class:`Difference` for many columns at once: arrays ``[k]``."""

    value: Array
    low: Array
    high: Array
    p: Array

    def __getitem__(self, column: int) -> Difference:
        parts = (self.value, self.low, self.high, self.p)
        return Difference(*(float(part[column]) for part in parts))


def mean(values: Array) -> float:
    """Arithmetic mean: the statistic for which :func:`bootstrap` has a fast way."""
    return float(np.mean(values))


def draws(units: int, n: int, seed: int) -> Iterator[Array]:
    """How often each of ``units`` is drawn in each of ``n`` resamples: blocks ``[b, units]`` of counts."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // units)
    for start in range(0, n, block):
        rows = min(block, n - start)
        picks = rng.integers(units, size=(rows, units)) + np.arange(rows)[:, None] * units
        yield np.bincount(picks.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)


def quantiles(resampled: Array, level: float) -> tuple[Array, Array]:
    """Percentile interval over axis 0 ``[n, k]`` → ``[k], [k]``.

    Resamples that are NaN (a class was not drawn) are left out; a column with none left gives NaN.
    """
    low, high = level_of(level)
    out = np.full((2, resampled.shape[1]), np.nan)
    whole = ~np.isnan(resampled).any(axis=0)
    if whole.any():
        out[:, whole] = np.quantile(resampled[:, whole], [low, high], axis=0)
    for column in np.flatnonzero(~whole):
        kept = resampled[~np.isnan(resampled[:, column]), column]
        if len(kept):
            out[:, column] = np.quantile(kept, [low, high])
    return out[0], out[1]


def bootstrap(
    values: Numbers,
    statistic: Callable[[Array], float] = mean,
    groups: Numbers | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic of ``values [rows]`` by cluster bootstrap over ``groups [rows]``.

    ``statistic`` maps the resampled values ``[m]`` to a number. The mean is fast; any other is called ``n`` times.
    Deterministic by seed. Raises InputError for empty, NaN or infinite values, or ``n < 1``.
    """
    data = numbers(values, "values", ndim=(1,))
    if statistic is mean or statistic is np.mean:
        return bootstrap_columns(data, groups, n, level, seed)[0]
    group, units = codes(groups, len(data))
    _positive(n)
    value = float(statistic(data))
    if units == 1:
        return Interval(value, np.nan, np.nan)
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group, minlength=units))[:-1])
    found = np.empty((n, 1))
    done = 0
    for block in draws(units, n, seed):
        for counts in block:
            picked = np.concatenate([np.repeat(rows[u], int(counts[u])) for u in np.flatnonzero(counts)])
            found[done, 0] = float(statistic(data[picked]))
            done += 1
    low, high = quantiles(found, level)
    return Interval(value, float(low[0]), float(high[0]))


def bootstrap_columns(
    values: Numbers,
    groups: Numbers | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    weights: Numbers | None = None,
) -> Intervals:
    """Percentile intervals of the mean of every column of ``values [rows, k]``, one set of draws for all.

    ``weights [rows]``, non-negative: weighted means ``Σ w v / Σ w`` (weights are resampled with their rows).
    """
    data = columns(values, "values")
    weight = _weights(weights, len(data))
    _positive(n)
    group, units = codes(groups, len(data))
    total = _sum_by(group, data * weight[:, None], units)
    size = _sum_by(group, weight[:, None], units)[:, 0]
    value = total.sum(axis=0) / size.sum()
    if units == 1:
        nothing = np.full_like(value, np.nan)
        return Intervals(value, nothing, nothing.copy())
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.concatenate([(w @ total) / (w @ size)[:, None] for w in draws(units, n, seed)])
    return Intervals(value, *quantiles(found, level))


def paired_difference(
    a: Numbers,
    b: Numbers,
    groups: Numbers | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    permutations: int = 10_000,
) -> Difference:
    """``mean(a − b)`` over the same rows (questions), with bootstrap interval and sign-flip p. See the plural form."""
    first, second = numbers(a, "a", ndim=(1,)), numbers(b, "b", ndim=(1,))
    return paired_differences(first, second, groups, n, level, seed, permutations)[0]


def paired_differences(
    a: Numbers,
    b: Numbers,
    groups: Numbers | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    permutations: int = 10_000,
) -> Differences:
    """``mean(a − b)`` of every column of ``a, b [rows, k]``, paired by row, clustered by ``groups``.

    Interval: percentile bootstrap. p: :func:`sign_flip_p`. Raises InputError when a and b differ in shape.
    """
    first, second = columns(a, "a"), columns(b, "b")
    if first.shape != second.shape:
        raise InputError(
            f"{len(first)} and {len(second)} rows cannot be paired (shapes {list(first.shape)}, "
            f"{list(second.shape)}): both systems must answer the same questions"
        )
    gap = first - second
    found = bootstrap_columns(gap, groups, n, level, seed)
    return Differences(found.value, found.low, found.high, sign_flip_p(gap, groups, permutations, seed))


def sign_flip_p(differences: Numbers, groups: Numbers | None = None, n: int = 10_000, seed: int = 0) -> Array:
    """Two-sided sign-flip permutation p of "the mean difference is 0", for every column ``[rows, k]`` → ``[k]``.

    Under the null a question's difference is as likely negative as positive; all rows of a group flip together. When
    ``2^groups ≤ n`` every flip is counted (exact); else ``(1 + hits) / (1 + n)`` over ``n`` random flips.
    """
    data = columns(differences, "differences")
    _positive(n)
    group, units = codes(groups, len(data))
    total = _sum_by(group, data, units)
    seen = np.abs(total.sum(axis=0))
    bar = seen - 1e-12 * np.abs(total).sum(axis=0)  # sums in another order must count as ties
    hits = np.zeros(total.shape[1])
    if 2**units <= n:
        signs = 1.0 - 2.0 * ((np.arange(2**units)[:, None] >> np.arange(units)) & 1)
        exact: Array = (np.abs(signs @ total) >= bar).mean(axis=0)
        return exact
    rng = np.random.default_rng([seed, 1])  # not the stream of the bootstrap
    block = max(1, _BLOCK // units)
    for start in range(0, n, block):
        rows = min(block, n - start)
        signs = rng.integers(2, size=(rows, units), dtype=np.int8) * 2.0 - 1.0
        hits += (np.abs(signs @ total) >= bar).sum(axis=0)
    return (1 + hits) / (1 + n)


def _sum_by(group: NDArray[np.int64], data: Array, units: int) -> Array:
    out = np.zeros((units, data.shape[1]))
    np.add.at(out, group, data)
    return out


def _weights(weights: Numbers | None, n: int) -> Array:
    if weights is None:
        return np.ones(n)
    out = numbers(weights, "weights", ndim=(1,))
    if len(out) != n or out.min() < 0 or out.sum() == 0:
        raise InputError(f"weights need {n} numbers ≥ 0 that are not all 0, got {len(out)} from {out.min():g}")
    return out


def _positive(n: int) -> None:
    if n < 1:
        raise InputError(f"{n} resamples are too few: ask for at least 1 (2000 is usual)")

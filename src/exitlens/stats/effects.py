"""Differences between two groups of rows: size, permutation test, with a covariate held fixed; and McNemar's test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitlens.errors import InputError
from exitlens.stats.arrays import BLOCK, Array, Numbers, check_count, columns, flags, level_of, positive_weights
from exitlens.stats.bootstrap import MIN_UNITS
from exitlens.stats.paired import Differences

__all__ = ["McNemar", "adjusted_difference", "cohens_d", "mcnemar", "permutation_p"]


class _Groups(NamedTuple):
    value: Array
    member: NDArray[np.bool_]
    ones: int
    zeros: int


@dataclass(frozen=True, slots=True)
class McNemar:
    """Rows that only the first, or only the second, system answers correctly, and the exact two-sided p."""

    only_first: int
    only_second: int
    p: float


def cohens_d(value: Numbers, group: Numbers) -> Array:
    """``(mean₁ − mean₀) / pooled standard deviation`` of every column of ``value [n, k]`` → ``[k]`` (Cohen 1988).

    ``group [n]`` of 0/1. NaN when a group has fewer than two rows or nothing varies.
    """
    data, member, ones, zeros = _groups(value, group)
    if min(ones, zeros) < 2:
        return np.full(data.shape[1], np.nan)
    first, second = data[member], data[~member]
    pooled = ((ones - 1) * first.var(axis=0, ddof=1) + (zeros - 1) * second.var(axis=0, ddof=1)) / (ones + zeros - 2)
    gap: Array = first.mean(axis=0) - second.mean(axis=0)
    return gap / np.sqrt(np.where(pooled > 0, pooled, np.nan))


def permutation_p(
    value: Numbers, group: Numbers, n: int = 10_000, seed: int = 0, weights: Numbers | None = None
) -> Array:
    """Two-sided permutation p of "both groups have the same mean", every column of ``value [n, k]`` → ``[k]``.

    Group labels are shuffled over the rows, the same shuffles for all columns: ``(1 + hits) / (1 + n)``, which is
    never 0 and never too small (Phipson and Smyth 2010).
    ``weights [n]``: means are ``Σ w v / Σ w`` (token weighted); a row keeps its weight. The rows must be
    exchangeable, that is one row a question. NaN when a group is empty.
    """
    data, member, ones, zeros = _groups(value, group)
    check_count(n, "permutations", 10_000)
    if not ones or not zeros:
        return np.full(data.shape[1], np.nan)
    weight = positive_weights(weights, len(data), zero=False)
    # Shifted by the mean: the same differences, with less rounding.
    both = np.column_stack([(data - np.average(data, axis=0, weights=weight)) * weight[:, None], weight])
    total = both.sum(axis=0)

    def gaps(labels: Array) -> Array:
        inside = labels @ both
        outside = total - inside
        out: Array = np.abs(inside[:, :-1] / inside[:, -1:] - outside[:, :-1] / outside[:, -1:])
        return out

    seen = gaps(member[None].astype(np.float64))[0]
    bar = seen - 1e-12 * np.abs(data).max(axis=0)  # sums in another order must count as ties
    rng = np.random.default_rng([seed, 2])
    hits = np.zeros(data.shape[1])
    block = max(1, BLOCK // len(data))
    for start in range(0, n, block):
        labels = np.repeat(member[None].astype(np.int8), min(block, n - start), axis=0)
        hits += (gaps(rng.permuted(labels, axis=1).astype(np.float64)) >= bar).sum(axis=0)
    return (1 + hits) / (1 + n)


def adjusted_difference(value: Numbers, group: Numbers, covariate: Numbers, level: float = 0.95) -> Differences:
    """Difference between the groups with a covariate (answer length) held fixed, every column of ``value [n, k]``.

    The coefficient of ``group [n]`` (0/1) in least squares on intercept, group and ``covariate [n]`` or ``[n, c]``;
    HC3 standard errors (MacKinnon and White 1985), Student's t with ``n − parameters`` degrees of freedom. A
    covariate that does not vary is left out. NaN when a group is empty, the covariate determines the group, or there
    are too few rows; interval and p are NaN where the fit leaves nothing over.
    """
    data, member, ones, zeros = _groups(value, group)
    others = columns(covariate, "covariate")
    if len(others) != len(data):
        raise InputError(f"covariate has {len(others)} rows, value has {len(data)}")
    low, high = level_of(level)
    nothing = np.full(data.shape[1], np.nan)
    others = others - others.mean(axis=0)
    spread = others.std(axis=0)
    others = others[:, spread > 0] / spread[spread > 0]
    design = np.column_stack([member.astype(np.float64), np.ones(len(data)), others])
    free = len(data) - design.shape[1]
    units = np.full(data.shape[1], min(ones, zeros))
    if not ones or not zeros or free < 1:
        return Differences(nothing, nothing, nothing, nothing, units)
    inverse = np.linalg.pinv(design)  # [parameters, n]
    # The group is identified when its column is not a combination of the others.
    rest = design[:, 1:]
    left = design[:, 0] - rest @ (np.linalg.pinv(rest) @ design[:, 0])
    if np.sqrt(np.mean(left**2)) < 1e-9:
        return Differences(nothing, nothing, nothing, nothing, units)
    fit = inverse @ data
    residual = data - design @ fit
    room = 1.0 - np.einsum("np,pn->n", design, inverse)
    # A row that the fit must go through (leverage 1) has residual 0 and says nothing about the error.
    scaled = np.where(room[:, None] > 1e-9, residual / np.maximum(room, 1e-9)[:, None], 0.0)
    error = np.sqrt((inverse[0][:, None] ** 2 * scaled**2).sum(axis=0))
    error = np.where(
        (error > 1e-12 * np.maximum(np.abs(data).max(axis=0), 1e-300)) & (units >= MIN_UNITS), error, np.nan
    )
    gap = fit[0]
    from scipy.stats import t as student

    p = 2.0 * student.sf(np.abs(gap / error), free)
    return Differences(gap, gap + error * student.ppf(low, free), gap + error * student.ppf(high, free), p, units)


def mcnemar(first: Numbers, second: Numbers) -> McNemar:
    """Exact McNemar test (1947) of two systems' correct/incorrect ``[n]`` on the same rows; p is 1 when they agree."""
    a = flags(first, len(first), "first")
    b = flags(second, len(a), "second")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    differ = only_first + only_second
    from scipy.stats import binomtest

    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return McNemar(only_first, only_second, p)


def _groups(value: Numbers, group: Numbers) -> _Groups:
    data = columns(value, "value")
    member = flags(group, len(data), "group")
    ones = int(member.sum())
    return _Groups(data, member, ones, len(data) - ones)

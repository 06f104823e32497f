"""AUROC with ties counted half, for many layers and all bootstrap resamples at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from exitlens.errors import InputError
from exitlens.stats.arrays import Array, Numbers, codes, columns, flags, numbers
from exitlens.stats.bootstrap import Interval, Intervals, draws, quantiles

__all__ = ["auroc", "auroc_columns", "auroc_interval", "auroc_intervals"]


def auroc(score: Numbers, label: Numbers) -> float:
    """P(a row labelled 1 scores higher than a row labelled 0), ties counted half (Mann–Whitney U / n₁n₀).

    ``score [n]``, ``label [n]`` of 0/1. NaN when one class is missing.
    Raises InputError for NaN scores or other labels.
    """
    return float(auroc_columns(numbers(score, "score", ndim=(1,)), label)[0])


def auroc_columns(score: Numbers, label: Numbers) -> Array:
    """:func:`auroc` of every column of ``score [n, k]`` → ``[k]``."""
    data = columns(score, "score")
    positive = flags(label, len(data), "label")
    ones = int(positive.sum())
    zeros = len(data) - ones
    if not ones or not zeros:
        return np.full(data.shape[1], np.nan)
    ranks = rankdata(data, axis=0)
    above: Array = ranks[positive].sum(axis=0) - ones * (ones + 1) / 2
    return above / (ones * zeros)


def auroc_interval(
    score: Numbers, label: Numbers, groups: Numbers | None = None, n: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """:func:`auroc` with a percentile interval by cluster bootstrap. See :func:`auroc_intervals`."""
    return auroc_intervals(numbers(score, "score", ndim=(1,)), label, groups, n, level, seed)[0]


def auroc_intervals(
    score: Numbers, label: Numbers, groups: Numbers | None = None, n: int = 2000, level: float = 0.95, seed: int = 0
) -> Intervals:
    """:func:`auroc` of every column of ``score [n, k]`` with percentile intervals, one set of draws for all columns.

    ``groups [n]`` are drawn whole. Resamples that miss a class are left out; with one class, or one group, the
    interval is NaN.
    """
    if n < 1:
        raise InputError(f"{n} resamples are too few: ask for at least 1 (2000 is usual)")
    data = columns(score, "score")
    positive = flags(label, len(data), "label")
    value = auroc_columns(data, positive)
    group, units = codes(groups, len(data))
    if units == 1 or np.isnan(value).any():
        nothing = np.full_like(value, np.nan)
        return Intervals(value, nothing, nothing.copy())
    order = np.argsort(data, axis=0, kind="stable")
    starts = [_starts(data[order[:, j], j]) for j in range(data.shape[1])]
    found = []
    for block in draws(units, n, seed):
        # Blocks of 256 keep the running sums inside the processor's cache.
        for part in np.array_split(block, max(1, len(block) // 256)):
            counts = np.ascontiguousarray(part[:, group].T)  # [rows, resamples]: one row's counts lie together
            found.append(
                np.stack([_weighted(counts[order[:, j]], positive[order[:, j]], s) for j, s in enumerate(starts)], 1)
            )
    return Intervals(value, *quantiles(np.concatenate(found), level))


def _starts(ordered: Array) -> NDArray[np.int64]:
    """Where each run of equal scores begins."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])).astype(np.int64)


def _weighted(counts: Array, positive: NDArray[np.bool_], starts: NDArray[np.int64]) -> Array:
    """AUROC of every resample ``[b]`` from counts ``[rows, b]`` in the order of the scores."""
    ones = np.where(positive[:, None], counts, 0.0)
    zeros = counts - ones
    if len(starts) < len(counts):
        ones, zeros = np.add.reduceat(ones, starts, axis=0), np.add.reduceat(zeros, starts, axis=0)
    below = np.cumsum(zeros, axis=0)
    n_ones, n_zeros = ones.sum(axis=0), below[-1]
    wins = np.einsum("rb,rb->b", ones, below) - 0.5 * np.einsum("rb,rb->b", ones, zeros)
    with np.errstate(invalid="ignore"):
        out: Array = wins / np.where(n_ones * n_zeros > 0, n_ones * n_zeros, np.nan)
    return out

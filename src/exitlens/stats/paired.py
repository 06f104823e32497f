"""Two systems on the same questions: the mean difference with its interval, and a sign-flip test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exitlens.errors import InputError
from exitlens.stats.arrays import BLOCK, Array, Numbers, check_count, codes, columns, numbers, sum_by
from exitlens.stats.bootstrap import interval_note
from exitlens.stats.means import signed_intervals

__all__ = ["Difference", "Differences", "paired_difference", "paired_differences", "sign_flip_p"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference with its interval, two-sided p, and the ``n`` independent units that it rests on."""

    value: float
    low: float
    high: float
    p: float
    n: int

    @property
    def note(self) -> str:
        """What must stand beside the interval; see :func:`~exitlens.stats.bootstrap.interval_note`."""
        return interval_note(self.n)


@dataclass(frozen=True, slots=True)
class Differences:
    """:class:`Difference` for many columns at once: arrays ``[k]``."""

    value: Array
    low: Array
    high: Array
    p: Array
    n: NDArray[np.int64]

    def __getitem__(self, column: int) -> Difference:
        value, low, high, p = (float(part[column]) for part in (self.value, self.low, self.high, self.p))
        return Difference(value, low, high, p, int(self.n[column]))


def paired_difference(
    a: Numbers,
    b: Numbers,
    groups: Numbers | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    permutations: int = 10_000,
) -> Difference:
    """:func:`paired_differences` of one column: ``mean(a − b)`` over the same rows (questions) ``[rows]``."""
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

    Interval: :func:`~exitlens.stats.means.signed_intervals`. p: :func:`sign_flip_p`.
    Raises InputError when a and b differ in shape.
    """
    first, second = columns(a, "a"), columns(b, "b")
    if first.shape != second.shape:
        raise InputError(
            f"{len(first)} and {len(second)} rows cannot be paired (shapes {list(first.shape)}, "
            f"{list(second.shape)}): both systems must answer the same questions"
        )
    gap = first - second
    found = signed_intervals(gap, groups, n, level, seed)
    p = sign_flip_p(gap, groups, permutations, seed)
    return Differences(found.value, found.low, found.high, p, found.n)


def sign_flip_p(differences: Numbers, groups: Numbers | None = None, n: int = 10_000, seed: int = 0) -> Array:
    """Two-sided sign-flip permutation p of "the mean difference is 0", for every column ``[rows, k]`` → ``[k]``.

    Under the null a question's difference is as likely negative as positive; all rows of a group flip together. When
    ``2^groups ≤ n`` every flip is counted (exact); else ``(1 + hits) / (1 + n)`` over ``n`` random flips, which is
    never 0 and never too small (Phipson and Smyth 2010).
    """
    data = columns(differences, "differences")
    check_count(n, "permutations", 10_000)
    group, units = codes(groups, len(data))
    total = sum_by(group, data, units)
    seen = np.abs(total.sum(axis=0))
    bar = seen - 1e-12 * np.abs(total).sum(axis=0)  # sums in another order must count as ties
    if 2**units <= n:
        signs = 1.0 - 2.0 * ((np.arange(2**units)[:, None] >> np.arange(units)) & 1)
        exact: Array = (np.abs(signs @ total) >= bar).mean(axis=0)
        return exact
    hits = np.zeros(total.shape[1])
    rng = np.random.default_rng([seed, 1])  # not the stream of the bootstrap
    block = max(1, BLOCK // units)
    for start in range(0, n, block):
        rows = min(block, n - start)
        signs = rng.integers(2, size=(rows, units), dtype=np.int8) * 2.0 - 1.0
        hits += (np.abs(signs @ total) >= bar).sum(axis=0)
    return (1 + hits) / (1 + n)

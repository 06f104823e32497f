"""Mean over the tokens of correct and of incorrect answers, the estimator of the entropy study."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from exitlens.errors import InputError
from exitlens.stats.arrays import Array, Numbers, check_count, codes, columns, flags, level_of, numbers, sum_by
from exitlens.stats.bootstrap import MIN_UNITS, Intervals, draws
from exitlens.stats.effects import permutation_p
from exitlens.stats.means import studentised

__all__ = ["POOLED_WARNING", "TokenMeans", "group_token_mean"]

POOLED_WARNING = (
    "estimator 'pooled-weights' divides each group's sum by the tokens of all answers: the smaller group looks lower "
    "at every layer whatever the model does. It reproduces a published figure and supports no conclusion; use "
    "'per-group'."
)


@dataclass(frozen=True, slots=True)
class TokenMeans:
    """Token-weighted means of correct and incorrect answers for every layer ``[k]``, and incorrect minus correct.

    ``p [k]``: permutation test of the difference (NaN for ``pooled-weights``, whose difference is not zero under the
    null). ``warning``: None, or what must stand beside the numbers.
    """

    estimator: str
    n_correct: int
    n_incorrect: int
    correct: Intervals
    incorrect: Intervals
    difference: Intervals
    p: Array
    warning: str | None


def group_token_mean(
    values: Numbers,
    tokens: Numbers,
    correct: Numbers,
    estimator: str = "per-group",
    groups: Numbers | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    permutations: int = 10_000,
) -> TokenMeans:
    """Group means over tokens, ``Σ n_i e_ij / Σ n_i`` over the answers *of that group*, with intervals by question.

    Args:
        values: ``[n, k]``: mean of answer i at layer j (``e_ij``).
        tokens: ``[n]``: tokens of answer i (``n_i > 0``).
        correct: ``[n]`` of 0/1.
        estimator: ``"per-group"``, or ``"pooled-weights"``, which divides by the tokens of all answers instead: an
            artefact, kept to reproduce a published figure; its result carries :data:`POOLED_WARNING`.
        groups: ``[n]``: question of each answer, when a question has several (the permutation test needs one answer a
            question; with more, p is NaN).
        n: Resamples.
        level: Level of the intervals, 0..1.
        seed: Seed of resamples and permutations.
        permutations: Shuffles of the permutation test.

    Returns:
        The means; an empty group has mean NaN.

    Raises:
        InputError: An answer without tokens (leave it out), an unknown estimator, or bad arrays.
    """
    data = columns(values, "values")
    count = numbers(tokens, "tokens", ndim=(1,))
    is_correct = flags(correct, len(data), "correct")
    if len(count) != len(data) or count.min() <= 0:
        raise InputError(
            f"tokens need {len(data)} counts above 0, got {len(count)} from {count.min():g}: drop empty answers"
        )
    if estimator not in ("per-group", "pooled-weights"):
        raise InputError(f"unknown estimator {estimator!r}: use 'per-group' or 'pooled-weights'")
    check_count(n)
    unit, units = codes(groups, len(data))
    pooled = estimator == "pooled-weights"
    weight = count[:, None]
    everything = sum_by(unit, weight, units)[:, 0] if pooled else None
    sides = [
        _side(sum_by(unit, data * weight * own, units), sum_by(unit, weight * own, units)[:, 0], everything)
        for own in (is_correct[:, None], ~is_correct[:, None])
    ]
    intervals = _intervals(sides, draws(units, n, seed), level)
    testable = not pooled and units == len(data)
    p = permutation_p(data, ~is_correct, permutations, seed, count) if testable else np.full(data.shape[1], np.nan)
    return TokenMeans(
        estimator=estimator,
        n_correct=int(is_correct.sum()),
        n_incorrect=int((~is_correct).sum()),
        correct=intervals[0],
        incorrect=intervals[1],
        difference=intervals[2],
        p=p,
        warning=POOLED_WARNING if pooled else None,
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """One group: ``mean [k]``; by unit, residual sums ``rest [units, k]``, the divisors ``size [units]``, and whether
    it holds an answer of the group ``own [units]``."""

    mean: Array
    rest: Array
    size: Array
    own: Array

    def resampled(self, w: Array) -> tuple[Array, Array, Array]:
        """Residual mean and its squared plug-in error ``[b, k]``, and the divisor ``[b, 1]``; NaN where none is drawn.

        The error is that of a ratio (Cochran 1977, section 2.11): ``Σ w (r − m s)²``, multiplied out into products.
        """
        total = np.where(w @ self.own > 0, w @ self.size, np.nan)[:, None]
        mean = (w @ self.rest) / total
        square = w @ self.rest**2 - 2 * mean * (w @ (self.rest * self.size[:, None]))
        square = square + mean**2 * (w @ self.size**2)[:, None]
        return mean, np.maximum(square, 0.0) / total**2, total


def _side(top: Array, own: Array, everything: Array | None) -> _Side:
    size = own if everything is None else everything
    held = own.sum() > 0
    mean = top.sum(axis=0) / size.sum() if held else np.full(top.shape[1], np.nan)
    return _Side(mean, top - np.nan_to_num(mean) * size[:, None], size, (own > 0).astype(np.float64))


def _intervals(sides: list[_Side], blocks: Iterable[Array], level: float) -> list[Intervals]:
    """Studentised bootstrap intervals of both sides' means and of their difference (second minus first)."""
    level_of(level)
    first, second = sides
    parts = [(*_each(first, second, w),) for w in blocks]
    found = [np.concatenate([block[i] for block in parts]) for i in range(6)]
    seen = _each(first, second, np.ones((1, len(first.size))))
    units = [int(side.own.sum()) for side in sides]
    least = [*units, min(units)]
    out = []
    for i, value in enumerate((first.mean, second.mean, second.mean - first.mean)):
        low = high = np.full_like(value, np.nan)
        if least[i] >= MIN_UNITS:
            # The plug-in error times the small-sample factor of the smaller side: the data's own error.
            factor = np.sqrt(least[i] / (least[i] - 1))
            # The skews of two sides largely cancel: their difference does without the room that the plug-in error of a
            # mean's resamples leaves (simulated at 20 answers: .977 covered with it).
            errors = found[2 * i + 1] * (factor if i == 2 else 1.0)
            ends = studentised(np.zeros_like(value), seen[2 * i + 1][0] * factor, found[2 * i], errors, level)
            low, high = value + ends[0], value + ends[1]
        out.append(Intervals(value, low, high, np.full(len(value), least[i])))
    return out


def _each(first: _Side, second: _Side, w: Array) -> tuple[Array, ...]:
    """Residual mean and plug-in error ``[b, k]`` of the first side, the second, and their difference."""
    (m1, v1, n1), (m2, v2, n2) = first.resampled(w), second.resampled(w)
    # Units that hold answers of both sides (a question with several, or pooled divisors) make the two depend.
    a, b = first.size[:, None], second.size[:, None]
    shared = w @ (first.rest * second.rest) - m2 * (w @ (first.rest * b)) - m1 * (w @ (a * second.rest))
    shared = shared + m1 * m2 * (w @ (a * b))
    both = np.maximum(v1 + v2 - 2 * shared / (n1 * n2), 0.0)
    return m1, np.sqrt(v1), m2, np.sqrt(v2), m2 - m1, np.sqrt(both)

"""Mean over the tokens of correct and of incorrect answers, the estimator of the entropy study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exitlens.errors import InputError
from exitlens.stats.arrays import Array, Numbers, check_count, codes, columns, flags, numbers
from exitlens.stats.bootstrap import Intervals, draws, quantiles
from exitlens.stats.effects import permutation_p

__all__ = ["POOLED_WARNING", "TokenMeans", "group_token_mean"]

Estimator = Literal["per-group", "pooled-weights"]

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

    def by_unit(member: Array) -> tuple[Array, Array]:
        top = np.zeros((units, data.shape[1]))
        size = np.zeros(units)
        np.add.at(top, unit, data * (count * member)[:, None])
        np.add.at(size, unit, count * member)
        return top, size

    sides = [by_unit(side.astype(np.float64)) for side in (is_correct, ~is_correct)]
    everything = sides[0][1] + sides[1][1]

    def means(weight: Array) -> list[Array]:
        """Correct, incorrect, and their difference in resamples with counts ``[b, units]`` → three of ``[b, k]``."""
        out = []
        for top, size in sides:
            below = weight @ size
            # A group that was not drawn has no mean, whatever it is divided by.
            below = np.where(below > 0, weight @ everything if pooled else below, np.nan)
            out.append((weight @ top) / below[:, None])
        return [*out, out[1] - out[0]]

    seen = [part[0] for part in means(np.ones((1, units)))]
    found = _resampled(means, units, n, seed) if units > 1 else [np.full((1, data.shape[1]), np.nan)] * 3
    intervals = [Intervals(value, *quantiles(part, level)) for value, part in zip(seen, found, strict=True)]
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


def _resampled(means: Callable[[Array], list[Array]], units: int, n: int, seed: int) -> list[Array]:
    blocks = [means(block) for block in draws(units, n, seed)]
    return [np.concatenate([block[i] for block in blocks]) for i in range(3)]

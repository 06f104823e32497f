"""Mean over the tokens of right and of wrong answers, the estimator of the entropy study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exitlens.errors import InputError
from exitlens.stats.arrays import Array, Numbers, codes, columns, flags, numbers
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
    """Token-weighted means of right and wrong answers for every layer ``[k]``, and wrong minus right.

    ``p [k]``: permutation test of the difference (NaN for ``pooled-weights``, whose difference is not zero under the
    null). ``warning``: None, or what must stand beside the numbers.
    """

    estimator: str
    n_right: int
    n_wrong: int
    right: Intervals
    wrong: Intervals
    difference: Intervals
    p: Array
    warning: str | None


def group_token_mean(
    values: Numbers,
    tokens: Numbers,
    right: Numbers,
    estimator: str = "per-group",
    groups: Numbers | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    permutations: int = 10_000,
) -> TokenMeans:
    """Group means over tokens, ``Σ n_i e_ij / Σ n_i`` over the answers *of that group*, with intervals by question.

    ``values [n, k]``: mean of answer i at layer j (``e_ij``); ``tokens [n]``: tokens of answer i (``n_i > 0``);
    ``right [n]``: 0/1; ``groups [n]``: question of each answer, when a question has several (the permutation test
    needs one answer a question; with more, p is NaN). ``estimator="pooled-weights"`` divides by the tokens of all
    answers instead: an artefact, kept to reproduce a published figure; its result carries :data:`POOLED_WARNING`.
    An empty group has mean NaN. Raises InputError for answers without tokens: leave them out.
    """
    data = columns(values, "values")
    count = numbers(tokens, "tokens", ndim=(1,))
    is_right = flags(right, len(data), "right")
    if len(count) != len(data) or count.min() <= 0:
        raise InputError(
            f"tokens need {len(data)} counts above 0, got {len(count)} from {count.min():g}: drop empty answers"
        )
    if estimator not in ("per-group", "pooled-weights"):
        raise InputError(f"unknown estimator {estimator!r}: use 'per-group' or 'pooled-weights'")
    if n < 1:
        raise InputError(f"{n} resamples are too few: ask for at least 1 (2000 is usual)")
    unit, units = codes(groups, len(data))
    pooled = estimator == "pooled-weights"

    def by_unit(member: Array) -> tuple[Array, Array]:
        top = np.zeros((units, data.shape[1]))
        size = np.zeros(units)
        np.add.at(top, unit, data * (count * member)[:, None])
        np.add.at(size, unit, count * member)
        return top, size

    sides = [by_unit(side.astype(np.float64)) for side in (is_right, ~is_right)]
    everything = sides[0][1] + sides[1][1]

    def means(weight: Array) -> list[Array]:
        """Right, wrong and wrong − right of resamples with these counts ``[b, units]`` → three of ``[b, k]``."""
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
    p = permutation_p(data, ~is_right, permutations, seed, count) if testable else np.full(data.shape[1], np.nan)
    return TokenMeans(
        estimator=estimator,
        n_right=int(is_right.sum()),
        n_wrong=int((~is_right).sum()),
        right=intervals[0],
        wrong=intervals[1],
        difference=intervals[2],
        p=p,
        warning=POOLED_WARNING if pooled else None,
    )


def _resampled(means: Callable[[Array], list[Array]], units: int, n: int, seed: int) -> list[Array]:
    blocks = [means(block) for block in draws(units, n, seed)]
    return [np.concatenate([block[i] for block in blocks]) for i in range(3)]

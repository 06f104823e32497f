"""Thresholds with a guarantee: Learn-then-Test (Angelopoulos et al. 2021), as CALM uses it (Schuster et al. 2022).

"With probability 1−ε over calibration sets, the risk is at most δ." Thresholds are tried from conservative to loose;
each is tested at level ε, and the first that fails ends it (fixed-sequence testing). The risk is a mean of losses in
0..1 of independent units: here one unit is one answer, since the tokens of an answer are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exitlens.errors import InputError

__all__ = ["Calibrated", "calibrate", "check_levels", "p_value", "require_units", "units_needed"]

Bound = Literal["hoeffding", "hoeffding-bentkus"]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The loosest threshold that passed (None: none did, exit nowhere), and the p-value of each that was tested."""

    threshold: float | None
    risk: float | None
    p_values: tuple[float, ...]
    n: int
    delta: float
    epsilon: float
    bound: str


def p_value(risk: float, n: int, delta: float, bound: Bound = "hoeffding-bentkus") -> float:
    """p-value of "the true risk is above δ" when ``n`` independent losses in 0..1 have mean ``risk``.

    Hoeffding: ``exp(−2n·max(0, δ − R̂)²)``. Hoeffding–Bentkus (Bates et al. 2021): the smaller of ``exp(−n·kl(R̂, δ))``
    and ``e·P(Bin(n, δ) ≤ ⌈nR̂⌉)``.
    """
    if bound == "hoeffding":
        return math.exp(-2.0 * n * max(0.0, delta - risk) ** 2)
    if bound != "hoeffding-bentkus":
        raise InputError(f"unknown bound {bound!r}: use hoeffding or hoeffding-bentkus")
    if risk >= delta:
        return 1.0
    from scipy import stats

    sharp = math.exp(-n * _binary_kl(risk, delta))
    bentkus = math.e * float(stats.binom.cdf(math.ceil(n * risk - 1e-9), n, delta))
    return min(1.0, sharp, bentkus)


def _binary_kl(a: float, b: float) -> float:
    out = 0.0
    if a > 0:
        out += a * math.log(a / b)
    if a < 1:
        out += (1 - a) * math.log((1 - a) / (1 - b))
    return out


def units_needed(delta: float, epsilon: float, bound: Bound = "hoeffding-bentkus") -> int:
    """Fewest calibration answers with which a threshold without a single error could pass."""
    n = 1
    while p_value(0.0, n, delta, bound) > epsilon:
        n *= 2
    low, high = n // 2, n
    while high - low > 1:
        middle = (low + high) // 2
        if p_value(0.0, middle, delta, bound) > epsilon:
            low = middle
        else:
            high = middle
    return high


def require_units(n: int, delta: float, epsilon: float, bound: Bound = "hoeffding-bentkus") -> None:
    """Raises :class:`InputError` when no threshold could pass with ``n`` calibration answers: says how many."""
    check_levels(delta, epsilon)
    needed = units_needed(delta, epsilon, bound)
    if n < needed:
        raise InputError(
            f"{n} calibration answers are too few for delta={delta:g} and epsilon={epsilon:g}: "
            f"at least {needed} are needed, half of {2 * needed} questions"
        )


def check_levels(delta: float, epsilon: float) -> None:
    """Raises :class:`InputError` for a δ or an ε that is no share."""
    if not 0.0 < delta < 1.0 or not 0.0 < epsilon < 1.0:
        raise InputError(f"delta={delta} and epsilon={epsilon} must lie between 0 and 1")


def calibrate(
    losses: NDArray[Any],
    thresholds: Sequence[float | int],
    *,
    delta: float,
    epsilon: float = 0.05,
    bound: Bound = "hoeffding-bentkus",
) -> Calibrated:
    """Choose among ``thresholds``, given from conservative to loose; ``losses [thresholds, n]`` lie in 0..1.

    Raises :class:`InputError` for δ or ε outside 0..1, losses outside 0..1, or too few answers for the δ and ε asked
    (it says how many are needed).
    """
    check_levels(delta, epsilon)
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 2 or losses.shape[0] != len(thresholds):
        raise InputError(f"losses of shape {losses.shape} do not fit {len(thresholds)} thresholds: one row each")
    if not (np.isfinite(losses).all() and losses.min(initial=0.0) >= 0.0 and losses.max(initial=0.0) <= 1.0):
        raise InputError("losses must be finite and lie in 0..1")
    n = losses.shape[1]
    require_units(n, delta, epsilon, bound)
    chosen: int | None = None
    tested: list[float] = []
    for i in range(len(thresholds)):
        tested.append(p_value(float(losses[i].mean()), n, delta, bound))
        if tested[-1] > epsilon:
            break
        chosen = i
    return Calibrated(
        threshold=None if chosen is None else float(thresholds[chosen]),
        risk=None if chosen is None else float(losses[chosen].mean()),
        p_values=tuple(tested),
        n=n,
        delta=delta,
        epsilon=epsilon,
        bound=bound,
    )

"""Thresholds with a guarantee: Learn-then-Test (Angelopoulos et al. 2021), as CALM uses it (Schuster et al. 2022), and
a test by betting that may be looked at after every answer (Waudby-Smith and Ramdas 2023).

"With probability 1−ε over calibration sets, the risk is at most δ." Thresholds are tried from conservative to loose;
each is tested at level ε, and the first that fails ends it (fixed-sequence testing). The risk is a mean of losses in
0..1 of independent units: here one unit is one answer, since the tokens of an answer are not independent.

Learn-then-Test looks once, at a number of answers fixed beforehand. :class:`AnytimeControl` is valid whenever one
stops: "with probability 1−ε, no threshold that it ever names has a risk above δ."
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from exitlens.errors import InputError
from exitlens.stats.arrays import Numbers

__all__ = [
    "AnytimeControl",
    "Bound",
    "Calibrated",
    "Control",
    "calibrate",
    "calibrate_anytime",
    "check_levels",
    "corrected",
    "p_value",
    "require_units",
    "risk_upper_bound",
    "units_needed",
]

Bound = Literal["hoeffding", "hoeffding-bentkus", "betting"]
Control = Literal["ltt", "anytime"]

# Shares of the highest bet 1/(1 − δ) that the capital is split over: which is best depends on the unknown losses.
_BETS = np.arange(1, 13) / 12


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The loosest threshold that passed (None: none did, exit nowhere), and the p-value of each that was tested.

    ``passed_at``: by betting, the answers after which each of the passed thresholds had passed.
    """

    threshold: float | None
    risk: float | None
    p_values: tuple[float, ...]
    n: int
    delta: float
    epsilon: float
    bound: str
    passed_at: tuple[int, ...] = ()


def p_value(risk: float, n: int, delta: float, bound: Bound = "hoeffding-bentkus") -> float:
    """p-value of "the true risk is above δ" when ``n`` independent losses in 0..1 have mean ``risk``.

    Hoeffding: ``exp(−2n·max(0, δ − R̂)²)``. Hoeffding–Bentkus (Bates et al. 2021): the smaller of ``exp(−n·kl(R̂, δ))``
    and ``e·P(Bin(n, δ) ≤ ⌈nR̂⌉)``. Betting needs the losses in their order: see :class:`AnytimeControl`.
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

    def least(n: int) -> float:
        """The smallest p-value that ``n`` answers can give."""
        if bound == "betting":
            return math.exp(-float(np.logaddexp.reduce(n * _log_factors(np.zeros(1), delta)[0])) + math.log(len(_BETS)))
        return p_value(0.0, n, delta, bound)

    n = 1
    while least(n) > epsilon:
        n *= 2
    low, high = n // 2, n
    while high - low > 1:
        middle = (low + high) // 2
        if least(middle) > epsilon:
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
    losses: Numbers,
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
    if bound == "betting":
        return calibrate_anytime(losses, thresholds, delta=delta, epsilon=epsilon)
    known = _losses(losses, len(thresholds))
    n = known.shape[1]
    require_units(n, delta, epsilon, bound)
    chosen: int | None = None
    tested: list[float] = []
    for i in range(len(thresholds)):
        tested.append(p_value(float(known[i].mean()), n, delta, bound))
        if tested[-1] > epsilon:
            break
        chosen = i
    return Calibrated(
        threshold=None if chosen is None else float(thresholds[chosen]),
        risk=None if chosen is None else float(known[chosen].mean()),
        p_values=tuple(tested),
        n=n,
        delta=delta,
        epsilon=epsilon,
        bound=bound,
    )


def corrected(epsilon: float, kinds: int) -> float:
    """The level at which each of ``kinds`` kinds of policy is tested when the best of them is used: ε / K (Bonferroni).

    The best of K choices that each fail with probability ε / K fails with probability ε at most.
    """
    if kinds < 1:
        raise InputError(f"{kinds} kinds of policy cannot be compared: at least 1")
    return epsilon / kinds


class AnytimeControl:
    """Thresholds that may be asked for after every answer, and stopped at whenever one likes.

    For each threshold a gambler bets, before each answer, that its loss L stays below δ: the capital is multiplied by
    ``1 + λ(δ − L)``, 0 ≤ λ ≤ 1/(1 − δ). Where the true risk is δ or more the capital grows by no factor on average, so
    it ever reaches 1/ε with probability ε at most (Ville's inequality): when it does, the threshold has passed. The
    capital is split evenly over constant bets λ, since which is best depends on the losses. A threshold is named when
    all more conservative ones have passed as well, so that only the first with a risk above δ can spoil the guarantee.

    Args:
        thresholds: from conservative to loose.
        delta: the risk allowed (0–1).
        epsilon: the probability that a threshold is ever named whose risk is above ``delta``.

    Raises:
        InputError: δ or ε is no share.

    Source: Waudby-Smith and Ramdas 2023, Estimating means of bounded random variables by betting, section 4.
    """

    def __init__(self, thresholds: Sequence[float | int], *, delta: float, epsilon: float = 0.05) -> None:
        check_levels(delta, epsilon)
        self.thresholds, self.delta, self.epsilon = tuple(float(t) for t in thresholds), delta, epsilon
        self.n = 0
        self.capital = np.zeros(len(self.thresholds))  # its logarithm
        self._split = np.full((len(self.thresholds), len(_BETS)), -math.log(len(_BETS)))
        self._passed_at = np.zeros(len(self.thresholds), dtype=np.int64)  # 0: not yet

    def add(self, losses: Numbers) -> None:
        """One more answer: its loss in 0..1 at each threshold. Raises :class:`InputError`."""
        given = _losses(np.asarray(losses, dtype=np.float64)[:, None], len(self.thresholds))[:, 0]
        self.n += 1
        self._split += _log_factors(given, self.delta)
        self.capital = np.logaddexp.reduce(self._split, axis=1)
        self._passed_at[(self._passed_at == 0) & (self.capital >= -math.log(self.epsilon))] = self.n

    @property
    def passed_at(self) -> tuple[int, ...]:
        """Answers after which each threshold had passed, up to the loosest that is named."""
        passed = self._passed_at > 0
        count = len(passed) if passed.all() else int(passed.argmin())
        return tuple(int(n) for n in np.maximum.accumulate(self._passed_at[:count]))

    @property
    def threshold(self) -> float | None:
        """The loosest threshold that may be used now; None: none yet."""
        count = len(self.passed_at)
        return self.thresholds[count - 1] if count else None


def calibrate_anytime(
    losses: Numbers, thresholds: Sequence[float | int], *, delta: float, epsilon: float = 0.05
) -> Calibrated:
    """What :class:`AnytimeControl` names after all answers of ``losses [thresholds, n]``, in their order.

    ``p_values``: one over the highest capital so far. Raises as :func:`calibrate` does.
    """
    check_levels(delta, epsilon)
    known = _losses(losses, len(thresholds))
    require_units(known.shape[1], delta, epsilon, "betting")
    control = AnytimeControl(thresholds, delta=delta, epsilon=epsilon)
    highest = np.zeros(len(thresholds))
    for answer in known.T:
        control.add(answer)
        highest = np.maximum(highest, control.capital)
    count = len(control.passed_at)
    return Calibrated(
        threshold=control.threshold,
        risk=None if not count else float(known[count - 1].mean()),
        p_values=tuple(float(p) for p in np.exp(-highest[: count + 1])),
        n=known.shape[1],
        delta=delta,
        epsilon=epsilon,
        bound="betting",
        passed_at=control.passed_at,
    )


def risk_upper_bound(losses: Numbers, epsilon: float = 0.05) -> NDArray[np.float64]:
    """An upper bound ``[n]`` on the risk after each of ``losses [n]``: all hold at once with probability 1 − ε.

    The largest risk that the same bets have not ruled out by then. Raises :class:`InputError`.
    """
    check_levels(0.5, epsilon)
    seen = _losses(np.asarray(losses, dtype=np.float64)[None], 1)[0]
    low, high = np.zeros(len(seen)), np.ones(len(seen))
    for _ in range(30):  # the capital against a risk grows with that risk, so halving finds where it reaches 1/ε
        middle = (low + high) / 2
        for i, risk in enumerate(middle):
            gained = _log_factors(seen[: i + 1], float(risk)).sum(axis=0)
            ruled_out = np.logaddexp.reduce(gained) - math.log(len(_BETS)) >= -math.log(epsilon)
            low[i], high[i] = (low[i], risk) if ruled_out else (risk, high[i])
    return np.minimum.accumulate(high)


def _log_factors(losses: NDArray[np.float64], delta: float) -> NDArray[np.float64]:
    """Logarithms ``[n, bets]`` of what each bet's capital is multiplied by at each loss."""
    with np.errstate(divide="ignore"):  # the highest bet loses everything at a loss of 1
        return np.asarray(np.log(1.0 + np.outer((delta - losses) / (1.0 - delta), _BETS)), dtype=np.float64)


def _losses(losses: Numbers, thresholds: int) -> NDArray[np.float64]:
    """``[thresholds, n]``, checked."""
    known = np.asarray(losses, dtype=np.float64)
    if known.ndim != 2 or known.shape[0] != thresholds:
        raise InputError(f"losses of shape {known.shape} do not fit {thresholds} thresholds: one row each")
    if not (np.isfinite(known).all() and known.min(initial=0.0) >= 0.0 and known.max(initial=0.0) <= 1.0):
        raise InputError("losses must be finite and lie in 0..1")
    return known

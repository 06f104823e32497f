"""Thresholds with a guarantee: by simulation with known risk, and against the formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from exitlens.errors import InputError
from exitlens.exits.risk_control import (
    AnytimeControl,
    calibrate,
    calibrate_anytime,
    corrected,
    p_value,
    risk_upper_bound,
    units_needed,
)

BOUNDS: list[Any] = ["hoeffding", "hoeffding-bentkus", "betting"]
POINTWISE: list[Any] = BOUNDS[:2]  # those of a mean alone
EPSILON, DRAWS = 0.1, 600


@pytest.mark.parametrize("bound", POINTWISE)
@pytest.mark.parametrize("kind", ["zero-one", "shares"])
def test_the_guarantee_fails_no_more_often_than_epsilon(bound: Any, kind: str) -> None:
    """Answers whose true risk at each threshold is known; a failure is a chosen threshold with a risk above δ."""
    delta, n, tokens = 0.1, 300, 4
    risks = np.array([0.0, 0.04, 0.07, 0.095, 0.101, 0.11, 0.3])
    rng = np.random.default_rng(7)
    failures = chosen = 0
    for _ in range(DRAWS):
        if kind == "zero-one":
            losses = (rng.random(n)[None] < risks[:, None]).astype(float)
        else:  # shares of an answer's tokens, all tokens of it easier or harder together
            hard = rng.beta(2, 2, size=n) * 2
            losses = rng.binomial(tokens, np.minimum(risks[:, None] * hard[None], 1)) / tokens
        found = calibrate(losses, [-float(i) for i in range(len(risks))], delta=delta, epsilon=EPSILON, bound=bound)
        chosen += found.threshold is not None
        failures += found.threshold is not None and risks[int(-found.threshold)] > delta
    assert chosen > DRAWS / 2  # it does exit somewhere: exiting nowhere would fulfil any guarantee
    # Exact binomial: that few failures are plausible at a rate of at most ε.
    assert stats.binomtest(failures, DRAWS, EPSILON, alternative="greater").pvalue > 0.01


def test_the_simulation_would_catch_a_missing_bound() -> None:
    """Choosing by the observed risk alone fails far more often than ε."""
    rng = np.random.default_rng(7)
    failures = sum((rng.random(300) < 0.101).mean() <= 0.1 for _ in range(DRAWS))
    assert stats.binomtest(int(failures), DRAWS, EPSILON, alternative="greater").pvalue < 1e-6


@pytest.mark.parametrize("bound", POINTWISE)
def test_p_values_are_uniform_or_larger_at_the_limit_itself(bound: Any) -> None:
    rng = np.random.default_rng(1)
    at = np.array([p_value(rng.binomial(200, 0.1) / 200, 200, 0.1, bound) for _ in range(2000)])
    for level in (0.01, 0.05, 0.2):
        assert stats.binomtest(int((at <= level).sum()), len(at), level, alternative="greater").pvalue > 0.001


def test_p_values_by_hand() -> None:
    assert p_value(0.05, 100, 0.15, "hoeffding") == pytest.approx(math.exp(-2 * 100 * 0.01))
    assert p_value(0.2, 100, 0.15, "hoeffding") == 1.0
    assert p_value(0.0, 50, 0.1, "hoeffding-bentkus") == pytest.approx(0.9**50)
    assert p_value(0.1, 50, 0.1, "hoeffding-bentkus") == 1.0
    assert p_value(0.02, 400, 0.05, "hoeffding-bentkus") < p_value(0.02, 400, 0.05, "hoeffding")


def test_no_threshold_passes() -> None:
    found = calibrate(np.full((3, 200), 0.5), [0.9, 0.8, 0.7], delta=0.1)
    assert found.threshold is None
    assert found.risk is None
    assert len(found.p_values) == 1  # the first failure ends it


def test_a_loose_threshold_behind_a_failed_one_is_not_used() -> None:
    losses = np.zeros((3, 200))
    losses[1] = 0.5
    assert calibrate(losses, [0.9, 0.8, 0.7], delta=0.1).threshold == 0.9


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(("delta", "epsilon"), [(0.1, 0.05), (0.02, 0.05), (0.3, 0.2)])
def test_too_few_answers_are_refused_with_the_number_needed(bound: Any, delta: float, epsilon: float) -> None:
    needed = units_needed(delta, epsilon, bound)
    if bound in POINTWISE:
        assert p_value(0.0, needed, delta, bound) <= epsilon < p_value(0.0, needed - 1, delta, bound)
    with pytest.raises(InputError, match=f"at least {needed} are needed"):
        calibrate(np.zeros((1, needed - 1)), [0.9], delta=delta, epsilon=epsilon, bound=bound)
    assert calibrate(np.zeros((1, needed)), [0.9], delta=delta, epsilon=epsilon, bound=bound).threshold == 0.9


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("losses", "more", "says"),
    [
        (np.zeros((1, 100)), {"delta": 0.0}, "delta=0.0"),
        (np.zeros((1, 100)), {"delta": 0.1, "epsilon": 1.0}, "epsilon=1.0"),
        (np.full((1, 100), 1.5), {"delta": 0.1}, "0..1"),
        (np.full((1, 100), np.nan), {"delta": 0.1}, "finite"),
        (np.zeros((2, 100)), {"delta": 0.1}, "thresholds"),
        (np.zeros((1, 100)), {"delta": 0.1, "bound": "bonferroni"}, "bonferroni"),
    ],
)
def test_bad_input(losses: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        calibrate(losses, [0.9], **more)


RISKS = np.array([0.0, 0.04, 0.07, 0.101, 0.12, 0.3])  # the fourth is the first above δ = 0.1


def drawn(rng: np.random.Generator, n: int, kind: str) -> np.ndarray:
    """Losses ``[thresholds, n]`` of those true risks."""
    if kind == "zero-one":  # the same answers fail first at every threshold, as they do for exits
        return (rng.random(n)[None] < RISKS[:, None]).astype(float)
    hard = rng.beta(2, 2, size=n) * 2
    return rng.binomial(4, np.minimum(RISKS[:, None] * hard[None], 1)) / 4


@pytest.mark.parametrize("kind", ["zero-one", "shares"])
def test_by_betting_the_guarantee_holds_at_any_stopping_time(kind: str) -> None:
    """A failure is a threshold with a risk above δ named after any answer."""
    rng, draws, n = np.random.default_rng(5), 150, 250
    thresholds = [-float(i) for i in range(len(RISKS))]
    failures = named = 0
    for _ in range(draws):
        control = AnytimeControl(thresholds, delta=0.1, epsilon=EPSILON)
        worst = 0.0
        for answer in drawn(rng, n, kind).T:
            control.add(answer)
            if control.threshold is not None:
                worst = max(worst, RISKS[int(-control.threshold)])
        failures += worst > 0.1
        named += control.threshold is not None
    assert named > draws / 2
    assert stats.binomtest(failures, draws, EPSILON, alternative="greater").pvalue > 0.01


def test_looking_after_every_answer_breaks_the_guarantee_of_one_look() -> None:
    """What betting is for: Learn then Test, asked from the 20th answer on until it says yes."""
    n, draws = 400, 1000
    most = [  # errors with which so many answers pass
        max((k for k in range(m) if p_value(k / m, m, 0.1) <= EPSILON), default=-1) for m in range(20, n + 1, 5)
    ]
    errors = (np.random.default_rng(6).random((draws, n)) < 0.1001).cumsum(axis=1)[:, 19::5]
    peeking = int((errors <= np.array(most)).any(axis=1).sum())
    assert stats.binomtest(peeking, draws, EPSILON, alternative="greater").pvalue < 1e-6


def test_all_answers_at_once_are_the_answers_one_by_one() -> None:
    losses = drawn(np.random.default_rng(3), 300, "shares")
    control = AnytimeControl(range(6), delta=0.1)
    for answer in losses.T:
        control.add(answer)
    found = calibrate_anytime(losses, range(6), delta=0.1)
    assert found == calibrate(losses, range(6), delta=0.1, bound="betting")
    assert found.threshold == control.threshold is not None
    assert found.passed_at == control.passed_at
    assert list(found.passed_at) == sorted(found.passed_at)
    # Stopped where the last of them passed, the answer is the same.
    assert calibrate_anytime(losses[:, : found.passed_at[-1]], range(6), delta=0.1).threshold == found.threshold


def test_capital_by_hand() -> None:
    control = AnytimeControl([1.0], delta=0.2)
    for loss in (0.0, 1.0, 0.5):
        control.add(np.array([loss]))
    bets = np.arange(1, 13) / 12 / 0.8
    want = np.mean([(1 + b * 0.2) * (1 - b * 0.8) * (1 - b * 0.3) for b in bets])
    assert math.exp(control.capital[0]) == pytest.approx(want)


def test_the_upper_bound_covers_the_risk_after_every_answer() -> None:
    rng = np.random.default_rng(2)
    missed = 0
    for _ in range(60):
        bound = risk_upper_bound((rng.random(60) < 0.2).astype(float), epsilon=0.2)
        assert (np.diff(bound) <= 0).all()
        missed += bool((bound < 0.2).any())
    assert stats.binomtest(missed, 60, 0.2, alternative="greater").pvalue > 0.01
    clean = risk_upper_bound(np.zeros(84), epsilon=0.05)
    assert clean[-1] <= 0.05 < clean[-2]  # as many answers as the test needs


def test_the_best_of_many_kinds_needs_the_corrected_level() -> None:
    """Twelve kinds, each just too risky: the best of them by itself fails more often than ε, corrected it does not."""
    rng, draws, kinds = np.random.default_rng(4), 150, 12
    failed = {EPSILON: 0, corrected(EPSILON, kinds): 0}
    for _ in range(draws):
        losses = (rng.random((kinds, 1, 200)) < 0.1001).astype(float)
        for level in failed:
            failed[level] += any(
                calibrate(each, [1.0], delta=0.1, epsilon=level).threshold is not None for each in losses
            )
    assert stats.binomtest(failed[EPSILON], draws, EPSILON, alternative="greater").pvalue < 1e-3
    assert stats.binomtest(failed[corrected(EPSILON, kinds)], draws, EPSILON, alternative="greater").pvalue > 0.01
    with pytest.raises(InputError, match="0 kinds"):
        corrected(0.05, 0)

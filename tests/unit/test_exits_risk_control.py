"""Thresholds with a guarantee: by simulation with known risk, and against the formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from exitlens.errors import InputError
from exitlens.exits.risk_control import calibrate, p_value, units_needed

BOUNDS: list[Any] = ["hoeffding", "hoeffding-bentkus"]
EPSILON, DRAWS = 0.1, 600


@pytest.mark.parametrize("bound", BOUNDS)
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


@pytest.mark.parametrize("bound", BOUNDS)
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

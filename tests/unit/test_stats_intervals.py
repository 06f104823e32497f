"""Bootstrap, paired tests and the token-weighted group means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import norm

from exitlens import stats
from exitlens.errors import InputError


def test_interval_of_a_mean_is_near_the_normal_one() -> None:
    x = np.random.default_rng(3).normal(2.0, 1.0, 400)
    found = stats.mean_interval(x, n=4000)
    half = norm.ppf(0.975) * x.std(ddof=1) / math.sqrt(400)
    assert found.value == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - half, abs=0.012)
    assert found.high == pytest.approx(x.mean() + half, abs=0.012)


def test_agrees_with_scipy_percentile_interval() -> None:
    x = np.random.default_rng(4).exponential(size=60)
    ours = stats.bootstrap_interval(x, np.median, n=6000)
    theirs = scipy_bootstrap((x,), np.median, n_resamples=6000, method="percentile", rng=1).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.06)
    assert ours.high == pytest.approx(theirs.high, abs=0.06)


def test_fast_way_equals_the_general_way_on_the_same_draws() -> None:
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=50), rng.integers(12, size=50)
    fast = stats.mean_interval(x, groups=groups, n=300, seed=5)
    general = stats.bootstrap_interval(x, lambda v: float(np.mean(v)), groups=groups, n=300, seed=5)
    assert (fast.value, fast.low, fast.high) == pytest.approx((general.value, general.low, general.high), abs=1e-12)
    columns = stats.mean_intervals(np.column_stack([x, 2 * x]), groups, n=300, seed=5)
    assert columns[0] == fast
    assert columns[1].high == pytest.approx(2 * fast.high)


def test_clusters_widen_the_interval_and_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    centre = np.repeat(rng.normal(size=30), 20)
    x = centre + 0.1 * rng.normal(size=600)
    group = np.repeat(np.arange(30), 20)
    by_row, by_group = stats.mean_interval(x), stats.mean_interval(x, groups=group)
    assert by_group.high - by_group.low > 3 * (by_row.high - by_row.low)
    turned = stats.mean_interval(x[::-1], groups=group[::-1])
    assert turned.low == pytest.approx(by_group.low, abs=1e-12)
    assert stats.mean_interval(x, groups=group) == by_group
    assert stats.mean_interval(x, groups=group, seed=1) != by_group


def test_coverage_is_near_its_level() -> None:
    rng = np.random.default_rng(8)
    samples = rng.normal(size=(60, 400))
    found = stats.mean_intervals(samples, n=600)
    inside = ((found.low <= 0) & (found.high >= 0)).mean()
    assert 0.90 <= inside <= 0.98


def test_one_row_or_one_group_has_no_interval() -> None:
    for found in (
        stats.mean_interval([3.0]),
        stats.mean_interval([3.0, 5.0], groups=["a", "a"]),
        stats.bootstrap_interval([2.0], np.median),
    ):
        assert not math.isnan(found.value)
        assert math.isnan(found.low)
        assert math.isnan(found.high)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf], ["x"]])
def test_bad_values_are_refused(bad: list[object]) -> None:
    with pytest.raises(InputError):
        stats.mean_interval(bad)


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="level"):
        stats.mean_interval([1.0, 2.0], level=95)
    with pytest.raises(InputError, match="resamples"):
        stats.mean_interval([1.0, 2.0], n=0)
    with pytest.raises(InputError, match="groups"):
        stats.mean_interval([1.0, 2.0], groups=[1])


def test_paired_difference_sign_and_exact_p() -> None:
    found = stats.paired_difference([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])
    assert found.value == pytest.approx(2.0)
    # Of 8 sign patterns two (all plus, all minus) reach |sum| = 6.
    assert found.p == pytest.approx(2 / 8)
    assert stats.paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1.0


def test_sign_flips_are_calibrated_and_find_a_difference() -> None:
    rng = np.random.default_rng(2)
    null = rng.normal(size=(40, 300))
    p = stats.sign_flip_p(null, n=999)
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.035)
    assert stats.sign_flip_p(null + 1.0, n=999).max() < 0.05
    # A group whose rows all agree is one observation, not twenty.
    group = np.repeat(np.arange(3), 20)
    assert stats.sign_flip_p(np.ones(60), group)[0] == pytest.approx(2 / 8)


def test_unpaired_rows_are_refused() -> None:
    with pytest.raises(InputError, match="3 and 2 rows"):
        stats.paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_group_token_mean_by_hand() -> None:
    # right: (1·2 + 3·4)/(1 + 3) = 3.5; wrong: (2·5 + 2·6)/4 = 5.5
    values = np.array([[2.0], [4.0], [5.0], [6.0]])
    found = stats.group_token_mean(values, [1, 3, 2, 2], [1, 1, 0, 0])
    assert found.correct.value[0] == pytest.approx(3.5)
    assert found.incorrect.value[0] == pytest.approx(5.5)
    assert found.difference.value[0] == pytest.approx(2.0)
    assert found.warning is None
    assert (found.n_correct, found.n_incorrect) == (2, 2)


def test_pooled_weights_reproduces_the_artefact_and_warns() -> None:
    # The same entropy, ln 32000, in every token: bars of a small and a large group must add up to it.
    top = math.log(32000)
    right = np.arange(100) < 13
    values, tokens = np.full((100, 2), top), np.full(100, 9)
    pooled = stats.group_token_mean(values, tokens, right, estimator="pooled-weights")
    assert pooled.correct.value[0] == pytest.approx(0.13 * top)
    assert pooled.correct.value[0] + pooled.incorrect.value[0] == pytest.approx(top)
    assert pooled.warning is not None
    assert "per-group" in pooled.warning
    assert np.isnan(pooled.p).all()
    honest = stats.group_token_mean(values, tokens, right)
    assert honest.difference.value[0] == pytest.approx(0, abs=1e-12)
    assert honest.p[0] == 1.0


def test_group_token_mean_edges() -> None:
    values = np.random.default_rng(0).normal(size=(6, 3))
    none_right = stats.group_token_mean(values, np.ones(6), np.zeros(6))
    assert np.isnan(none_right.correct.value).all()
    assert np.isnan(none_right.difference.low).all()
    assert np.isfinite(none_right.incorrect.low).all()
    assert np.isnan(none_right.p).all()
    with pytest.raises(InputError, match="above 0"):
        stats.group_token_mean(values, [1, 1, 1, 1, 1, 0], np.ones(6))
    with pytest.raises(InputError, match="estimator"):
        stats.group_token_mean(values, np.ones(6), np.ones(6), estimator="mean")


def test_group_token_mean_finds_a_planted_difference_with_its_interval() -> None:
    rng = np.random.default_rng(6)
    right = rng.random(400) < 0.4
    values = rng.normal(size=(400, 2))
    values[~right, 1] += 0.5
    found = stats.group_token_mean(values, rng.integers(1, 30, 400), right)
    assert found.difference.low[0] < 0 < found.difference.high[0]
    assert 0 < found.difference.low[1] < 0.5 < found.difference.high[1]
    assert found.p[0] > 0.05
    assert found.p[1] < 0.01


def test_the_p_of_token_means_is_that_of_token_weighted_means() -> None:
    # By tokens the means are 1.4 and 4.6; the plain means are equal, and a test of those would give p = 1.
    value = np.array([1.0, 1, 1, 5, 5, 5, 1, 1, 1, 5, 5, 5] * 2)
    tokens = np.array([9, 9, 9, 1, 1, 1, 1, 1, 1, 9, 9, 9] * 2)
    correct = np.arange(24) % 12 < 6
    found = stats.group_token_mean(value, tokens, correct)
    assert found.difference.value[0] == pytest.approx(3.2)
    assert found.p[0] < 0.05

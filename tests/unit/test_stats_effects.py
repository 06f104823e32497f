"""Effect sizes, tests between groups, corrections for many layers, McNemar."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, permutation_test

from exitlens import stats
from exitlens.errors import InputError


def test_cohens_d_by_hand() -> None:
    # Means 4 and 2, both with variance 1 (n − 1): d = 2.
    assert stats.cohens_d([3.0, 4.0, 5.0, 1.0, 2.0, 3.0], [1, 1, 1, 0, 0, 0])[0] == pytest.approx(2.0)
    assert math.isnan(stats.cohens_d([1.0, 2.0, 3.0], [1, 0, 0])[0])
    assert math.isnan(stats.cohens_d([1.0] * 4, [1, 1, 0, 0])[0])


def test_permutation_p_is_near_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=7), rng.normal(size=6) + 1
    exact = permutation_test(
        (x, y), lambda a, b, axis: np.mean(a, axis) - np.mean(b, axis), vectorized=True, n_resamples=np.inf
    ).pvalue
    ours = stats.permutation_p(np.concatenate([x, y]), [1] * 7 + [0] * 6, n=20_000)[0]
    assert ours == pytest.approx(exact, abs=0.015)


def test_permutation_p_never_zero_and_nan_without_two_groups() -> None:
    assert stats.permutation_p(np.r_[np.zeros(20), np.full(20, 9.0)], np.arange(40) < 20, n=99)[0] == 0.01
    assert stats.permutation_p(np.ones(5), [0, 1, 0, 1, 0], n=99)[0] == 1.0
    assert math.isnan(stats.permutation_p([1.0, 2.0], [1, 1], n=9)[0])


def test_weighted_permutation_is_calibrated() -> None:
    rng = np.random.default_rng(5)
    p = stats.permutation_p(rng.normal(size=(50, 300)), rng.random(50) < 0.3, n=499, weights=rng.integers(1, 40, 50))
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.035)


def test_permutation_weighs_rows_by_their_tokens() -> None:
    # In the group the rows at 1 are long and those at 5 short, outside it is the other way round: by tokens the means
    # are 1.4 and 4.6, while the plain means are both 3, so that every shuffle reaches their difference.
    value = np.array([1.0, 1, 1, 5, 5, 5, 1, 1, 1, 5, 5, 5])
    tokens = [9, 9, 9, 1, 1, 1, 1, 1, 1, 9, 9, 9]
    group = np.arange(12) < 6
    assert stats.permutation_p(value, group, n=999)[0] == 1.0
    # Exact: of all 924 ways to draw six rows, the share whose weighted means differ by as much (3.2).
    w = np.array(tokens, dtype=float)
    gaps = []
    for picked in combinations(range(12), 6):
        inside = np.isin(np.arange(12), picked)
        gaps.append(abs(np.average(value[inside], weights=w[inside]) - np.average(value[~inside], weights=w[~inside])))
    seen = abs(np.average(value[group], weights=w[group]) - np.average(value[~group], weights=w[~group]))
    exact = np.mean(np.array(gaps) >= seen - 1e-12)
    assert exact < 0.2
    assert stats.permutation_p(value, group, n=20_000, weights=tokens)[0] == pytest.approx(exact, abs=0.01)


def test_adjusting_for_length_removes_what_length_explains() -> None:
    rng = np.random.default_rng(1)
    length = rng.integers(1, 50, 500).astype(float)
    wrong = rng.random(500) < length / 50
    noise = 0.1 * rng.normal(size=500)
    value = np.column_stack([0.05 * length + noise, 0.05 * length + 0.3 * wrong + noise])
    raw = value[wrong].mean(axis=0) - value[~wrong].mean(axis=0)
    found = stats.adjusted_difference(value, wrong, length)
    assert raw[0] > 0.5
    assert found.low[0] < 0 < found.high[0]
    assert found.low[1] < 0.3 < found.high[1]
    assert found.p[1] < 1e-6 < 0.05 < found.p[0]


def test_adjusted_difference_without_covariate_is_the_plain_one_with_hc3_errors() -> None:
    rng = np.random.default_rng(2)
    value, group = rng.normal(size=20), np.arange(20) < 8
    found = stats.adjusted_difference(value, group, np.ones(20))
    a, b = value[group], value[~group]
    assert found.value[0] == pytest.approx(a.mean() - b.mean())
    # Two groups: a row's leverage is 1/n of its group, so HC3 gives Σ r²/(n − 1)² for each group.
    error = math.sqrt(sum(((g - g.mean()) ** 2).sum() / (len(g) - 1) ** 2 for g in (a, b)))
    from scipy.stats import t

    assert found.high[0] - found.low[0] == pytest.approx(2 * error * t.ppf(0.975, 18))
    assert found.p[0] == pytest.approx(2 * t.sf(abs(found.value[0] / error), 18))


def test_adjusted_difference_that_cannot_be_told_is_nan() -> None:
    value, group = np.arange(6.0), np.array([0, 0, 0, 1, 1, 1])
    for covariate in (group.astype(float), 3.0 - 2.0 * group):
        assert math.isnan(stats.adjusted_difference(value, group, covariate).value[0])
    assert math.isnan(stats.adjusted_difference(value, np.ones(6), np.arange(6.0)).value[0])
    assert math.isnan(stats.adjusted_difference([1.0, 2.0], [0, 1], [1.0, 3.0]).p[0])
    with pytest.raises(InputError, match="covariate has 5 rows"):
        stats.adjusted_difference(value, group, np.arange(5.0))


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    corrected = stats.holm([0.01, math.nan, 0.03])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])
    assert stats.holm([]).tolist() == []
    with pytest.raises(InputError, match=r"1\.2"):
        stats.holm([1.2])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_equals_scipy_and_lies_below_holm(p: list[float]) -> None:
    found = stats.benjamini_hochberg(p)
    np.testing.assert_allclose(found, false_discovery_control(p), atol=1e-12)
    assert (found <= stats.holm(p) + 1e-12).all()
    assert (stats.holm(p) >= np.array(p)).all()


def test_mcnemar() -> None:
    found = stats.mcnemar([1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 1])
    assert (found.only_first, found.only_second) == (5, 0)
    assert found.p == pytest.approx(2 / 32)
    assert stats.mcnemar([1, 0], [1, 0]).p == 1.0
    with pytest.raises(InputError):
        stats.mcnemar([1, 0], [1])

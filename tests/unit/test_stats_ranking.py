"""AUROC, calibration and risk–coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, roc_auc_score

from exitlens import stats
from exitlens.errors import InputError


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auroc_equals_scikit_learn_with_ties(rows: list[tuple[int, bool]]) -> None:
    score = np.array([float(s) for s, _ in rows])
    label = np.array([y for _, y in rows])
    if label.all() or not label.any():
        assert math.isnan(stats.auroc(score, label))
    else:
        assert stats.auroc(score, label) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
        assert stats.auroc(-score, label) == pytest.approx(1 - stats.auroc(score, label), abs=1e-12)


def test_auroc_by_hand() -> None:
    assert stats.auroc([1.0, 2.0, 3.0], [0, 1, 0]) == 0.5
    assert stats.auroc([1.0, 1.0, 1.0, 1.0], [0, 1, 0, 1]) == 0.5
    # 3 of 4 pairs in order, one tied: (3 + .5) / 4
    assert stats.auroc([1.0, 2.0, 2.0, 3.0], [0, 0, 1, 1]) == pytest.approx(3.5 / 4)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_of_resamples_equals_scikit_learn(ties: bool) -> None:
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=30), rng.random(30) < 0.4
    score = score.round() if ties else score
    counts = stats.resample_counts(np.repeat(np.arange(10), 3), 200, 3)
    found = stats.weighted_auroc(score, label, counts)
    assert found[0] == stats.auroc(score, label)
    for one, w in zip(found, counts.T, strict=True):
        if w[label].sum() and w[~label].sum():
            assert one == pytest.approx(roc_auc_score(label, score, sample_weight=w), abs=1e-12)
        else:
            assert math.isnan(one)


def delong(score: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """AUROC and DeLong's variance, written out over all pairs."""
    pairs = (score[label][:, None] > score[~label]) + 0.5 * (score[label][:, None] == score[~label])
    ones, zeros = pairs.mean(axis=1), pairs.mean(axis=0)
    return float(pairs.mean()), ones.var(ddof=1) / len(ones) + zeros.var(ddof=1) / len(zeros)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_interval_is_delongs_on_the_logit_scale(ties: bool) -> None:
    rng = np.random.default_rng(2)
    label = rng.random(60) < 0.4
    score = rng.normal(size=(60, 2)) + label[:, None]
    score = score.round() if ties else score
    found = stats.auroc_intervals(score, label)
    for j in range(2):
        value, variance = delong(score[:, j], label)
        pairs = label.sum() * (~label).sum()
        near = (value * pairs + 0.5) / (pairs + 1)
        half = 1.959963985 * math.sqrt(variance) / (near * (1 - near))
        ends = [1 / (1 + math.exp(-(math.log(near / (1 - near)) + sign * half))) for sign in (-1, 1)]
        assert found.value[j] == pytest.approx(value)
        assert [found.low[j], found.high[j]] == pytest.approx(ends)
    assert stats.auroc_interval(score[:, 1], label) == found[1]
    assert found[0].n == min(label.sum(), (~label).sum())


def test_rows_of_one_group_say_less_about_an_auroc() -> None:
    rng = np.random.default_rng(3)
    score, label = rng.normal(size=40), np.arange(40) % 2 == 0
    group = np.arange(40) // 2
    single = stats.auroc_interval(score, label)
    again = stats.auroc_interval(np.tile(score, 3), np.tile(label, 3), np.tile(np.arange(40), 3))
    assert again.n == 20
    # Every row three times says no more than once, but for half a win in more pairs and 20/19 for 60/59.
    assert (again.low, again.high) == pytest.approx((single.low, single.high), abs=0.01)
    # A pair that shares its luck: its common part cancels out between the classes.
    shared = rng.normal(size=20)[group] * 3 + score
    paired, apart = stats.auroc_interval(shared, label, group), stats.auroc_interval(shared, label)
    assert paired.high - paired.low < 0.7 * (apart.high - apart.low)


def test_a_perfect_auroc_of_few_answers_is_not_certain() -> None:
    found = stats.auroc_interval(np.arange(20.0), np.arange(20) >= 14)
    assert found.value == found.high == 1.0
    assert 0.7 < found.low < 0.95
    inverse = stats.auroc_interval(-np.arange(20.0), np.arange(20) >= 14)
    assert (inverse.low, inverse.high) == pytest.approx((0.0, 1 - found.low))
    for ones in (1, 2):
        few = stats.auroc_interval(np.arange(6.0), np.arange(6) >= 6 - ones)
        assert few.value == 1.0
        assert math.isnan(few.low)
        assert math.isnan(few.high)
        assert few.note == f"no interval: n = {ones}"


@pytest.mark.parametrize("area", [0.7, 0.9])
@pytest.mark.parametrize("n", [20, 60])
def test_auroc_intervals_hold_their_level(area: float, n: int) -> None:
    rng = np.random.default_rng(5)
    label = np.arange(n) < n // 2
    score = rng.normal(size=(n, 1500)) + norm.ppf(area) * math.sqrt(2) * label[:, None]
    found = stats.auroc_intervals(score, label)
    assert 0.925 <= ((found.low <= area) & (area <= found.high)).mean() <= 0.98


def test_auroc_edges() -> None:
    found = stats.auroc_interval([1.0, 2.0], [1, 1])
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    one_group = stats.auroc_interval([1.0, 2.0], [0, 1], groups=["a", "a"])
    assert one_group.value == 1.0
    assert math.isnan(one_group.high)
    with pytest.raises(InputError, match="only 0 and 1"):
        stats.auroc([1.0, 2.0], [0, 2])
    with pytest.raises(InputError, match="nan"):
        stats.auroc([1.0, math.nan], [0, 1])


def test_brier_by_hand_and_against_scikit_learn() -> None:
    assert stats.brier([0.5, 0.5], [0, 1]) == 0.25
    rng = np.random.default_rng(1)
    p, y = rng.random(50), rng.random(50) < 0.5
    assert stats.brier(p, y) == pytest.approx(brier_score_loss(y, p))
    with pytest.raises(InputError, match=r"1\.5"):
        stats.brier([1.5], [1])


def test_ece_and_reliability_by_hand() -> None:
    # Two bins: (.1, .3 | one of two) → |.5 − .2| · ½; (.8, 1 | both) → |1 − .9| · ½
    curve = stats.reliability_curve([0.1, 0.3, 0.8, 1.0], [0, 1, 1, 1], bins=2)
    assert curve.count.tolist() == [2, 2]
    assert curve.probability.tolist() == pytest.approx([0.2, 0.9])
    assert curve.share.tolist() == [0.5, 1.0]
    assert stats.ece([0.1, 0.3, 0.8, 1.0], [0, 1, 1, 1], bins=2) == pytest.approx(0.2)
    assert stats.ece([0.0, 1.0], [0, 1]) == 0
    assert stats.ece([0.5] * 4, [0, 1, 0, 1], bins=2) == 0
    assert stats.reliability_curve([0.5], [1], bins=2).count.tolist() == [0, 1]
    assert stats.ece([0.2, 0.2, 0.9, 0.9], [0, 0, 1, 1], bins=2, by="mass") == pytest.approx(0.15)


def test_risk_coverage_by_hand() -> None:
    curve = stats.risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
    assert curve.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert stats.aurc([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert stats.selective_accuracy([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], 0.25) == 1.0
    assert stats.selective_accuracy([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], 1.0) == 0.5


def test_ties_in_confidence_do_not_depend_on_order() -> None:
    confidence, right = np.array([0.5, 0.5, 0.5, 0.9]), np.array([1, 0, 0, 1])
    assert stats.aurc(confidence, right) == pytest.approx(stats.aurc(confidence[::-1], right[::-1]))
    # Confidence that says nothing: the plain error rate at every coverage.
    assert stats.risk_coverage(np.ones(4), right).risk.tolist() == pytest.approx([0.5] * 4)
    with pytest.raises(InputError, match="width"):
        stats.ece([0.5], [1], by="equal")
    with pytest.raises(InputError, match="coverage"):
        stats.selective_accuracy(confidence, right, 0)

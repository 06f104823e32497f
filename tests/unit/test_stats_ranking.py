"""AUROC, calibration and risk–coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
def test_auroc_resamples_equal_scikit_learn_on_the_same_draws(ties: bool) -> None:
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=(30, 2)), rng.random(30) < 0.4
    score = score.round() if ties else score
    group = np.repeat(np.arange(10), 3)
    from exitlens.stats.bootstrap import draws

    found = []
    for block in draws(10, 50, 3):
        for counts in block:
            w = counts[group]
            if w[label].sum() and w[~label].sum():
                found.append([roc_auc_score(label, score[:, j], sample_weight=w) for j in range(2)])
    expected = np.quantile(np.array(found), [0.025, 0.975], axis=0)
    ours = stats.auroc_intervals(score, label, group, n=50, seed=3)
    np.testing.assert_allclose([ours.low, ours.high], expected, atol=1e-12)
    single = stats.auroc_interval(score[:, 1], label, group, n=50, seed=3)
    assert single == ours[1]


def test_auroc_edges() -> None:
    found = stats.auroc_interval([1.0, 2.0], [1, 1])
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    one_group = stats.auroc_interval([1.0, 2.0], [0, 1], groups=["a", "a"])
    assert one_group.value == 1.0
    assert math.isnan(one_group.high)
    # Few rows: some resamples miss a class; they are left out, not counted as nan.
    assert stats.auroc_interval([1.0, 2.0, 3.0], [0, 1, 1]).low == 1.0
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

"""Bootstrap, paired tests and the token-weighted group means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, norm
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import t as student

from exitlens import stats
from exitlens.errors import InputError
from exitlens.stats.bootstrap import draws, quantiles


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
    np.random.seed(1)  # noqa: NPY002 - the one seed that scipy's old and new versions both take
    theirs = scipy_bootstrap((x,), np.median, n_resamples=6000, method="percentile").confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.06)
    assert ours.high == pytest.approx(theirs.high, abs=0.06)


def test_one_column_is_one_of_many_and_draws_made_before_are_the_same() -> None:
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=50), rng.integers(12, size=50)
    alone = stats.mean_interval(x, groups=groups, n=300, seed=5)
    columns = stats.mean_intervals(np.column_stack([x, 2 * x]), groups, n=300, seed=5)
    assert columns[0] == alone
    assert columns[1].high == pytest.approx(2 * alone.high)
    given = stats.mean_intervals(x, groups, counts=stats.resample_counts(groups, 300, 5))[0]
    assert (given.low, given.high, given.n) == pytest.approx((alone.low, alone.high, 12), abs=1e-12)


def test_studentised_interval_is_the_one_written_out() -> None:
    rng = np.random.default_rng(7)
    group = np.repeat(np.arange(20), rng.integers(1, 4, 20))
    x, w = rng.exponential(size=len(group)), rng.integers(1, 5, len(group)).astype(float)
    total, size = np.bincount(group, w * x), np.bincount(group, w)
    value = total.sum() / size.sum()
    error = math.sqrt(20 / 19 * ((total - value * size) ** 2).sum()) / size.sum()
    t = []
    for block in draws(20, 400, 3):
        for counts in block:
            mean = (counts * total).sum() / (counts * size).sum()
            own = math.sqrt((counts * (total - mean * size) ** 2).sum()) / (counts * size).sum()
            t.append((mean - value) / max(own, 0.1 * error))
    low, high = np.quantile(t, [0.025, 0.975])
    both = np.quantile(np.abs(t), 0.95)
    found = stats.mean_intervals(x, group, n=400, seed=3, weights=w)[0]
    assert found.value == pytest.approx(value)
    assert found.low == pytest.approx(value - max(high, both) * error)
    assert found.high == pytest.approx(value + max(-low, both) * error)


def test_proportions_have_jeffreys_interval() -> None:
    found = stats.mean_interval(np.r_[np.ones(3), np.zeros(17)])
    assert (found.low, found.high) == pytest.approx((beta.ppf(0.025, 3.5, 17.5), beta.ppf(0.975, 3.5, 17.5)))
    every = stats.mean_interval(np.ones(20), level=0.9)
    assert (every.low, every.high) == (pytest.approx(beta.ppf(0.05, 20.5, 0.5)), 1.0)
    none = stats.mean_interval(np.zeros(20))
    assert (none.low, none.high) == (0.0, pytest.approx(beta.ppf(0.975, 0.5, 20.5)))


def test_a_group_of_equal_rows_counts_as_one_row_of_a_proportion() -> None:
    once = np.r_[np.ones(8), np.zeros(12)]
    found = stats.mean_interval(np.repeat(once, 5), np.repeat(np.arange(20), 5))
    assert found.n == 20
    plain = stats.mean_interval(once)
    assert found.low < plain.low
    assert found.high > plain.high
    # 100 rows over a design effect of the variances, and fewer by Korn and Graubard's correction for 20 groups.
    effective = 100 * (0.24 / 99) / (0.24 / 19) * (student.ppf(0.975, 99) / student.ppf(0.975, 19)) ** 2
    assert found.low == pytest.approx(beta.ppf(0.025, 0.4 * effective + 0.5, 0.6 * effective + 0.5))
    # Rows of a group that differ more than those of different groups do not count as more rows than there are.
    twins = stats.mean_interval(np.tile([0.0, 1.0], 20), np.repeat(np.arange(20), 2))
    rows = 40 * (student.ppf(0.975, 39) / student.ppf(0.975, 19)) ** 2
    assert (twins.low, twins.high) == pytest.approx(beta.ppf([0.025, 0.975], rows / 2 + 0.5, rows / 2 + 0.5))


def test_paired_correct_answers_have_agresti_and_mins_interval() -> None:
    a = np.r_[np.ones(9), np.zeros(11)]
    b = np.r_[np.zeros(7), np.ones(4), np.zeros(9)]  # 7 only a, 2 only b
    found = stats.paired_difference(a, b)
    p, q = 7.5 / 22, 2.5 / 22
    half = norm.ppf(0.975) * math.sqrt((p + q - (p - q) ** 2) / 22)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, p - q - half, p - q + half))
    never = stats.paired_difference(a, a)
    assert never.low < 0 == never.value < never.high  # equal answers to 20 questions do not show equal systems


@pytest.mark.parametrize(("n", "word"), [(1, "no interval"), (2, "no interval"), (3, "interval too narrow"),
                                         (14, "interval too narrow"), (15, "")])  # fmt: skip
def test_few_answers_have_no_interval_or_one_that_says_so(n: int, word: str) -> None:
    note = f"{word}: n = {n}" if word else ""
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=n), np.arange(n) % 2.0):
        for found in (stats.mean_interval(values), stats.paired_difference(values, np.zeros(n))):
            assert (found.n, found.note) == (n, note)
            assert math.isnan(found.low) == math.isnan(found.high) == (n < 3)


@pytest.mark.parametrize(("n", "enough"), [(2, False), (14, False), (15, True), (59, True), (60, True)])
def test_what_is_too_narrow_depends_on_the_method(n: int, enough: bool) -> None:
    values = np.random.default_rng(0).normal(size=n)
    assert stats.too_narrow(n) == (n > 2 and not enough)
    assert stats.bootstrap_interval(values, np.median, n=20).note.startswith("interval too narrow") == (3 <= n < 60)


def test_token_means_of_two_incorrect_answers_have_no_interval_there() -> None:
    found = stats.group_token_mean(np.random.default_rng(0).normal(size=(20, 1)), np.ones(20), np.arange(20) < 18)
    assert np.isfinite(found.correct.low).all()
    assert np.isnan([*found.incorrect.low, *found.difference.low]).all()
    assert (found.correct[0].n, found.incorrect[0].n, found.difference[0].n) == (18, 2, 2)
    assert found.difference[0].note == "no interval: n = 2"


COVERAGE = {
    "normal": (lambda rng, n: rng.normal(size=(n, 1500)), 0.0),
    "lognormal": (lambda rng, n: rng.lognormal(size=(n, 1500)), math.exp(0.5)),
    "proportion .1": (lambda rng, n: (rng.random((n, 1500)) < 0.1) * 1.0, 0.1),
    "proportion .3": (lambda rng, n: (rng.random((n, 1500)) < 0.3) * 1.0, 0.3),
}


@pytest.mark.parametrize("name", COVERAGE)
@pytest.mark.parametrize("n", [20, 60])
def test_intervals_hold_their_level_where_the_percentile_bootstrap_does_not(name: str, n: int) -> None:
    draw, truth = COVERAGE[name]
    data = draw(np.random.default_rng(11), n)
    found = stats.mean_intervals(data, n=600)
    held = ((found.low <= truth) & (truth <= found.high)).mean()
    # 1,500 samples: two standard errors are .011. benchmarks/interval_coverage.py has more of them.
    assert 0.92 <= held <= 0.98
    if n == 20 and name != "proportion .3":
        before = quantiles(np.concatenate([w @ data / n for w in draws(n, 600, 0)]), 0.95)
        assert ((before[0] <= truth) & (truth <= before[1])).mean() < held


def test_token_means_hold_their_level() -> None:
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(400):
        tokens, correct = rng.integers(1, 30, 20), np.arange(20) < 12
        value = rng.lognormal(0.0, 0.5, size=20)
        found = stats.group_token_mean(value, tokens, correct, n=400, permutations=1)
        held += bool(found.difference.low[0] <= 0 <= found.difference.high[0])
    assert 0.92 <= held / 400 <= 0.985


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


def test_sign_flips_are_counted_in_every_block_and_once_for_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "exitlens.stats.paired.BLOCK", 20 * 10
    )  # ten flips of twenty questions a block, the last shorter
    assert stats.sign_flip_p(np.zeros(20), n=95)[0] == 1.0
    # That all twenty signs of a random flip agree again happens twice in a million.
    assert stats.sign_flip_p(np.ones(20), n=99)[0] == 1 / 100


def test_one_resample_is_enough_and_rows_may_weigh_nothing() -> None:
    assert np.isfinite(stats.mean_interval(np.arange(5.0), n=1).low)
    weighed = stats.mean_intervals([1.0, 2.0, 3.0, 99.0], n=50, weights=[1, 1, 2, 0])
    assert weighed.value[0] == 9 / 4
    assert weighed.n[0] == 3
    with pytest.raises(InputError, match="not all 0"):
        stats.mean_intervals([1.0, 2.0], weights=[0, 0])
    with pytest.raises(InputError, match="got 2 from -1"):
        stats.mean_intervals([1.0, 2.0], weights=[-1, 1])


def test_bad_shapes_and_places_are_told() -> None:
    with pytest.raises(InputError, match=r"values has shape \[1, 1, 1\]: give \[n\] or \[n, k\]"):
        stats.mean_intervals(np.zeros((1, 1, 1)))
    with pytest.raises(InputError, match=r"values holds nan at \[1, 0\]"):
        stats.mean_intervals([[0.0, 1.0], [math.nan, 1.0]])
    with pytest.raises(InputError, match=r"values holds inf at 1:"):
        stats.mean_interval([0.0, math.inf])

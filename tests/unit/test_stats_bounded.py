"""Intervals of calibration error, area of risks and selective accuracy hold their level; percentiles did not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from exitlens import stats
from exitlens.stats.arrays import Array

KEPT = 0.8
# Slope of the true logits, slope and shift of those that are said.
CALIBRATED, SHIFTED = (2.0, 2.0, 0.0), (2.0, 2.0, 0.7)


def answers(rng: np.random.Generator, n: int, slope: float, said: float, shift: float) -> tuple[Array, Array]:
    z = rng.normal(size=n)
    return expit(said * z + shift), (rng.random(n) < expit(slope * z)).astype(np.float64)


def found(p: Array, y: Array, counts: stats.bootstrap.Counts) -> tuple[Array, Array, Array, Array]:
    error, noise = stats.weighted_ece_noise(p, y, counts)
    wrong = ((p > 0.5) != (y == 1)).astype(np.float64)
    area, risk = stats.weighted_risk(np.abs(p - 0.5), wrong, counts, [KEPT])
    return error, noise, area, 1 - risk[0]


@pytest.mark.parametrize("kind", [CALIBRATED, SHIFTED], ids=["calibrated", "shifted"])
@pytest.mark.parametrize("n", [60, 200])
def test_they_hold_their_level(n: int, kind: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(n)
    big = answers(rng, 500_000, *kind)
    true = [float(part[0]) for part in found(*big, np.ones((500_000, 1), np.float32)) if len(part)]
    held, percentiles = np.zeros(3), np.zeros(3)
    samples = 150
    for _ in range(samples):
        p, y = answers(rng, n, *kind)
        error, noise, area, share = found(p, y, stats.resample_counts(np.arange(n), 200, 0))
        made = [
            stats.calibration_error_interval(error, noise, n),
            stats.risk_area_interval(area, n),
            stats.share_interval(share, n, KEPT * n),
        ]
        held += [one.low <= value <= one.high for one, value in zip(made, true, strict=True)]
        plain = [stats.interval_of(one, n) for one in (error, area, share)]
        percentiles += [one.low <= value <= one.high for one, value in zip(plain, true, strict=True)]
    assert (held / samples >= 0.92).all(), held / samples
    assert (held[1:] / samples <= 0.995).all()
    assert percentiles[0] / samples < 0.75  # of an error that noise adds to


def test_what_is_certain_in_every_resample_is_not_certain() -> None:
    n = 20
    p, y = np.full(n, 0.9), np.ones(n)
    error, noise, area, share = found(p, y, stats.resample_counts(np.arange(n), 200, 0))
    assert stats.interval_of(area, n).high == 0
    assert stats.risk_area_interval(area, n).high == pytest.approx(1 - 0.025 ** (1 / n))
    least = stats.share_interval(share, n, KEPT * n)
    assert (least.value, least.high) == (1.0, 1.0)
    assert 0.8 < least.low < 0.95
    assert stats.calibration_error_interval(error, noise, n).value == pytest.approx(0.1)


@pytest.mark.parametrize("units", [1, 2])
def test_one_or_two_groups_have_none(units: int) -> None:
    groups = np.arange(12) % units
    p, y = answers(np.random.default_rng(0), 12, *CALIBRATED)
    error, noise, area, share = found(p, y, stats.resample_counts(groups, 50, 0))
    for one in (
        stats.calibration_error_interval(error, noise, units),
        stats.risk_area_interval(area, units),
        stats.share_interval(share, units, 9.6),
    ):
        assert np.isnan([one.low, one.high]).all()
        assert one.note == f"no interval: n = {units}"


def test_rows_of_one_group_count_together() -> None:
    """Four copies of each row say no more than one."""
    n = 50
    p, y = answers(np.random.default_rng(1), n, *SHIFTED)
    many, groups = (np.repeat(p, 4), np.repeat(y, 4)), np.repeat(np.arange(n), 4)
    once = found(p, y, stats.resample_counts(np.arange(n), 400, 0))
    four = found(*many, stats.resample_counts(groups, 400, 0))
    a, b = (stats.share_interval(one[3], n, KEPT * rows) for one, rows in ((once, n), (four, 4 * n)))
    assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.15)
    a, b = (stats.risk_area_interval(one[2], n) for one in (once, four))
    assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.15)


def test_the_noise_bounds_the_true_error_from_below() -> None:
    """Of each resample: its error lies within the noise of the data's."""
    p, y = answers(np.random.default_rng(2), 80, *SHIFTED)
    error, noise, *_ = found(p, y, stats.resample_counts(np.arange(80), 100, 0))
    assert (np.abs(error[1:] - error[0]) <= noise + 1e-12).all()
    assert error[0] == pytest.approx(stats.ece(p, y))


def test_without_resamples_there_is_none() -> None:
    p, y = answers(np.random.default_rng(0), 30, *CALIBRATED)
    error, noise, area, share = found(p, y, stats.resample_counts(np.arange(30), 0, 0))
    for one in (
        stats.calibration_error_interval(error, noise, 30),
        stats.risk_area_interval(area, 30),
        stats.share_interval(share, 30, 24.0),
    ):
        assert np.isfinite(one.value)
        assert np.isnan([one.low, one.high]).all()

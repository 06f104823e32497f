"""Intervals of statistics in 0..1 from their resamples, where percentiles are too narrow or lie beside the truth.

A share of rows kept (selective accuracy) has Jeffreys' interval with the rows that its bootstrap error is worth; an
area of risks (AURC) a Student interval on the logit scale; the calibration error one that knows that noise adds to it.
``benchmarks/interval_coverage.py`` simulates all three.
"""

from __future__ import annotations

import numpy as np

from exitlens.stats.arrays import Array, level_of
from exitlens.stats.bootstrap import MIN_UNITS, Interval
from exitlens.stats.ranking import logit_interval

__all__ = ["calibration_error_interval", "risk_area_interval", "share_interval"]


def share_interval(found: Array, units: int, rows: float, level: float = 0.95) -> Interval:
    """Interval of a share of ``rows`` rows, ``found [1 + b]``: of the data, then of resamples of ``units`` groups.

    As the intervals of proportions in :mod:`exitlens.stats.means`; the effective number of rows is what the bootstrap's
    variance says, ``p (1 − p) / var``, with Korn and Graubard's correction for few groups. NaN under three groups and
    without resamples.
    """
    from scipy.special import betaincinv, stdtrit

    value, error = _value_and_error(found, units)
    if np.isnan(error):
        return Interval(value, np.nan, np.nan, units)
    low, high = level_of(level)
    spread = value * (1 - value)
    # Where all rows are equal nothing is known of the groups: each then counts once.
    worth = spread / error**2 if spread > 0 and error > 0 else float(units)
    worth = min(worth * (stdtrit(max(rows - 1, 1), high) / stdtrit(units - 1, high)) ** 2, rows)
    ones, zeros = value * worth + 0.5, (1 - value) * worth + 0.5
    down = 0.0 if value == 0 else float(betaincinv(ones, zeros, low))
    up = 1.0 if value == 1 else float(betaincinv(ones, zeros, high))
    return Interval(value, min(down, value), max(up, value), units)


def risk_area_interval(found: Array, units: int, level: float = 0.95) -> Interval:
    """Interval of an area under risks ``found [1 + b]``, by its bootstrap error on the logit scale.

    Without an incorrect row the area is 0 in every resample: it is then at most the share of incorrect rows that
    ``units`` right ones leave possible, ``1 − (1 − level)/2 ^ (1 / units)`` (Clopper and Pearson), and so for 1.
    """
    value, error = _value_and_error(found, units)
    if np.isnan(error):
        return Interval(value, np.nan, np.nan, units)
    if not 0 < value < 1 or error == 0:
        room = 1 - level_of(level)[0] ** (1 / units)
        return Interval(value, max(0.0, value - room), min(1.0, value + room), units)
    ends = logit_interval(np.array([value]), np.array([error * _student(units, level)]), level)
    return Interval(value, float(ends[0][0]), float(ends[1][0]), units)


def calibration_error_interval(found: Array, noise: Array, units: int, level: float = 0.95) -> Interval:
    """Interval of an expected calibration error ``found [1 + b]`` that holds its level, and is wider than it need be.

    The error sums sizes of gaps, so noise adds to it: of 60 answers, perfectly calibrated ones show some .1, and every
    resample more. By the triangle inequality the true error is at least ``found − Σ_b |noise of bin b|``: the lower end
    takes the upper quantile of that noise over resamples; at the upper end the bias is on the safe side.

    Args:
        found: The error of the data, then of resamples ``[1 + b]``.
        noise: ``Σ_b |gap* − gap|`` of each resample ``[b]``, of :func:`~exitlens.stats.reliability.weighted_ece_noise`.
        units: Groups that were drawn.
        level: Share of samples whose interval holds the true value, at least.

    Returns:
        The error with its interval; NaN ends under three groups.
    """
    value, error = _value_and_error(found, units)
    if np.isnan(error):
        return Interval(value, np.nan, np.nan, units)
    from scipy.special import ndtri

    wide, q = _student(units, level), level_of(level)[1]
    low = value - wide * np.sqrt(units / (units - 1)) * float(np.quantile(noise, q))
    return Interval(value, max(0.0, low), min(1.0, value + wide * float(ndtri(q)) * error), units)


def _value_and_error(found: Array, units: int) -> tuple[float, float]:
    """The data's own value, and its bootstrap error with the small-sample factor; NaN of few groups or no resamples."""
    drawn = found[1:][~np.isnan(found[1:])]
    if len(drawn) < 2 or units < MIN_UNITS:
        return float(found[0]), float("nan")
    return float(found[0]), float(drawn.std(ddof=1) * np.sqrt(units / (units - 1)))


def _student(units: int, level: float) -> float:
    """Student's quantile for so many groups, in normal ones."""
    from scipy.special import ndtri, stdtrit

    q = level_of(level)[1]
    return float(stdtrit(units - 1, q) / ndtri(q))

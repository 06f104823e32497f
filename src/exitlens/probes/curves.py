"""Calibration and risk–coverage curves of predictions, with cluster-bootstrap intervals; means over seeds."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.probes.resample import _risk
from exitlens.stats.bootstrap import quantiles

__all__ = ["calibration_curve", "risk_curve"]

Column = NDArray[np.float64]


def calibration_curve(p: Tensor, y: Tensor, weights: Tensor, bins: int = 15) -> dict[str, Column]:
    """Columns confidence (mean P(true) of the bin), observed, observed_low, observed_high and n, of bins with rows.

    ``p [seeds, m]``, ``y [m]`` 0/1, ``weights [1 + resamples, m]`` of
    :func:`~exitlens.probes.resample.bootstrap_weights`.
    """
    place = (p.float() * bins).long().clamp(0, bins - 1)
    inside = torch.nn.functional.one_hot(place, bins).double().mean(0)
    mean_p = torch.zeros(bins, dtype=torch.float64).scatter_add_(0, place.flatten(), p.double().flatten()) / len(p)
    w = weights.double()
    rows = w @ inside
    share = (w @ (inside * y.double()[:, None])) / rows
    used = rows[0] > 0
    low, high = _band(share[:, used])
    return {
        "confidence": (mean_p[used] / rows[0, used]).numpy(),
        "observed": share[0, used].numpy(),
        "observed_low": low,
        "observed_high": high,
        "n": rows[0, used].numpy(),
    }


def risk_curve(p: Tensor, y: Tensor, weights: Tensor, points: int = 50) -> dict[str, Column]:
    """Columns coverage, risk, risk_low and risk_high: the error among the statements that ``p`` is surest of.

    Shapes as for :func:`calibration_curve`.
    """
    coverage = torch.linspace(1 / points, 1, points)
    total = weights.sum(1, keepdim=True)
    risks = []
    for one in p.float():
        wrong = ((one > 0.5).float() != y.float()).float()
        _, covered, errors = _risk((one - 0.5).abs(), wrong, weights)
        at = torch.searchsorted(covered, coverage * total - 1e-3).clamp_max(covered.shape[1] - 1)
        risks.append(errors.gather(1, at) / covered.gather(1, at).clamp_min(1e-12))
    risk = torch.stack(risks).mean(0).double()
    low, high = _band(risk)
    return {"coverage": coverage.double().numpy(), "risk": risk[0].numpy(), "risk_low": low, "risk_high": high}


def _band(values: Tensor, level: float = 0.95) -> tuple[Column, Column]:
    """Percentiles of the resamples ``values [1 + resamples, k]``; NaN where there are none."""
    if len(values) == 1:
        empty = np.full(values.shape[1], np.nan)
        return empty, empty
    # A resample may hold no row of a bin: it then says nothing about it.
    drawn = values[1:].double().numpy()
    if not np.isnan(drawn).any():
        low, high = quantiles(drawn, level)
        return np.asarray(low), np.asarray(high)
    tail = (1 - level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=0)
    return np.asarray(low), np.asarray(high)

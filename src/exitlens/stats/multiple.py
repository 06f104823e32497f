"""Corrections for testing many layers at once."""

from __future__ import annotations

import numpy as np

from exitlens.errors import InputError
from exitlens.stats.arrays import Array, Numbers

__all__ = ["benjamini_hochberg", "holm"]


def holm(p: Numbers) -> Array:
    """Holm's step-down adjusted p-values ``[m]``: the chance of any false claim stays below the level (Holm 1979).

    NaN (no test was possible) stays NaN and does not count. Raises InputError for a p outside 0..1.
    """
    given = _given(p)
    out = np.full_like(given, np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    scaled = given[order] * (len(order) - np.arange(len(order)))
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return out


def benjamini_hochberg(p: Numbers) -> Array:
    """Benjamini–Hochberg adjusted p-values ``[m]``: the expected share of false claims (Benjamini, Hochberg 1995).

    NaN stays NaN and does not count. Raises InputError for a p outside 0..1.
    """
    given = _given(p)
    out = np.full_like(given, np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    scaled = given[order] * len(order) / np.arange(1, len(order) + 1)
    out[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return out


def _given(p: Numbers) -> Array:
    given = np.asarray(p, dtype=np.float64)
    if given.ndim != 1:
        raise InputError(f"p-values have shape {list(given.shape)}: give [m]")
    outside = (given < 0) | (given > 1)
    if outside.any():
        raise InputError(f"p-value {given[outside][0]:g} is outside 0..1")
    return given

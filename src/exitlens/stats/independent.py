"""Two estimates that share no rows: their difference, from the interval of each."""

from __future__ import annotations

import math

from exitlens.stats.arrays import level_of
from exitlens.stats.bootstrap import Interval
from exitlens.stats.paired import Difference

__all__ = ["independent_difference"]


def independent_difference(a: Interval, b: Interval, level: float = 0.95) -> Difference:
    """``a − b`` of two independent estimates, with the interval that follows from theirs.

    MOVER (Zou and Donner 2008; for proportions Newcombe 1998): with ``d = a − b``, low is
    ``d − √((a − a_low)² + (b_high − b)²)``, high is ``d + √((a_high − a)² + (b − b_low)²)``. It keeps skewed intervals
    skewed. p is the normal one of the side that faces 0, so that ``p < 1 − level`` where the interval excludes 0.
    Estimates of the same rows are positively dependent as a rule; the interval is then too wide.

    Args:
        a: First estimate.
        b: Second estimate.
        level: Level of both intervals and of the result.

    Returns:
        The difference; interval and p are NaN where one of the two has none. ``n`` is the smaller one's.

    Raises:
        InputError: ``level`` is not between 0 and 1.
    """
    from scipy.special import ndtr, ndtri

    gap = a.value - b.value
    down = math.hypot(a.value - a.low, b.high - b.value)
    up = math.hypot(a.high - a.value, b.value - b.low)
    p = math.nan
    if not math.isnan(down + up + gap):
        error = (down if gap > 0 else up) / float(ndtri(level_of(level)[1]))
        p = 2.0 * float(ndtr(-abs(gap) / error)) if error > 0 else float(gap == 0)
    return Difference(gap, gap - down, gap + up, p, min(a.n, b.n))

"""Arrays that statistics take, checked once: float64, no NaN, one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from exitlens.errors import InputError

__all__ = [
    "BLOCK",
    "Array",
    "Column",
    "Numbers",
    "check_count",
    "codes",
    "columns",
    "flags",
    "level_of",
    "numbers",
    "positive_weights",
    "sum_by",
]

Array: TypeAlias = NDArray[np.float64]


@runtime_checkable
class Column(Protocol):
    """What numpy reads as an array, such as a column of a pandas table."""

    def __array__(self) -> NDArray[Any]: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


Numbers: TypeAlias = NDArray[Any] | Sequence[Any] | Column

# Numbers that a block of resamples or permutations may hold: 32 MiB, whatever the number of rows.
BLOCK = 1 << 22


def numbers(values: Numbers, what: str, *, ndim: tuple[int, ...] = (1, 2)) -> Array:
    """``values`` as float64 ``[n, ...]``; raises InputError for no rows, other dimensions, NaN or infinity."""
    try:
        out = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be numbers, got {str(values)[:60]!r}") from error
    if out.ndim not in ndim:
        wanted = " or ".join("[n]" if k == 1 else f"[n{', k' * (k - 1)}]" for k in ndim)
        raise InputError(f"{what} has shape {list(out.shape)}: give {wanted}")
    if out.shape[0] == 0:
        raise InputError(f"{what} is empty: at least one row is needed")
    bad = ~np.isfinite(out)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        place = where[0] if len(where) == 1 else list(where)
        raise InputError(f"{what} holds {out[where]} at {place}: drop such rows first")
    return out


def columns(values: Numbers, what: str) -> Array:
    """``values`` as ``[n, k]``; ``[n]`` becomes one column."""
    out = numbers(values, what)
    return out[:, None] if out.ndim == 1 else out


def flags(values: Numbers, n: int, what: str) -> NDArray[np.bool_]:
    """``values`` as ``n`` booleans; raises InputError for anything but True/False or 0/1."""
    given = np.asarray(values)
    if given.ndim != 1 or len(given) != n:
        raise InputError(f"{what} has shape {list(given.shape)} for {n} rows: give one 0/1 a row")
    if given.dtype == np.bool_:
        return given
    ok = np.array([value in (0, 1) for value in given.tolist()], dtype=bool)
    if not ok.all():
        raise InputError(f"{what} holds {given[~ok].tolist()[0]!r}: only 0 and 1 (or False and True) are labels")
    return given.astype(bool)


def codes(groups: Numbers | None, n: int) -> tuple[NDArray[np.int64], int]:
    """Group of every row as 0..k-1, and k. None: each row is its own group."""
    if groups is None:
        return np.arange(n, dtype=np.int64), n
    given = np.asarray(groups)
    if given.ndim != 1 or len(given) != n:
        raise InputError(f"groups has shape {list(given.shape)} for {n} rows: give one group a row")
    names, inverse = np.unique(given, return_inverse=True)
    return inverse.astype(np.int64), len(names)


def check_count(n: int, what: str = "resamples", usual: int = 2000) -> None:
    """InputError when fewer than one resample or permutation is asked for."""
    if n < 1:
        raise InputError(f"{n} {what} are too few: ask for at least 1 ({usual} is usual)")


def positive_weights(weights: Numbers | None, n: int, *, zero: bool) -> Array:
    """Weights ``[n]`` (None: ones); InputError unless all are above 0, or with ``zero`` at least 0 and not all 0."""
    if weights is None:
        return np.ones(n)
    out = numbers(weights, "weights", ndim=(1,))
    low = out.min()
    if len(out) != n or low < 0 or (out.sum() == 0 if zero else low == 0):
        wanted = "numbers ≥ 0 that are not all 0" if zero else "numbers above 0"
        raise InputError(f"weights need {n} {wanted}, got {len(out)} from {low:g}")
    return out


def sum_by(group: NDArray[np.int64], data: Array, units: int) -> Array:
    """Sums of the rows of ``data [n, k]`` that share a group ``[n]`` (0..units-1) → ``[units, k]``."""
    out = np.zeros((units, data.shape[1]))
    np.add.at(out, group, data)
    return out


def level_of(level: float) -> tuple[float, float]:
    """The quantiles ``(α/2, 1 − α/2)`` of an interval of ``level`` 1 − α. InputError unless ``0 < level < 1``."""
    if not 0 < level < 1:
        raise InputError(f"level {level!r} is not between 0 and 1: use for example 0.95")
    return (1 - level) / 2, (1 + level) / 2

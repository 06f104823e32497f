"""What a chapter offers to be compared with other runs: headline numbers with what they rest on, and curves.

A number says what it is (``name``) and of what (``of``: judge, lens, decoder): numbers of two runs that agree in both
are compared. ``units`` are the questions whose mean it is, so that two runs can be paired question by question.
:func:`table_numbers` and :func:`table_curves` read both off a table whose values have intervals; a chapter with tables
of its own shape makes them itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pandas import DataFrame

from exitlens.report.frames import Row, groups, rows
from exitlens.report.text import is_number, to_float

__all__ = ["Curve", "Number", "Unit", "curve", "interval", "labels", "table_curves", "table_numbers", "whole"]

_MOST_ROWS = 40  # a table with more holds no headlines


@dataclass(frozen=True, slots=True)
class Unit:
    """A question that a number rests on. Two runs share it where id and text are equal.

    ``value``: what the number is the mean of. ``answer``: what was answered, where ``value`` is 1 (correct) or 0.
    """

    id: str
    text: str
    value: float
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """A headline number of a run.

    Args:
        name: What is measured, as the table of the comparison shows it.
        value: The number; NaN: the mean of ``units``.
        low: Lower end of its 95% interval, NaN where there is none.
        high: Upper end.
        n: How many ``counted`` it rests on.
        counted: What ``n`` counts.
        of: Judge, lens, decoder and whatever else it depends on, by name.
        unit: Its unit; empty for shares.
        units: The questions whose mean it is; empty where it is no mean over questions.
        main: The first of its kind in the run: compared with the other run's first where ``of`` differs.
        remark: What must stand beside it.
    """

    name: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    counted: str = "questions"
    of: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""
    units: Sequence[Unit] = ()
    main: bool = False
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a run; lines of several runs with one ``name`` and ``of`` are drawn into one panel.

    ``axis``: ``layer``, or what ``x`` is. ``of`` and ``main`` as in :class:`Number`.
    """

    name: str
    x: Sequence[float]
    value: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    of: Mapping[str, str] = field(default_factory=dict)
    axis: str = "layer"
    unit: str = ""
    main: bool = False


def interval(row: Row, name: str) -> tuple[float, float, float]:
    """Value, lower and upper end of a column with an interval, as :class:`Number` takes them."""
    return to_float(row.get(name)), to_float(row.get(f"{name}_low")), to_float(row.get(f"{name}_high"))


def whole(row: Row, name: str) -> int:
    """A count of the row, 0 where it is missing."""
    return int(to_float(row[name])) if is_number(row.get(name)) else 0


def labels(row: Row, names: Iterable[str]) -> dict[str, str]:
    """The columns ``names`` of a row that hold something, as ``of``."""
    found = {name: row.get(name) for name in names}
    return {name: str(value) for name, value in found.items() if value is not None and value == value}


def table_numbers(frame: DataFrame | None) -> list[Number]:
    """Every value of a small table that has an interval (``x``, ``x_low``, ``x_high``), by the table's texts."""
    if frame is None or "layer" in frame or len(frame) > _MOST_ROWS:
        return []
    return [
        Number(
            name.replace("_", " "),
            *interval(row, name),
            n=whole(row, "n"),
            of=labels(row, _texts(frame)),
            main=place == 0,
        )
        for place, row in enumerate(rows(frame))
        for name in _values(frame)
        if is_number(row.get(name))
    ]


def table_curves(frame: DataFrame | None) -> list[Curve]:
    """A curve by layer of every value of a table that has an interval, one for each combination of its texts."""
    if frame is None or "layer" not in frame:
        return []
    names = _texts(frame)
    lines = groups(({**row, "_of": tuple(labels(row, names).items())} for row in rows(frame)), "_of")
    return [
        curve(name.replace("_", " "), items, "layer", name, of=dict(of), main=place == 0)
        for place, (of, items) in enumerate(lines.items())
        for name in _values(frame)
    ]


def curve(
    name: str,
    items: Iterable[Row],
    x: str,
    value: str,
    *,
    of: Mapping[str, str],
    low: str = "",
    high: str = "",
    axis: str = "layer",
    unit: str = "",
    main: bool = False,
) -> Curve:
    """A curve of the rows that have both a place ``x`` and a ``value``, from left to right.

    Args:
        name: What it shows.
        items: Rows of a table.
        x: Column of the place.
        value: Column of the value.
        of: What it is of: judge, lens, policy.
        low: Column of the interval's lower end; by default ``value_low``.
        high: Column of its upper end; by default ``value_high``.
        axis: What the places are.
        unit: Of the values.
        main: Whether it is the study's main curve.

    Returns:
        The curve.
    """
    kept = [row for row in items if is_number(row.get(x)) and is_number(row.get(value))]
    kept.sort(key=lambda row: to_float(row[x]))
    columns = (x, value, low or f"{value}_low", high or f"{value}_high")
    places, values, lows, highs = ([to_float(row.get(column)) for row in kept] for column in columns)
    return Curve(name, places, values, lows, highs, of, axis, unit, main)


def _values(frame: DataFrame) -> list[str]:
    return [str(name) for name in frame if f"{name}_low" in frame and f"{name}_high" in frame]


def _texts(frame: DataFrame) -> list[str]:
    return [str(name) for name in frame if frame[name].dtype.kind == "O" or str(frame[name].dtype) in ("str", "string")]

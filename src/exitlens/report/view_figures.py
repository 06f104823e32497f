"""Figures of a view, declared: what stands on which axis of which table. The component draws and computes nothing.

``$key`` stands for the column that a switch has in force, ``{column}`` in texts for the value of the first row shown
(in ``label``: of the row itself), ``{$key}`` for what the switch says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pandas import DataFrame

from exitlens.report.view_data import View, columns_of, view
from exitlens.report.view_kinds import lacks

__all__ = ["Figure", "Slider", "Switch", "figures_meta", "tables_view"]


@dataclass(frozen=True, slots=True)
class Switch:
    """A choice for the reader: a value of the column ``key``, or one of ``options`` (value, label).

    ``where``: only values of rows that fit other switches. ``without``: values that are not offered.
    """

    key: str
    label: str
    table: str | None = None
    where: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] | None = None
    without: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure over the rows of ``table`` whose columns ``where`` are as the switches of these names say.

    In ``where``, ``=column`` means: as in the row that the slider is at. ``only``: values that columns have. Lines: one
    for each value of ``by``, or the columns of ``lines`` (column, label) over ``x``; bars: ``y`` of each row, called
    ``label``; matrix: ``y`` by ``x`` (down) and ``by`` (across). Intervals are the columns ``y_low`` and ``y_high``, or
    ``low`` and ``high``. ``flat``: rows without ``x`` are lines across. ``refs``: lines at a value, with a label, and
    the columns of a switch for which they hold. ``marks``: points with a label; with them a click moves the slider, and
    rows that ``without`` names (values of ``by``) are points rather than lines. ``log``: values go up by decades.
    ``pick``: a click sets this key of the state to the point's ``x``.
    """

    type: Literal["line", "bar", "matrix"]
    name: str
    title: str
    table: str
    x: str
    y: str
    by: str | None = None
    where: tuple[str, ...] = ()
    only: Mapping[str, Any] | None = None
    lines: tuple[tuple[str, str], ...] | None = None
    low: str | None = None
    high: str | None = None
    label: str | None = None
    note: str | None = None
    xLabel: str | None = None
    yLabel: str | None = None
    range: tuple[float, float] | None = None
    domain: tuple[float, float] | None = None
    height: int | None = None
    refs: tuple[tuple[Any, ...], ...] | None = None
    flat: bool = False
    diagonal: str | None = None
    marks: tuple[tuple[float, float, str], ...] | None = None
    without: tuple[str, ...] | None = None
    pick: str | None = None
    signed: bool = False
    log: bool = False
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Slider:
    """Goes through the rows of a table in the order of a column; ``mark`` names a row, ``facts`` are its columns."""

    label: str
    table: str
    where: tuple[str, ...]
    order: str
    mark: str
    facts: tuple[tuple[str, str], ...]


def figures_meta(
    figures: Sequence[Figure], switches: Sequence[Switch] = (), slider: Slider | None = None, **more: Any
) -> dict[str, Any]:
    """``meta`` of a view with these figures.

    Args:
        figures: In their order.
        switches: Choices for the reader, in their order.
        slider: Goes through the rows of a table.
        more: Further facts of the kind, as JSON knows them.

    Returns:
        A mapping of what JSON knows; fields that say nothing are left out.
    """
    made: dict[str, Any] = {
        "figures": [_plain(figure) for figure in figures],
        "switches": [_plain(switch) for switch in switches],
    }
    if slider is not None:
        made["slider"] = _plain(slider)
    return made | more


def tables_view(
    kind: str,
    tables: Mapping[str, DataFrame | None],
    figures: Sequence[Figure],
    *,
    title: str,
    caption: str = "",
    model: str = "",
    notes: Sequence[str] = (),
    switches: Sequence[Switch] = (),
    slider: Slider | None = None,
    arrays: Mapping[str, Any] | None = None,
    **more: Any,
) -> View:
    """A view of figures over whole tables; numbers stay as they are in the tables.

    Args:
        kind: Kind of the view.
        tables: By the names that figures use; None and tables without rows are left out.
        figures: What is drawn.
        title: Heading.
        caption: What a reader must know: model, judge, n.
        model: The model's name.
        notes: Remarks, a line each.
        switches: Choices for the reader.
        slider: A slider over rows.
        arrays: Further arrays.
        more: Further facts of the kind.

    Returns:
        The view.

    Raises:
        InputError: A column holds what no view can.
    """
    packed: dict[str, Any] = {}
    for name, frame in tables.items():
        if frame is not None and len(frame):
            packed |= columns_of(name, frame, [str(column) for column in frame.columns])
    packed |= arrays or {}
    meta = figures_meta(figures, switches, slider, **more)
    # A table of an older run may lack a column: the other figures are drawn, and a note says what is not.
    lacking = [(each["name"], lacks(each, packed, meta["switches"])) for each in meta["figures"]]
    meta["figures"] = [each for each, (_, missing) in zip(meta["figures"], lacking, strict=True) if not missing]
    notes = [*notes, *(f"There is no figure “{name}”: {missing} is missing." for name, missing in lacking if missing)]
    return view(kind, packed, title=title, caption=caption, model=model, notes=notes, meta=meta)


def _plain(record: Any) -> dict[str, Any]:
    """The fields that say something, as JSON knows them."""
    return {name: _listed(value) for name, value in asdict(record).items() if value not in (None, False, ())}


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if isinstance(value, tuple) else value

"""Figures of a comparison: differences to the first run, and the runs' curves on one axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from exitlens.report.figure_style import (
    INK,
    bottom_legend,
    drawing,
    layer_axis,
    new_figure,
    panels,
    percent,
    pick,
    short_number,
    title,
)
from exitlens.report.frames import Row, column, distinct, groups, rows
from exitlens.report.text import figure_text, is_number, shorten, to_float, wrap
from exitlens.report.words import LEVEL, excludes
from exitlens.studies.compare.analysis import DEPTH
from exitlens.studies.compare.match import capital, short_name

__all__ = ["curves", "differences", "significant"]

_DEPTH_LABEL = "depth (0%: embeddings, 100%: the model itself)"


def significant(row: Row) -> bool:
    """Whether a difference passes both: its 95% CI excludes 0, and p corrected over the table is below the level.

    Of few and skewed values one of the two alone can be passed by a single question.
    """
    return to_float(row.get("p_holm")) < LEVEL and excludes(row, "difference", 0.0)


@drawing
def differences(numbers: DataFrame, *, names: Sequence[str], note: str = "") -> Figure:
    """Difference of every run to the first, a line a number; filled: a significant one.

    Args:
        numbers: Rows of ``compare_numbers`` of one unit.
        names: All runs, in their order.
        note: A line below the title.

    Returns:
        The figure.
    """
    items = [row for row in rows(numbers) if is_number(row.get("difference")) and is_number(row.get("difference_low"))]
    lines = groups(({**row, "_line": (row["number"], row.get("_of"))} for row in items), "_line")
    labels = [_line_label(str(number), _panel_name(of, group)) for (number, of), group in lines.items()]
    heights = [max(1.9, 1.0 + label.count("\n")) for label in labels]
    figure = new_figure(0.16 * sum(heights) + 1.35)
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=0.8)
    others = [name for name in names[1:] if name in distinct(items, "run")]
    step = 0.9 / max(len(others), 1)
    places = [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]
    for place, group in zip(places, lines.values(), strict=True):
        for row in group:
            which = others.index(row["run"])
            look = pick(list(names).index(row["run"]))
            value = to_float(row["difference"])
            down, up = value - to_float(row["difference_low"]), to_float(row["difference_high"]) - value
            axes.errorbar(
                [value],
                [place + step * (which - (len(others) - 1) / 2)],
                xerr=[[max(down, 0.0)], [max(up, 0.0)]],
                fmt=look["marker"],
                color=look["color"],
                markersize=5,
                elinewidth=1.2,
                markerfacecolor=look["color"] if significant(row) else "#ffffff",
            )
    axes.set_yticks(places, labels, fontsize=8)
    engine = figure.get_layout_engine()
    if engine is not None:  # many lines of text are wider in a file than they are laid out on the screen's grid
        engine.set(w_pad=0.14)  # type: ignore[call-arg]
    axes.set_ylim(sum(heights), 0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter(short_number)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    reach = max((abs(limit) for limit in axes.get_xlim()), default=1.0)
    axes.set_xlim(-reach, reach)
    unit = str(items[0].get("unit") or "") if items else ""
    axes.set_xlabel("difference" + (f" ({unit})" if unit else ""))
    first = shorten(figure_text(names[0]), 40)
    if len(others) > 1:
        _legend(figure, others, names)
    heading = f"{shorten(figure_text(others[0]), 40)} minus {first}" if len(others) == 1 else f"Difference to {first}"
    title(figure, heading, f"{note} · filled: 95% CI excludes 0 and p < .05 (Holm)")
    return figure


def _line_label(number: str, of: str) -> str:
    """The number, and on lines below it what it is of."""
    lines = [wrap(figure_text(number), 46, 2), wrap(of, 46, 3)]
    return "\n".join(line for line in lines if line)


@drawing
def curves(lines: DataFrame, *, names: Sequence[str], note: str = "") -> Figure:
    """One curve of every run, a panel each for what it is of (judge, lens, policy), with bands of 95% CI.

    Args:
        lines: Rows of ``compare_curves`` of one curve.
        names: All runs, in their order.
        note: A line below the title.

    Returns:
        The figure.
    """
    items = rows(lines)
    parts = groups(items, "of")
    wide = 1 if len(parts) == 1 else 2
    figure, places = panels(len(parts), wide, 2.6 if wide == 1 else 2.1, extra=1.0, sharex=True, sharey=True)
    axis, unit = str(items[0].get("axis") or ""), str(items[0].get("unit") or "")
    for place, (axes, (of, mine)) in enumerate(zip(places, parts.items(), strict=True)):
        for name, points in groups(mine, "run").items():
            _line(axes, points, pick(list(names).index(str(name))))
        axes.set_title(wrap(_panel_name(of, mine), 46 if wide == 2 else 96, 2) or " ", fontsize=8.5)
        axes.grid(axis="y")
        if place % wide == 0:
            axes.set_ylabel(figure_text(unit))
        bottom = place + wide >= len(parts)
        if axis == "layer":
            layer_axis(axes, label=bottom)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
            axes.xaxis.set_major_formatter(percent)
            if bottom:
                axes.set_xlabel(_DEPTH_LABEL if axis == DEPTH else figure_text(axis))
    _legend(figure, [name for name in names if name in distinct(items, "run")], names)
    title(figure, f"{capital(figure_text(items[0]['curve']))}, by run", note)
    return figure


def _line(axes: Axes, points: Sequence[Row], look: dict[str, Any]) -> None:
    points = sorted(points, key=lambda row: to_float(row["x"]))
    x = column(points, "x")
    low, high = column(points, "value_low"), column(points, "value_high")
    if any(map(is_number, low)):
        axes.fill_between(x, low, high, color=look["color"], alpha=0.14, linewidth=0)
    axes.plot(x, column(points, "value"), markersize=3.2, markevery=max(len(x) // 8, 1), **look)


def _panel_name(of: object, points: Sequence[Row]) -> str:
    """What a panel or a line is of; where a run's own differs, that too."""
    own = {str(row["run"]): str(row["own"]) for row in points if row.get("own")}
    more = [f"{figure_text(run)}: {figure_text(short_name(name))}" for run, name in own.items()]
    return "; ".join(filter(None, (figure_text(short_name(str(of))), *more)))


def _legend(figure: Figure, names: Sequence[str], order: Sequence[str]) -> None:
    """Runs look the same in every figure: by their place in ``order``."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=shorten(figure_text(n), 36), **pick(list(order).index(n))) for n in names]
    bottom_legend(figure, handles, [str(handle.get_label()) for handle in handles])

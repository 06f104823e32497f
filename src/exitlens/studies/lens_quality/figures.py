"""Figures of the lens study: pass@k by set, and what each layer shows through each lens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas import DataFrame

from exitlens.report.figure_style import (
    INK,
    MUTED,
    drawing,
    layer_axis,
    new_figure,
    panels,
    percent,
    pick,
    short_number,
    title,
)
from exitlens.report.frames import Row, column, distinct, errors, groups, rows
from exitlens.report.text import figure_text, shorten, to_float

__all__ = ["by_layer", "by_set"]

_CURVES = (
    ("share", "concepts with rank ≤ {k}"),
    ("agreement", "top-1 token is layer N's"),
    ("kl", "KL to layer N (nats)"),
)


@drawing
def by_set(lenses: DataFrame, *, k: int, note: str = "") -> Figure:
    """Pass@k of every lens on every set with intervals; hollow: the concepts of other prompts; a bar: chance.

    Args:
        lenses: Table ``lenses``: set, lens, control, k, n, passed and shuffled with intervals, chance.
        k: Which of its numbers of ranks.
        note: A line below the title.

    Returns:
        The figure.
    """
    items = rows(lenses, k=k)
    sets, names = distinct(items, "set"), distinct(items, "lens")
    figure = new_figure(0.9 + 0.17 * len(sets) * (len(names) + 1))
    axes = figure.subplots()
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        mine = {row["set"]: row for row in items if row["lens"] == name}
        look = _look(mine[sets[0]], place)
        y = [at + (place - (len(names) - 1) / 2) * height for at, each in enumerate(sets) if each in mine]
        here = [mine[each] for each in sets if each in mine]
        for value, filled in (("shuffled", False), ("passed", True)):
            axes.errorbar(
                column(here, value),
                y,
                xerr=errors(here, value),
                fmt=look["marker"],
                color=look["color"],
                markerfacecolor=look["color"] if filled else "none",
                markersize=4.5 if filled else 3.5,
                elinewidth=1.1 if filled else 0.6,
                alpha=1.0 if filled else 0.55,
                label=shorten(figure_text(name), 40) if filled else None,
                zorder=3 if filled else 2,
            )
    for at, each in enumerate(sets):
        chance = next((to_float(row["chance"]) for row in items if row["set"] == each), float("nan"))
        label = "chance" if at == 0 else None
        axes.plot([chance, chance], [at - 0.46, at + 0.46], color=INK, linewidth=1.2, label=label, zorder=1)
    axes.plot([], [], "o", color=MUTED, markerfacecolor="none", markersize=3.5, label="other prompts' concepts")
    axes.set_yticks(range(len(sets)), [_set_label(items, each) for each in sets])
    axes.invert_yaxis()
    axes.set_xlim(left=min(-0.01, axes.get_xlim()[0]))
    axes.xaxis.set_major_formatter(percent)
    axes.set_xlabel(f"pass@{k}")
    axes.grid(axis="x")
    figure.legend(loc="outside lower center", ncols=4)
    title(figure, f"Concepts among the {k} tokens that rank first at some inner layer", note)
    return figure


@drawing
def by_layer(lenses_layers: DataFrame, *, note: str = "") -> Figure:
    """Share of concepts, agreement and KL by layer, a line a lens with its interval.

    ``lenses_layers`` columns: lens, layer, k, and share, agreement, kl with intervals.
    """
    items = rows(lenses_layers)
    k = int(to_float(items[0]["k"]))
    figure, places = panels(len(_CURVES), 3, 2.9, extra=0.9)
    last = max(int(row["layer"]) for row in items)
    for axes, (value, label) in zip(places, _CURVES, strict=True):
        for place, (name, mine) in enumerate(groups(items, "lens").items()):
            _line(axes, mine, value, _look(mine[0], place), shorten(figure_text(name), 40), last)
        axes.set_title(label.format(k=k))
        layer_axis(axes)
        if value != "kl":
            axes.yaxis.set_major_formatter(percent)
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(short_number)
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y")
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    title(figure, "What each layer shows at the token that is read", note)
    return figure


def _line(axes: Axes, items: Sequence[Row], value: str, look: dict[str, Any], name: str, last: int) -> None:
    mine = [row for row in items if value != "kl" or int(row["layer"]) < last]  # KL of layer N to itself is 0
    x = column(mine, "layer")
    axes.plot(x, column(mine, value), label=name, markersize=2.5, **{k: v for k, v in look.items() if k != "marker"})
    axes.fill_between(
        x, column(mine, f"{value}_low"), column(mine, f"{value}_high"), color=look["color"], alpha=0.15, linewidth=0
    )


def _look(row: Row, place: int) -> dict[str, Any]:
    """The control is grey in every figure, whichever lenses stand beside it."""
    if row.get("control") is True or row.get("lens") == "random-rotation":
        return {"color": MUTED, "marker": "X", "linestyle": (0, (1.5, 1.2))}
    return pick(place)


def _set_label(items: Sequence[Row], name: str) -> str:
    n = next(int(to_float(row["n"])) for row in items if row["set"] == name)
    text = "all prompts" if name == "all" else shorten(figure_text(name), 24)
    return f"{text}\nn = {n}"

"""Figures of the early-exit study: what is saved at what agreement, and where tokens exit."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from exitlens.report.figure_style import (
    BLUE,
    INK,
    MUTED,
    bottom_legend,
    drawing,
    layer_axis,
    narrow,
    new_figure,
    panels,
    percent,
    pick,
    title,
)
from exitlens.report.frames import Row, column, errors, groups, layers_of, rows
from exitlens.report.text import figure_text, is_number, shorten, to_float
from exitlens.report.words import counted, set_text

__all__ = ["exit_layers", "pareto"]

SAVINGS = {
    "flops_saved": "FLOPs saved, exit checks included",
    "layers_saved": "layers saved (mean a token)",
    "predicted_time": "predicted time (1 = the full model)",
}
# A policy looks the same in every figure, whichever others stand beside it.
POLICIES = ("probability", "margin", "entropy", "patience", "cosine", "classifier", "fixed", "never")


@drawing
def pareto(exits: DataFrame, *, cost: str = "flops_saved", note: str = "") -> Figure:
    """Agreement with the full model against what is saved: a Pareto curve a policy, the oracle as the bound.

    Every curve begins where nothing is saved and every token is the full model's, and goes on through the thresholds
    that no other of the same policy beats in both. Thresholds that cost more than they save are left out and counted.

    ``exits`` columns: policy, threshold, agreement, agreement_low, agreement_high, flops_saved (share), layers_saved,
    predicted_time. ``cost``: which of the last three is the x axis. The policy named ``oracle`` is the bound.
    """
    start = 1.0 if cost == "predicted_time" else 0.0
    sign = -1.0 if cost == "predicted_time" else 1.0  # by which a larger number is a larger saving
    figure = new_figure(5.0 if narrow() else 4.4)
    axes = figure.subplots()
    others, left, drawn = len(POLICIES), 0, 0
    for policy, items in groups(rows(exits), "policy").items():
        oracle = str(policy).lower().startswith("oracle")
        if oracle:
            look: dict[str, Any] = {"color": INK, "marker": "*", "linestyle": "-"}
        elif policy in POLICIES:
            look = pick(POLICIES.index(policy))
        else:
            look = pick(others)
            others += 1
        measured = [row for row in items if is_number(row.get(cost)) and is_number(row.get("agreement"))]
        saving = [row for row in measured if sign * (to_float(row.get(cost)) - start) > 0]
        left += sum(sign * (to_float(row.get(cost)) - start) < 0 for row in measured)
        front = _front(saving, cost, sign)
        if not front:
            continue
        drawn += not oracle
        if not oracle:
            down, up = errors(front, "agreement")
            x, y = column(front, cost), column(front, "agreement")
            axes.errorbar(x, y, yerr=[down, up], fmt="none", ecolor=look["color"], elinewidth=0.8, alpha=0.6)
        name = shorten(figure_text(policy), 40) + (" (upper bound)" if oracle else "")
        line = [start, *column(front, cost)], [1.0, *column(front, "agreement")]
        axes.plot(*line, label=name, linewidth=1.0 if oracle else 1.5, zorder=4 if oracle else 3, **look)
    if not drawn:
        axes.text(0.5, 0.3, "no threshold saves anything", transform=axes.transAxes, ha="center", color=MUTED)
    _scale(axes, cost, start)
    bottom_legend(figure)
    told = [note, _left_out(left)]
    title(figure, "What an early exit saves, at what agreement", " · ".join(filter(None, told)))
    return figure


def _left_out(count: int) -> str:
    if count == 0:
        return ""
    verb = "costs more than it saves and is" if count == 1 else "cost more than they save and are"
    return f"{counted(count, 'threshold')} {verb} left out"


def _front(items: list[Row], cost: str, sign: float) -> list[Row]:
    """The thresholds that none beats in both saving and agreement, by what they save."""
    out: list[Row] = []
    for row in sorted(items, key=lambda row: (-sign * to_float(row.get(cost)), -to_float(row.get("agreement")))):
        if not out or to_float(row.get("agreement")) > to_float(out[-1].get("agreement")):
            out.append(row)
    return out[::-1]


def _scale(axes: Axes, cost: str, start: float) -> None:
    """Axes that begin where nothing is saved; better is to the right in every version of the figure."""
    axes.set_xlabel(SAVINGS.get(cost, cost))
    axes.set_ylabel("agreement with the full model")
    axes.yaxis.set_major_formatter(percent)
    if cost != "predicted_time":
        axes.xaxis.set_major_formatter(percent)
    else:
        axes.invert_xaxis()
    axes.set_xlim(left=start)
    axes.set_ylim(min(axes.get_ylim()[0], 0.9), 1.01)
    axes.grid()


@drawing
def exit_layers(exits_layers: DataFrame, *, note: str = "") -> Figure:
    """Share of tokens that exit at each layer, a panel a policy and threshold.

    Columns: policy, threshold, layer, share.
    """
    items = [{**row, "_panel": (row.get("policy"), row.get("threshold"))} for row in rows(exits_layers)]
    systems = groups(items, "_panel")
    figure, places = panels(len(systems), 2, 1.6, extra=0.7, sharex=True, sharey=True)
    for place, (axes, ((policy, threshold), group)) in enumerate(zip(places, systems.items(), strict=False)):
        axes.bar(column(group, "layer"), column(group, "share"), width=0.8, color=BLUE)
        at = "" if to_float(threshold) != to_float(threshold) else f", threshold {set_text(threshold)}"
        axes.set_title(shorten(figure_text(policy), 30) + at)
        layer_axis(axes, label=place + 2 >= len(systems))
        axes.yaxis.set_major_formatter(percent)
        axes.grid(axis="y")
        if place % 2 == 0:
            axes.set_ylabel("share of tokens")
    if layers_of(items):
        places[0].set_xlim(-0.6, max(layers_of(items)) + 0.6)
    title(figure, "Layer at which tokens exit", note)
    return figure

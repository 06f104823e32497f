"""Figures of the early-exit study: what is saved at what agreement, and where tokens exit."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from pandas import DataFrame

from exitlens.report.figure_style import (
    BLUE,
    INK,
    MUTED,
    drawing,
    layer_axis,
    new_figure,
    panels,
    percent,
    pick,
    title,
)
from exitlens.report.frames import column, errors, groups, layers_of, rows
from exitlens.report.text import figure_text, shorten, to_float
from exitlens.report.words import set_text

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
    """Agreement with the full model against what is saved: a curve a policy, with intervals; the oracle as the bound.

    ``exits`` columns: policy, threshold, agreement, agreement_low, agreement_high, flops_saved (share), layers_saved,
    predicted_time. ``cost``: which of the last three is the x axis. The policy named ``oracle`` is the bound.
    """
    figure = new_figure(4.4)
    axes = figure.subplots()
    others = len(POLICIES)
    for policy, items in groups(rows(exits), "policy").items():
        items = sorted(items, key=lambda row: (to_float(row.get(cost)), -to_float(row.get("agreement"))))
        oracle = str(policy).lower().startswith("oracle")
        if oracle:
            look: dict[str, Any] = {"color": INK, "marker": "*", "linestyle": "-"}
        elif policy in POLICIES:
            look = pick(POLICIES.index(policy))
        else:
            look = pick(others)
            others += 1
        x, y = column(items, cost), column(items, "agreement")
        if not oracle:
            down, up = errors(items, "agreement")
            axes.errorbar(x, y, yerr=[down, up], fmt="none", ecolor=look["color"], elinewidth=0.8, alpha=0.6)
        name = shorten(figure_text(policy), 40) + (" (upper bound)" if oracle else "")
        axes.plot(x, y, label=name, linewidth=1.0 if oracle else 1.5, zorder=4 if oracle else 3, **look)
    axes.axvline(1.0 if cost == "predicted_time" else 0.0, color=MUTED, linewidth=0.8)
    axes.set_xlabel(SAVINGS.get(cost, cost))
    axes.set_ylabel("agreement with the full model")
    axes.yaxis.set_major_formatter(percent)
    if cost == "flops_saved":
        axes.xaxis.set_major_formatter(percent)
    if cost == "predicted_time":
        axes.invert_xaxis()  # better is to the right in every version of this figure
    axes.grid()
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3)
    title(figure, "What an early exit saves, at what agreement", note)
    return figure


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

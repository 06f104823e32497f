"""Figures of the decoding study: scores and paired differences of every decoder, and the layers they chose."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from exitlens.report.figure_style import BLUE, INK, MUTED, drawing, layer_axis, narrow, panels, short_number, title
from exitlens.report.frames import Row, column, distinct, errors, groups, layers_of, rows
from exitlens.report.text import figure_text, is_number, shorten, to_float
from exitlens.report.words import excludes

__all__ = ["differences", "layer_choices", "scores"]


@drawing
def scores(decoding: DataFrame, *, note: str = "") -> Figure:
    """Mean of every metric for every decoder with its interval; one panel for each metric, each on its own scale."""
    items = rows(decoding)
    figure, places, metrics, names = _panels(items)
    for axes, metric in zip(places, metrics, strict=False):
        for row in metrics[metric]:
            place, value = names.index(row.get("decoder")), to_float(row.get("mean"))
            low, high = to_float(row.get("low")), to_float(row.get("high"))
            axes.hlines(place, low, high, color=MUTED, linewidth=1.1)
            axes.plot([value], [place], "o", color=BLUE, markersize=5)
            axes.annotate(
                f"{value + 0.0:.3f}".replace("-0.000", "0.000").replace("-", "−"),
                (value, place),
                (0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=MUTED,
            )
    title(figure, "Scores by decoder: mean over questions, with intervals", note or _n(items))
    return figure


@drawing
def differences(decoding: DataFrame, *, note: str = "") -> Figure:
    """Difference of every decoder to the first, paired by question, with intervals and the zero line.

    Filled dots: the 95% CI excludes 0.
    """
    items = rows(decoding)
    first = items[0].get("decoder") if items else ""
    items = [row for row in items if is_number(row.get("difference")) and row.get("decoder") != first]
    figure, places, metrics, names = _panels(items)
    for axes, metric in zip(places, metrics, strict=False):
        axes.axvline(0, color=INK, linewidth=0.8)
        for row in metrics[metric]:
            place, value = names.index(row.get("decoder")), to_float(row["difference"])
            down, up = errors([row], "difference")
            axes.errorbar(
                [value],
                [place],
                xerr=[down, up],
                fmt="o",
                color=BLUE,
                markersize=5,
                elinewidth=1.2,
                markerfacecolor=BLUE if excludes(row, "difference", 0.0) else "#ffffff",
            )
        reach = max((abs(limit) for limit in axes.get_xlim()), default=1.0)
        axes.set_xlim(-reach, reach)
    heading = f"Difference to {figure_text(first)}, paired by question"
    title(figure, heading, (note + " · " if note else "") + "filled: the 95% CI excludes 0")
    return figure


def _panels(items: list[Row]) -> tuple[Figure, list[Axes], dict[str, list[Row]], list[object]]:
    metrics = {str(name): group for name, group in groups(items, "metric").items()}
    names = distinct(items, "decoder")
    figure, places = panels(len(metrics), 3, 0.27 * max(len(names), 2) + 0.62, extra=0.6, sharey=True)
    for axes, metric in zip(places, metrics, strict=False):
        axes.set_title(metric_name(metric))
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(short_number)
        axes.margins(x=0.12)
    if names:
        places[0].set_yticks(range(len(names)), [shorten(figure_text(name), 14 if narrow() else 30) for name in names])
        places[0].set_ylim(len(names) - 0.45, -0.75)
    return figure, places, metrics, names


def metric_name(metric: str) -> str:
    """A metric's name as readers know it: ``bleu_max`` → ``BLEU max``."""
    known = {"bleu": "BLEU", "rouge": "ROUGE-L", "rougel": "ROUGE-L", "bertscore": "BERTScore", "mc1": "MC1"}
    known |= {"mc2": "MC2", "mc3": "MC3"}
    return " ".join(known.get(part, part) for part in figure_text(metric).split("_"))


def _n(items: list[Row]) -> str:
    counts = distinct(items, "n")
    return "n = " + ", ".join(str(int(n)) for n in counts if is_number(n)) + " questions" if counts else ""


@drawing
def layer_choices(decoding_layers: DataFrame, *, note: str = "") -> Figure:
    """How often each decoder chose each early layer. Columns: decoder, layer, count (or ``share``)."""
    items = rows(decoding_layers)
    value = "share" if items and "share" in items[0] else "count"
    systems = groups(items, "decoder")
    figure, places = panels(len(systems), 2, 1.6, extra=0.7, sharex=True, sharey=True)
    for place, (axes, (name, group)) in enumerate(zip(places, systems.items(), strict=False)):
        axes.bar(column(group, "layer"), column(group, value), width=0.8, color=BLUE)
        axes.set_title(shorten(figure_text(name), 40))
        layer_axis(axes, label=place + 2 >= len(systems))
        axes.grid(axis="y")
        if place % 2 == 0:
            axes.set_ylabel("share of tokens" if value == "share" else "tokens")
    if layers_of(items):
        places[0].set_xlim(-0.6, max(layers_of(items)) + 0.6)
    title(figure, "Early layer chosen at each token", note)
    return figure

"""Figures of the entropy study: one panel for each judge, named in the panel's title with its number of answers."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from exitlens.report.figure_style import (
    BLUE,
    INK,
    MUTED,
    VERMILION,
    drawing,
    footnote,
    layer_axis,
    narrow,
    panels,
    title,
)
from exitlens.report.frames import Row, column, distinct, groups, rows
from exitlens.report.text import figure_text, is_number
from exitlens.studies.answers.judge_names import judge_legend, short_judges

__all__ = ["auroc", "difference", "means"]


def means(entropy_layers: DataFrame, *, estimator: str = "per-group", note: str = "") -> Figure:
    """Mean entropy (nats) by layer of the answers judged correct and incorrect, with bands of their intervals.

    ``entropy_layers``: the table of that name. ``estimator``: which rows; ``pooled-weights`` carries its warning.
    """
    warning = " · artefact: each group divided by the tokens of all answers" if estimator == "pooled-weights" else ""
    return _figure(
        entropy_layers,
        estimator,
        _means,
        "Mean entropy of the answer's tokens, by layer",
        f"estimator: {estimator}{warning}" + (f" · {note}" if note else ""),
        "entropy (nats)",
    )


def difference(entropy_layers: DataFrame, *, estimator: str = "per-group", note: str = "") -> Figure:
    """Entropy of incorrect answers minus that of correct ones by layer, with intervals and the zero line."""
    return _figure(
        entropy_layers,
        estimator,
        _difference,
        "Incorrect minus correct: difference of mean entropy, by layer",
        f"estimator: {estimator} · filled: p < .05 after Holm correction" + (f" · {note}" if note else ""),
        "difference (nats)",
    )


def auroc(entropy_layers: DataFrame, *, note: str = "") -> Figure:
    """How well a layer's entropy ranks incorrect above correct answers (AUROC), with intervals and the 0.5 line."""
    return _figure(
        entropy_layers,
        "per-group",
        _auroc,
        "Ranking incorrect above correct answers by a layer's entropy",
        "0.5: no better than chance" + (f" · {note}" if note else ""),
        "AUROC",
    )


@drawing
def _figure(
    frame: DataFrame, estimator: str, draw: Callable[[Axes, list[Row]], None], heading: str, note: str, unit: str
) -> Figure:
    judges = groups(rows(frame, estimator=estimator), "judge")
    short = short_judges(judges)
    columns = 1 if len(judges) <= 1 else 2
    figure, places = panels(len(judges), columns, 2.7 if columns == 1 else 2.3, extra=0.75, sharex=True, sharey=True)
    for place, (axes, (judge, items)) in enumerate(zip(places, judges.items(), strict=False)):
        items = sorted(items, key=lambda row: int(row["layer"]))
        draw(axes, items)
        size = f"{_n(items, 'n_correct')} correct, {_n(items, 'n_incorrect')} incorrect answers"
        name = figure_text(f"Judge: {short[judge]}")
        axes.set_title(f"{name}\n{size}", fontsize=8.5)
        layer_axis(axes, label=narrow() or place + columns >= len(judges))
        axes.grid(axis="y")
        if narrow() or place % columns == 0:
            axes.set_ylabel(unit)
        if place == 0 and axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
    footnote(figure, judge_legend(judges))
    title(figure, heading if judges else heading + ": no judged answers", note)
    return figure


def _n(items: list[Row], name: str) -> str:
    counts = [str(int(value)) for value in distinct(items, name) if is_number(value)]
    return "–".join(counts[:1] if len(counts) == 1 else [min(counts), max(counts)]) if counts else "?"


def _means(axes: Axes, items: list[Row]) -> None:
    layers = column(items, "layer")
    for name, colour, dash, marker in (("correct", BLUE, "-", "o"), ("incorrect", VERMILION, (0, (5, 1.5)), "s")):
        axes.fill_between(
            layers, column(items, f"{name}_low"), column(items, f"{name}_high"), color=colour, alpha=0.18, linewidth=0
        )
        axes.plot(
            layers,
            column(items, name),
            color=colour,
            linestyle=dash,
            marker=marker,
            markersize=3,
            markevery=max(len(layers) // 8, 1),
            label=f"{name} answers",
        )


def _difference(axes: Axes, items: list[Row]) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    _points(axes, items, "difference", "p_holm")


def _auroc(axes: Axes, items: list[Row]) -> None:
    axes.axhline(0.5, color=INK, linewidth=0.8)
    _points(axes, items, "auroc", None)


def _points(axes: Axes, items: list[Row], name: str, tested: str | None) -> None:
    """A dot a layer with its interval; hollow where the corrected p-value (when asked for) is 0.05 or more."""
    layers, values = column(items, "layer"), column(items, name)
    axes.vlines(layers, column(items, f"{name}_low"), column(items, f"{name}_high"), color=MUTED, linewidth=1.1)
    solid = [p < 0.05 for p in column(items, tested)] if tested is not None else [True] * len(items)
    for wanted in (True, False):
        here = [i for i, s in enumerate(solid) if s is wanted]
        axes.plot(
            [layers[i] for i in here],
            [values[i] for i in here],
            linestyle="none",
            marker="o",
            markersize=4.2,
            markeredgecolor=BLUE,
            markerfacecolor=BLUE if wanted else "#ffffff",
            markeredgewidth=1.0,
        )

"""Figures that judge probes beyond accuracy: calibration, risk against coverage, transfer between topics."""

from __future__ import annotations

from matplotlib.figure import Figure
from pandas import DataFrame

from exitlens.report.figure_style import DIVERGING, INK, bottom_legend, drawing, new_figure, on_colour, pick, title
from exitlens.report.frames import column, distinct, errors, groups, rows
from exitlens.report.text import figure_text, number_text, shorten, to_float

__all__ = ["calibration", "risk_coverage", "transfer"]

FEW = 10  # statements in a bin below which its share says nothing: its interval reaches from 0 to 1
NOISY = 0.1  # coverage below which a risk rests on so few statements that it must not set the scale


@drawing
def calibration(probe_calibration: DataFrame, *, note: str = "") -> Figure:
    """Reliability curve: the share that is true among statements given a probability, against that probability.

    Columns: kind, confidence (mean probability of the bin), observed, observed_low, observed_high, n. Bins of fewer
    than 10 statements are left out, and the figure says so.
    """
    figure = new_figure(5.0, 5.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, label="perfect")
    every = rows(probe_calibration)
    shown = [row for row in every if not to_float(row.get("n")) < FEW] or every
    if len(shown) < len(every):
        note = " · ".join(filter(None, [note, f"bins of {FEW} statements or more"]))
    for index, (kind, items) in enumerate(groups(shown, "kind").items()):
        items = sorted(items, key=lambda row: to_float(row["confidence"]))
        down, up = errors(items, "observed")
        axes.errorbar(
            column(items, "confidence"),
            column(items, "observed"),
            yerr=[down, up],
            elinewidth=0.9,
            label=shorten(figure_text(kind), 40),
            **pick(index),
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability given by the probe", ylabel="share that is true")
    axes.set_aspect("equal")
    axes.grid()
    bottom_legend(figure, columns=2)
    title(figure, "Calibration", note)
    return figure


@drawing
def risk_coverage(probe_risk: DataFrame, *, note: str = "") -> Figure:
    """Error among the statements that are answered, against the share answered (most confident first).

    Columns: kind, coverage, risk, risk_low, risk_high.
    """
    figure = new_figure(3.8)
    axes = figure.subplots()
    top = 0.0
    for index, (kind, items) in enumerate(groups(rows(probe_risk), "kind").items()):
        items = sorted(items, key=lambda row: to_float(row["coverage"]))
        look = pick(index)
        axes.fill_between(
            column(items, "coverage"),
            column(items, "risk_low"),
            column(items, "risk_high"),
            color=look["color"],
            alpha=0.1,
            linewidth=0,
        )
        settled = [row for row in items if to_float(row["coverage"]) >= NOISY] or items
        highs = [value for name in ("risk", "risk_high") for value in column(settled, name) if value == value]
        top = max([top, *highs])
        axes.plot(
            column(items, "coverage"),
            column(items, "risk"),
            label=shorten(figure_text(kind), 40),
            markevery=max(len(items) // 8, 1),
            **look,
        )
    axes.set(xlim=(0, 1), xlabel="coverage: share of statements answered", ylabel="risk: error among them")
    axes.set_ylim(0, 1.08 * top or 1.0)
    axes.grid(axis="y")
    bottom_legend(figure)
    title(figure, "Risk against coverage, the most confident first", note)
    return figure


@drawing
def transfer(probe_transfer: DataFrame, *, value: str = "accuracy", note: str = "") -> Figure:
    """Topic × topic matrix: trained on the row's topic, tested on the column's; white at chance (0.5).

    Columns: train_topic, test_topic, ``{value}``, n.
    """
    items = rows(probe_transfer)
    trained, tested = distinct(items, "train_topic"), distinct(items, "test_topic")
    figure = new_figure(0.36 * max(len(trained), 1) + 1.7, min(0.72 * max(len(tested), 1) + 2.0, 7.6))
    axes = figure.subplots()
    for row in items:
        number = to_float(row.get(value))
        x, y = tested.index(row.get("test_topic")), trained.index(row.get("train_topic"))
        colour = DIVERGING(number) if number == number else (0.9, 0.9, 0.9, 1.0)
        axes.fill_between([x - 0.48, x + 0.48], y - 0.47, y + 0.47, color=colour, linewidth=0)
        axes.text(x, y, number_text(number, 2), ha="center", va="center", fontsize=8, color=on_colour(colour[:3]))
    axes.set_xlim(-0.5, max(len(tested), 1) - 0.5)
    axes.set_ylim(max(len(trained), 1) - 0.5, -0.5)
    axes.set_xticks(
        range(len(tested)),
        [shorten(figure_text(name), 14) for name in tested],
        rotation=30,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(trained)), [shorten(figure_text(name), 24) for name in trained])
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("tested on")
    axes.set_ylabel("trained on")
    title(figure, f"{value.capitalize()} from topic to topic", note)
    return figure

"""Figures of the probe study: the original's table as dots, training curves, accuracy by layer."""

from __future__ import annotations

from matplotlib.figure import Figure
from pandas import DataFrame

from exitlens.report.figure_style import (
    BLUE,
    INK,
    MUTED,
    ORDER,
    VERMILION,
    bottom_legend,
    drawing,
    layer_axis,
    narrow,
    new_figure,
    panels,
    pick,
    title,
)
from exitlens.report.frames import Row, column, errors, groups, rows
from exitlens.report.text import figure_text, is_number, number_text, shorten, to_float

__all__ = ["accuracy_dots", "layer_curves", "method_name", "training_curves"]

CHANCE = 0.5


def method_name(row: Row) -> str:
    """``MLP, layer 16`` for a probe of one layer, the method alone otherwise."""
    layer = row.get("layer")
    name = figure_text(row.get("method"))
    return f"{name}, layer {int(to_float(layer))}" if is_number(layer) else name


@drawing
def accuracy_dots(probes: DataFrame, *, note: str = "") -> Figure:
    """Test accuracy of each method as a dot with its interval, one panel for each setting, with the chance line."""
    settings = groups(rows(probes), "setting")
    names = list(dict.fromkeys(method_name(row) for items in settings.values() for row in items))
    figure, places = panels(len(settings), 2, 0.27 * max(len(names), 2) + 0.6, extra=0.65, sharex=True, sharey=True)
    for axes, (setting, items) in zip(places, settings.items(), strict=False):
        axes.axvline(CHANCE, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.annotate(
            "chance",
            (CHANCE, 1.0),
            (3, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            fontsize=7.5,
            color=MUTED,
        )
        for row in items:
            trained = not str(row.get("method")).startswith("LM")
            place, value = names.index(method_name(row)), to_float(row.get("test_accuracy"))
            down, up = errors([row], "test_accuracy")
            axes.errorbar(
                [value],
                [place],
                xerr=[down, up],
                fmt="o" if trained else "s",
                markersize=5,
                capsize=0,
                color=BLUE if trained else VERMILION,
                markerfacecolor=BLUE if trained else "#ffffff",
            )
            axes.annotate(
                number_text(value, 2),
                (value + up[0], place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=MUTED,
            )
        axes.set_title(f"Setting: {figure_text(setting)}")
        axes.set_xlabel("test accuracy")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.16)
    if names:
        most = 20 if narrow() else 34
        places[0].set_yticks(range(len(names)), [shorten(name, most) for name in names])
        places[0].set_ylim(len(names) - 0.4, -0.9)
    title(
        figure,
        "Test accuracy by method",
        note or "round: probes on hidden states · square: the language model's own answer",
    )
    return figure


@drawing
def training_curves(probe_curves: DataFrame, *, note: str = "") -> Figure:
    """Training loss and accuracy by epoch, one line for each layer, one row of panels for each setting."""
    settings = groups(rows(probe_curves), "setting")
    figure, places = panels(2 * len(settings) or 2, 2, 2.0, extra=1.05, sharex=True)
    for number, (setting, items) in enumerate(settings.items()):
        for axes, name, unit in zip(
            places[2 * number : 2 * number + 2],
            ("train_loss", "train_accuracy"),
            ("training loss", "training accuracy"),
            strict=True,
        ):
            for index, (layer, line) in enumerate(sorted(groups(items, "layer").items())):
                line = sorted(line, key=lambda row: to_float(row["epoch"]))
                axes.plot(column(line, "epoch"), column(line, name), label=f"layer {int(layer)}", **pick(index))
            layer_axis(axes, label=False)
            axes.set_ylabel(unit)
            axes.set_title(f"Setting: {figure_text(setting)}")
            axes.grid(axis="y")
            if number == len(settings) - 1:
                axes.set_xlabel("epoch")
    if settings:
        bottom_legend(figure, columns=4)
    title(figure, "Training of the probes, after each epoch", note)
    return figure


@drawing
def layer_curves(probe_layers: DataFrame, *, value: str = "accuracy", note: str = "") -> Figure:
    """Accuracy (or ``auroc``) by layer for every kind of probe, with bands, floor, control, LM and chance lines.

    ``probe_layers`` columns: kind, role (``probe``, ``control``, ``floor``, ``lm``), layer (missing for a line that
    has no layer), n, ``{value}``, ``{value}_low``, ``{value}_high``.
    """
    figure = new_figure(4.0)
    axes = figure.subplots()
    axes.axhline(CHANCE, color=INK, linewidth=0.8, label="chance (0.5)")
    series = 0
    flat = 0
    for kind, items in groups(rows(probe_layers), "kind").items():
        name = shorten(figure_text(kind), 40)
        if all(not is_number(row.get("layer")) for row in items):
            height = to_float(items[0].get(value))
            if is_number(height):
                dash = ((0, (1, 1.4)), (0, (6, 2)), (0, (6, 2, 1, 2)))[flat % 3]
                # Three dashes are told apart in grey; of more lines each third has a colour of its own.
                colour = (MUTED, *ORDER[1:])[flat // 3 % len(ORDER)]
                axes.axhline(height, color=colour, linewidth=1.1, linestyle=dash, label=name)
                flat += 1
            continue
        items = sorted((row for row in items if is_number(row.get("layer"))), key=lambda row: to_float(row["layer"]))
        layers = column(items, "layer")
        control = items[0].get("role") == "control"
        look = {"color": MUTED, "marker": "x", "linestyle": "-"} if control else pick(series)
        series += not control
        axes.fill_between(
            layers,
            column(items, f"{value}_low"),
            column(items, f"{value}_high"),
            color=look["color"],
            alpha=0.14,
            linewidth=0,
        )
        axes.plot(
            layers,
            column(items, value),
            label=name,
            markevery=max(len(layers) // 8, 1),
            markersize=3.6,
            linewidth=1.0 if control else 1.6,
            **look,
        )
    layer_axis(axes)
    axes.set_ylabel("AUROC" if value == "auroc" else value)
    axes.grid(axis="y")
    bottom_legend(figure)
    title(figure, f"{'AUROC' if value == 'auroc' else value.capitalize()} by layer and kind of probe", note)
    return figure

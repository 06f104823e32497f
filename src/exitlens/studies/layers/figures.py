"""Figures of the layer study: what every layer would have answered to one question."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from pandas import DataFrame

from exitlens.report.figure_style import (
    BLUE,
    GRID,
    INK,
    MUTED,
    SEQUENTIAL,
    VERMILION,
    bottom_legend,
    drawing,
    end_labels,
    layer_axis,
    narrow,
    new_figure,
    on_colour,
    panels,
    percent,
    pick,
    title,
)
from exitlens.report.frames import Row, column, evenly, groups, layers_of, rows
from exitlens.report.text import figure_text, is_number, number_text, shorten, to_float, token_text, wrap

__all__ = ["accuracy_curves", "choice_bars", "choice_lines", "leader", "top_grid"]

MOST_CHOICES = 12
REST = "#a9b2bc"


@drawing
def accuracy_curves(layers_accuracy: DataFrame, *, note: str = "") -> Figure:
    """Share of questions where a correct choice ranks first, by layer: a line and band a lens, and the chance line.

    ``layers_accuracy``: the table of that name. Chance is the mean share of a question's choices that are correct.
    """
    items = rows(layers_accuracy)
    figure = new_figure(3.2)
    axes = figure.subplots()
    for index, (lens, line) in enumerate(groups(items, "lens").items()):
        line = sorted(line, key=lambda row: int(row["layer"]))
        look, at = pick(index), column(line, "layer")
        axes.fill_between(at, column(line, "low"), column(line, "high"), color=look["color"], alpha=0.14, linewidth=0)
        name = f"{shorten(figure_text(lens), 30)} lens"
        axes.plot(at, column(line, "accuracy"), label=name, markevery=max(len(at) // 8, 1), markersize=3.6, **look)
    chance = [value for value in column(items, "chance") if value == value]
    if chance:
        axes.axhline(chance[0], color=INK, linewidth=0.8, linestyle=(0, (3, 2)), label=f"chance ({chance[0]:.0%})")
    layer_axis(axes)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(percent)
    axes.set_ylabel("correct choice first")
    axes.grid(axis="y")
    bottom_legend(figure)
    title(figure, "How often the correct choice ranks first, by layer", note)
    return figure


@drawing
def choice_bars(
    layers: DataFrame,
    *,
    layers_shown: Sequence[int] | None = None,
    value: str = "share",
    note: str = "",
) -> Figure:
    """The six-panel figure: every choice at six layers, the correct choice marked, the one that leads named.

    ``layers``: the table of that name, rows of one question and one lens. ``value``: ``share`` (among the choices, so
    that no panel is empty) or ``probability`` (of the whole vocabulary, on a log axis, because early layers give all
    choices next to nothing). ``layers_shown``: which layers; default six, evenly spaced, the last one included.
    ``note`` is the line under the question (model, lens, rule).
    """
    items = rows(layers)
    choices = _choices(items)
    shown = list(layers_shown) if layers_shown is not None else evenly(layers_of(items), 6)
    names = [_choice_name(choice, correct, 14 if narrow() else 24) for choice, correct in choices]
    row = 0.32 if any("\n" in name for name in names) else 0.21
    tall = max(row * len(names) + 0.62, 1.2)
    columns = 2 if narrow() else 3  # a column's width has room for one panel beside the names
    figure, places = panels(len(shown), columns, tall, extra=1.1, sharex=True, sharey=True)
    known = [v for v in (to_float(r.get(value)) for r in items if r.get("layer") in shown) if v == v and v > 0]
    least = min(known, default=0.1) / 3 if value == "probability" else 0.0
    for axes, layer in zip(places, shown, strict=False):
        here = [row for row in items if int(row["layer"]) == layer]
        _bars(axes, here, choices, value, least)
        axes.set_yticks(range(len(choices)), names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_color(GRID)
    if shown:
        if value == "probability":
            places[0].set_xscale("log")
            places[0].set_xlim(least, max(known, default=1.0) * 12)  # the numbers stand behind the bars
        else:
            places[0].set_xlim(0, 1.18)
            places[0].set_xticks([0, 0.5, 1], ["0%", "50%", "100%"])
        places[0].invert_yaxis()
    for axes in places[-(columns - narrow()) :]:
        axes.set_xlabel("share among the choices" if value == "share" else "probability (log)")
    question = items[0].get("question", "") if items else "No layers recorded"
    title(figure, question, note)
    parts = {"correct choice (✓)": BLUE, "incorrect choice that leads": VERMILION, "other choices": REST}
    bottom_legend(figure, [Patch(color=colour) for colour in parts.values()], list(parts))
    return figure


def _bars(axes: Axes, items: Sequence[Row], choices: Sequence[tuple[str, bool]], value: str, least: float) -> None:
    """One layer: a bar a choice with its number, and above them who leads and what all choices have together."""
    here = {str(row["choice"]): to_float(row.get(value)) for row in items}
    values = [here.get(choice, float("nan")) for choice, _ in choices]
    first = leader(items, value)
    for place, ((choice, correct), v) in enumerate(zip(choices, values, strict=True)):
        colour = BLUE if correct else VERMILION if choice == first else REST
        length = v if v == v and v > least else least
        axes.barh(place, length, height=0.68, color=colour)
        label = number_text(v, 2) if v != v or v >= 0.005 else f"{v:.0e}".replace("e-0", "e-")
        axes.annotate(
            f"{v:.0%}" if value == "share" and v == v else label,
            (length, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=MUTED if colour == REST else colour,
        )
    layer = int(items[0]["layer"]) if items else 0
    mass = to_float(items[0].get("mass")) if items else float("nan")
    lines = [f"layer {layer}", "no choice leads" if first is None else f"{shorten(figure_text(first), 20)} leads"]
    if mass == mass:
        lines.append(f"all choices: probability {mass:.2g}")
    axes.set_title("\n".join(lines[:1]), pad=26, fontsize=8.5)
    axes.annotate(
        "\n".join(lines[1:]),
        (0.0, 1.0),
        (0, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        va="bottom",
        fontsize=7.5,
        linespacing=1.3,
        color=VERMILION if first is not None and not dict(choices).get(first, False) else MUTED,
    )


def leader(items: Sequence[Row], value: str = "share") -> str | None:
    """The choice that is ahead of every other in these rows of one layer; None where the first two are equal."""
    order = sorted((row for row in items if is_number(row.get(value))), key=lambda row: -to_float(row.get(value)))
    if not order or (len(order) > 1 and to_float(order[0].get(value)) == to_float(order[1].get(value))):
        return None
    return str(order[0]["choice"])


@drawing
def choice_lines(layers: DataFrame, *, value: str = "share", note: str = "") -> Figure:
    """Each choice's share by layer, the correct one thick and marked, the model's own incorrect answer in its colour.

    ``layers``: rows of one question and one lens. ``value``: ``share`` or ``probability``.
    """
    items = rows(layers)
    choices = _choices(items)
    figure = new_figure(3.3)
    axes = figure.subplots()
    last = max(layers_of(items), default=0)
    final = {str(r["choice"]): to_float(r.get(value)) for r in items if int(r["layer"]) == last}
    answer = max(final, key=lambda name: final[name], default=None)
    ends: list[tuple[float, str, str]] = []
    for choice, correct in choices:
        line = sorted((int(r["layer"]), to_float(r.get(value))) for r in items if str(r["choice"]) == choice)
        colour = BLUE if correct else VERMILION if choice == answer else REST
        strong = correct or choice == answer
        xs, ys = [x for x, _ in line], [y for _, y in line]
        axes.plot(
            xs,
            ys,
            color=colour,
            linewidth=2.2 if correct else 1.6 if strong else 1.0,
            linestyle="-" if correct or not strong else (0, (5, 1.5)),
            marker="o" if len(line) == 1 or correct else None,
            markersize=3.2,
            zorder=3 if strong else 2,
        )
        if ys and ys[-1] == ys[-1]:
            name = shorten(_choice_name(choice, correct).replace("\n", " "), 12 if narrow() else 26)
            ends.append((ys[-1], name, colour if strong else MUTED))
    layer_axis(axes)
    axes.set_ylim(0, 1.0 if value == "share" else None)
    axes.set_ylabel("share among the choices" if value == "share" else "probability")
    axes.grid(axis="y")
    end_labels(axes, ends, gap=0.075)
    title(figure, items[0].get("question", "") if items else "No layers recorded", note)
    return figure


@drawing
def top_grid(
    layers_top: DataFrame, *, question: str = "", note: str = "", ranks: int = 5, most_rows: int = 16
) -> Figure:
    """The top ``ranks`` next tokens of each layer as a grid, the last layer on top, shaded by probability.

    ``layers_top``: rows of one question and one lens. At most ``most_rows`` layers, evenly spaced.
    """
    ranks = min(ranks, 3) if narrow() else ranks  # what a column holds
    items = [row for row in rows(layers_top) if int(row["rank"]) < ranks]
    shown = evenly(layers_of(items), most_rows)
    figure = new_figure(0.235 * max(len(shown), 1) + 1.3)
    axes = figure.subplots()
    for row in items:
        if int(row["layer"]) not in shown:
            continue
        x, y = int(row["rank"]), shown.index(int(row["layer"]))
        probability = to_float(row.get("probability"))
        colour = SEQUENTIAL(0.0 if probability != probability else min(probability, 1.0))
        axes.fill_between([x, x + 0.97], y - 0.46, y + 0.46, color=colour, linewidth=0)
        ink = on_colour(colour[:3])
        token = figure_text(token_text(row.get("token")))
        token = shorten(token, (12 if "⟨" in token or token.isupper() else 15) - 4 * narrow())
        axes.text(x + 0.04, y, token, va="center", fontsize=8, color=ink)
        axes.text(
            x + 0.93,
            y,
            "<.01" if probability < 0.01 else number_text(probability, 2),
            va="center",
            ha="right",
            fontsize=7,
            color=ink,
        )
    widest = max((int(row["rank"]) for row in items), default=0) + 1
    axes.set_xlim(0, widest)
    axes.set_ylim(-0.55, max(len(shown), 1) - 0.45)
    axes.set_yticks(range(len(shown)), [str(layer) for layer in shown])
    axes.set_xticks([i + 0.48 for i in range(widest)], [_ordinal(i + 1) for i in range(widest)])
    axes.set_ylabel("layer")
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    title(figure, question or "Top next tokens by layer", note)
    return figure


def _ordinal(n: int) -> str:
    return {1: "top-1", 2: "2nd", 3: "3rd"}.get(n, f"{n}th")


def _choices(items: list[Row]) -> list[tuple[str, bool]]:
    """Choices in the source's order with whether each is correct; cut to a readable number, correct ones kept."""
    first = {str(name): bool(group[0].get("correct", False)) for name, group in groups(items, "choice").items()}
    all_of = list(first.items())
    if len(all_of) <= MOST_CHOICES:
        return all_of
    incorrect = [pair for pair in all_of if not pair[1]]
    keep = {name for name, _ in incorrect[: max(MOST_CHOICES - (len(all_of) - len(incorrect)), 1)]}
    return [pair for pair in all_of if pair[1] or pair[0] in keep]


def _choice_name(choice: str, correct: bool, width: int = 24) -> str:
    text = wrap(figure_text(choice), width, 2) or "∅"
    return f"✓ {text}" if correct else text

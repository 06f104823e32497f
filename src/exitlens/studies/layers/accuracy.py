"""What all questions together say: accuracy by layer as a sentence, a table and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from exitlens.report.chapter import Plate, Sheet
from exitlens.report.frames import Results, Row, groups, layers_of, rows
from exitlens.report.text import is_number, number_text, to_float, visible
from exitlens.report.words import counted, interval_reservation, join, layers_text, mark, share_text, units
from exitlens.studies.layers.figures import accuracy_curves

__all__ = ["accuracy_answer", "accuracy_figures", "accuracy_sheet"]

_CAPTION = "Share of questions where a correct choice ranks first, by layer, with 95% CI; dashed: drawing a choice."


def accuracy_answer(results: Results) -> str:
    """At which layers the correct choice ranks first more often than drawing a choice would; empty without accuracy."""
    lenses = groups(_known(results), "lens")
    if not lenses:
        return ""
    lens, items = next(iter(lenses.items()))
    items = sorted(items, key=lambda row: int(row["layer"]))
    last, n = items[-1], int(to_float(items[-1].get("n")))
    value = f"{_accuracy(last)} of {counted(n, 'question')}{interval_reservation(n)}"
    read = f"{visible(lens)} lens"
    if not is_number(last.get("low")):
        return (
            f"Too few questions to tell any layer from chance: at layer {int(last['layer'])} the correct choice ranks "
            f"first in {value} ({read}): ask more questions."
        )
    chance = f"chance ({share_text(last.get('chance'))})"
    above = [int(row["layer"]) for row in items if _beats_chance(row)]
    below = [layer for layer in layers_of(items) if layer not in above]
    if not above:
        one = "the one layer read does not rank"
        where = one if len(items) == 1 else f"none of {counted(len(items), 'layer')} ranks"
        return (
            f"Read with the {read}, {where} the correct choice first more often than {chance}: layer "
            f"{int(last['layer'])} ranks it first in {value}: do not read answers off the layers of this model on such "
            "questions."
        )
    if int(last["layer"]) not in above:
        best = max((row for row in items if _beats_chance(row)), key=lambda row: to_float(row.get("accuracy")))
        many = counted(len(items), "layer")
        return (
            f"Only {layers_text(above)} rank{'s' * (len(above) == 1)} the correct choice first more often than "
            f"{chance}, layer {int(best['layer'])} in {_accuracy(best)}; the last layer ranks it first in {value}, no "
            f"more than chance ({read}): do not rely on the best of {many}, it was chosen after looking."
        )
    head = ""
    if below:
        verb = "ranks" if len(below) == 1 else "rank"
        head = f"{layers_text(below).capitalize()} {verb} the correct choice first no more often than {chance}; "
    since = next(layer for layer in above if all(j in above for j in layers_of(items) if j >= layer))
    told = (
        f"layer {int(last['layer'])} ranks it first in {value}"
        if below
        else (
            f"Every layer read ranks the correct choice first more often than {chance}; layer "
            f"{int(last['layer'])} in {value}"
        )
    )
    advice = "any layer read" if not below else f"layer {since}" + (" on" if since != int(last["layer"]) else " only")
    return f"{head}{told} ({read}): read answers from {advice}."


def accuracy_sheet(results: Results) -> Sheet:
    """Accuracy of every lens at every layer."""
    body: list[list[object]] = [
        [
            int(row["layer"]),
            visible(row.get("lens")),
            _accuracy(row) + (mark(units(row)) if is_number(row.get("low")) else ""),
            share_text(row.get("chance")),
            number_text(row.get("correct_share")),
            number_text(row.get("mass")),
            int(to_float(row.get("n"))),
        ]
        for row in sorted(_known(results), key=lambda row: int(row["layer"]))
    ]
    headers = ["layer", "lens", "correct choice first", "chance", "share of correct choices", "mass of choices", "n"]
    return Sheet("Accuracy by layer, all questions", headers, body, "layers_accuracy", len(body) > 12)


def accuracy_figures(results: Results) -> Iterator[Plate]:
    """Accuracy by layer through every lens, where it was measured."""
    frame = results.frame("layers_accuracy")
    items = _known(results)
    if frame is None or not items:
        return
    lenses = join([visible(name) for name in groups(items, "lens")])
    n = max(int(to_float(row.get("n"))) for row in items)
    where = f"Model {results.model}, {lenses} lens, n = {counted(n, 'question')}."
    note = f"{results.model} · n = {counted(n, 'question')}"
    yield Plate("layers-accuracy", f"{_CAPTION} {where}", _CAPTION, partial(accuracy_curves, frame, note=note))


def _known(results: Results) -> Sequence[Row]:
    return [row for row in rows(results.frame("layers_accuracy")) if is_number(row.get("accuracy"))]


def _accuracy(row: Row) -> str:
    return share_text(row.get("accuracy"), row.get("low"), row.get("high"))


def _beats_chance(row: Row) -> bool:
    """Whether the interval lies above what drawing a choice reaches."""
    return to_float(row.get("low")) > to_float(row.get("chance"))

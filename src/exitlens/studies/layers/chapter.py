"""What the layer study tells: the questions picked, choice by choice and layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pandas import DataFrame

from exitlens.report.chapter import Chapter, Part, Plate, Sheet
from exitlens.report.comparable import Curve, Number
from exitlens.report.frames import Results, Row, distinct, evenly, groups, layers_of, rows, spread
from exitlens.report.text import Column, is_number, number_text, shorten, slug, to_float, token_text, visible
from exitlens.report.view_data import View
from exitlens.report.words import join, layers_text, units
from exitlens.studies.layers import attribution_chapter as attribution
from exitlens.studies.layers import figures as draw
from exitlens.studies.layers.accuracy import accuracy_answer, accuracy_figures, accuracy_sheet
from exitlens.studies.layers.attribution_views import attribution_views
from exitlens.studies.layers.compared import layer_curves, layer_numbers
from exitlens.studies.layers.views import run_views

__all__ = ["LayersChapter"]


class LayersChapter(Chapter):
    """Tables, sentences and figures of the layer study."""

    title = "What each layer would have answered"
    question = "If the model had to answer at an inner layer, which of the choices would it give, from which layer on?"
    how = (
        "At every layer j the residual stream is read out to a distribution over the vocabulary: lens raw is W·h, "
        "lens logit is W·norm(h); at the last layer both are the model itself. Rule first-token compares choices "
        "by their first distinguishing token, summed over its spellings (case, leading space) that begin the text "
        "after the prompt and that no other choice could claim. Where choices share a beginning, or the token is a "
        "part of a word, nothing is added. The table's column spellings names the tokens. Rule sequence compares "
        "the probability of the whole choice. Share is the probability divided by the sum over the choices; mass is "
        "what all choices together have of the vocabulary's probability. Accuracy is the share of all questions where "
        "a correct choice ranks first; chance is the mean share of a question's choices that are correct. The "
        "questions shown one by one were picked by the program as "
        "the most interesting correct and incorrect answers, so they illustrate and prove nothing. " + attribution.HOW
    )
    stages = ("attribution",)
    own = ("layers", "layers_accuracy", "layers_picks", "layers_top", "attribution_means")

    def answer(self, results: Results) -> str:
        """At which layers the correct choice ranks first more often than chance, over all questions."""
        return accuracy_answer(results)

    def headline(self, results: Results) -> list[str]:
        """For each question picked: which choice ranks first, how much all have, and since when it leads."""
        found = [_finding(results, pick, rows(mine)) for pick, mine in _picked(results) if "answer" in pick]
        return found + attribution.attribution_findings(results)

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """Accuracy by layer through the first lens; which components separate correct from incorrect choices."""
        frame = results.frame("layers_accuracy")
        if frame is None:
            return []
        lens = frame["lens"].iloc[0]
        items = sorted(rows(frame, lens=lens), key=lambda row: int(row["layer"]))
        items = items if whole else spread(items, 7)
        names = ("n", "accuracy", "low", "high", "correct_share", "mass")
        heads = ("correct choice first", "low", "high", "share of the correct choices", "mass of all choices")
        columns: list[Column | str] = [Column("layer", "d"), "questions", *(Column(head, ".3f") for head in heads)]
        body = [[int(row["layer"]), *(row[name] for name in names)] for row in items]
        accuracy = Part(f"{lens} lens", columns, body, n=[units(row) for row in items])
        return [accuracy, *attribution.attribution_part(results, whole)]

    def tables(self, results: Results) -> list[Sheet]:
        """Accuracy by layer; for each question picked choice × layer, and the top-1 token; what each block adds."""
        out: list[Sheet] = [accuracy_sheet(results)] if "layers_accuracy" in results else []
        for pick, mine in _picked(results):
            out += _sheets(results, pick, rows(mine))
        return out + attribution.attribution_sheets(results)

    def figures(self, results: Results) -> list[Plate]:
        """Accuracy by layer; for each question picked bars at six layers, shares, top tokens; what each block adds."""
        seen: dict[str, int] = {}
        out: list[Plate] = [*accuracy_figures(results)]
        for pick, mine in _picked(results):
            verdict = visible(pick["verdict"])
            seen[verdict] = seen.get(verdict, 0) + 1
            tag = slug(verdict) + (f"-{seen[verdict]}" if seen[verdict] > 1 else "")
            out += _plates(results, pick, mine, tag)
        return [*out, *attribution.attribution_plates(results)]

    def views(self, results: Results) -> list[View]:
        """See :mod:`exitlens.studies.layers.views`."""
        return [*run_views(results), *attribution_views(results)]

    def numbers(self, results: Results) -> list[Number]:
        """Whether a correct choice ranks first, at the last layer and over layers."""
        return layer_numbers(results)

    def curves(self, results: Results) -> list[Curve]:
        """Accuracy by layer."""
        return layer_curves(results)


def _picked(results: Results) -> Iterator[tuple[Row, DataFrame]]:
    """Each pick with its lens set, and its rows of ``layers``; without picks, the first two questions."""
    frame = results.frame("layers")
    if frame is None:
        return
    picks = results.rows("layers_picks") or [
        {"question_id": key, "verdict": "question"} for key in distinct(rows(frame), "question_id")[:2]
    ]
    for pick in picks:
        mine = frame[frame["question_id"] == pick["question_id"]]
        if len(mine):
            lens = pick.get("lens") or mine["lens"].iloc[0]
            yield {**pick, "lens": lens}, mine[mine["lens"] == lens]


def _finding(results: Results, pick: Row, items: Sequence[Row]) -> str:
    answer, correct = _quoted(pick.get("answer")), _quoted(pick.get("correct_choice"))
    is_correct = pick.get("verdict") == "correct"
    verdict = "correct" if is_correct else f"incorrect: the correct choice is “{correct}”"
    text = f"“{_quoted(pick.get('question'))}”: “{answer}” ranks first among the choices ({verdict})"
    text += _beside(results, pick, items)
    leaders = {layer: _leader(items, layer) for layer in layers_of(items)}
    since = _since(sorted(leaders), {layer for layer, (name, _) in leaders.items() if name == str(pick.get("answer"))})
    if since is not None:
        text += f"\nRead with the {pick['lens']} lens, this choice leads the others from layer {since} on."
    if not is_correct and leaders:
        led = [layer for layer, (_, truth) in leaders.items() if truth]
        text += f" The correct choice leads at {layers_text(led) if led else 'no layer'}."
    return text


def _quoted(text: object) -> str:
    """A text of the data in a sentence or caption: whole ones stand in the tables."""
    return shorten(visible(text), attribution.QUOTED)


def _beside(results: Results, pick: Row, items: Sequence[Row]) -> str:
    """What ranking first is worth: the mass of all choices at the last layer, and the model's own top-1 token there."""
    last = [row for row in items if int(row["layer"]) == max(layers_of(items))]
    mass = last[0].get("mass") if last else None
    text = f"; all choices together have {to_float(mass):.2g} of the probability." if is_number(mass) else "."
    top = results.rows("layers_top", question_id=pick["question_id"], lens=pick["lens"], rank=0)
    best = max(top, key=lambda row: int(row["layer"]), default=None)
    if best is None:
        return text
    own = f"“{token_text(best.get('token'))}” ({number_text(best.get('probability'), 2)})"
    return f"{text} The model's own top-1 token is {own}."


def _leader(items: Sequence[Row], layer: int) -> tuple[str, bool]:
    here = [row for row in items if int(row["layer"]) == layer and is_number(row.get("share"))]
    if not here:
        return "", False
    best = max(here, key=lambda row: to_float(row.get("share")))
    return str(best.get("choice")), bool(best.get("correct"))


def _since(order: Sequence[int], agreeing: set[int]) -> int | None:
    """The first layer from which all layers agree; None where the last does not."""
    since = None
    for layer in reversed(order):
        if layer not in agreeing:
            break
        since = layer
    return since


def _sheets(results: Results, pick: Row, mine: list[Row]) -> list[Sheet]:
    shown = evenly(layers_of(mine), 6)
    body = []
    for choice, items in groups(mine, "choice").items():
        at = {int(row["layer"]): row for row in items}
        shares = [number_text(at[layer].get("share"), 3) if layer in at else "–" for layer in shown]
        probability = number_text(at[shown[-1]].get("probability"), 3) if shown and shown[-1] in at else "–"
        body.append([f"{'✓ ' if items[0].get('correct') else ''}{choice}", *shares, probability])
    masses = {int(row["layer"]): row.get("mass") for row in mine}
    whole = [number_text(masses.get(layer), 3) for layer in shown]
    body.append(["all choices, of the vocabulary", *whole, whole[-1] if whole else "–"])
    question = _quoted(mine[0].get("question", "")) if mine else ""
    top = results.rows("layers_top", question_id=pick["question_id"], lens=pick["lens"])
    best = [
        [int(row["layer"]), token_text(row.get("token")), number_text(row.get("probability"))]
        for row in sorted(top, key=lambda row: -int(row["layer"]))
        if int(row["rank"]) == 0
    ]
    share = f"“{question}”: share of each choice among the choices, {pick['lens']} lens"
    return [
        Sheet(
            share,
            ["choice", *(f"layer {layer}" for layer in shown), "probability, last"],
            body,
            "layers",
            len(body) > 12,
        ),
        Sheet(f"“{question}”: top-1 next token by layer", ["layer", "token", "probability"], best, "layers_top", True),
    ]


def _plates(results: Results, pick: Row, mine: DataFrame, tag: str) -> Iterator[Plate]:
    verdict, lens = visible(pick["verdict"]), visible(pick["lens"])
    question = _quoted(mine["question"].iloc[0]) if "question" in mine else ""
    rule = join([visible(name) for name in distinct(rows(mine), "rule")])
    answered = f"{verdict} choice first · " if verdict in ("correct", "incorrect") else ""
    note: dict[str, Any] = {"note": f"{answered}{results.model} · {lens} lens · rule {rule}"}
    where = f"Model {results.model}, {lens} lens, rule {rule}, n = 1 question: “{question}”."
    yield Plate(
        f"layers-bars-{tag}",
        "Share of each choice among the choices at six layers; the correct choice is marked ✓, and above each panel "
        f"stand the choice that leads and what all choices have of the vocabulary's probability. {where}",
        f"Bars of the share of each choice at six layers for the question {question}",
        partial(draw.choice_bars, mine, **note),
    )
    yield Plate(
        f"layers-share-{tag}",
        f"Share of each choice among the choices, by layer. {where}",
        f"Lines of each choice's share by layer for the question {question}",
        partial(draw.choice_lines, mine, **note),
    )
    top = results.frame("layers_top")
    if top is None:
        return
    top = top[(top["question_id"] == pick["question_id"]) & (top["lens"] == pick["lens"])]
    if len(top):
        yield Plate(
            f"layers-top-{tag}",
            f"Top next tokens of each layer, darker: more probable; · is a leading space. {where}",
            f"Grid of the top next tokens by layer for the question {question}",
            partial(draw.top_grid, top, question=question, **note),
        )

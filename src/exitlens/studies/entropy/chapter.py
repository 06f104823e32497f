"""What the entropy study tells: entropy of correct and incorrect answers at every layer, judge by judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from exitlens.report.chapter import Chapter, Part, Plate, Sheet
from exitlens.report.comparable import Curve, Number
from exitlens.report.frames import Results, Row, distinct, groups, layers_of, spread
from exitlens.report.text import Column, is_number, number_text, p_text, to_float, visible
from exitlens.report.view_data import View
from exitlens.report.words import (
    LEVEL,
    cell,
    count,
    counted,
    excludes,
    join,
    layers_text,
    p_equals,
    reservation,
    shown,
    units,
)
from exitlens.studies.answers.chapter import answers_judged
from exitlens.studies.answers.judge_names import judge_legend, short_judges
from exitlens.studies.entropy import figures as draw
from exitlens.studies.entropy.compared import entropy_curves, entropy_numbers
from exitlens.studies.entropy.views import run_views

__all__ = ["EntropyChapter"]

_BOTH = ("n_correct", "n_incorrect")
_RESTS_ON = {"correct": _BOTH[:1], "incorrect": _BOTH[1:], "difference": _BOTH, "auroc": _BOTH}

_MEAN = "Mean entropy over the tokens of correct and of incorrect answers, by layer; bands: 95% CI by question."
_DIFFERENCE = (
    "Mean entropy of incorrect answers minus that of correct answers, by layer, with 95% CI; "
    "filled dots survive Holm's correction over layers."
)
_AUROC = "Probability that an incorrect answer has the higher entropy (AUROC), by layer, with 95% CI; 0.5 is chance."
_POOLED = (
    "The artefact, on request: each group's sum is divided by the tokens of all answers (pooled weights), "
    "so the smaller group looks lower at every layer whatever its entropy."
)


class EntropyChapter(Chapter):
    """Tables, sentences and figures of the entropy study."""

    title = "Entropy of correct and incorrect answers"
    question = "Are the inner layers less confident when the answer turns out to be incorrect?"
    how = (
        "Entropy in nats of each layer's distribution at every token of the generated answer, stop string "
        "excluded. Estimator per-group: the sum over a group's tokens divided by the tokens of that group. "
        "95% CI by question: studentised bootstrap; of the AUROC DeLong's, on the logit scale. "
        "Tests: corrected over layers by Holm (p Holm) and "
        "Benjamini–Hochberg (p BH). Length-adjusted: the same difference with the answer's length as a covariate. "
        "AUROC: the probability that an incorrect answer has the higher entropy. Which answers are correct is decided "
        "by the judge named with each number."
    )
    own = ("entropy_layers", "entropy_tokens")

    def answer(self, results: Results) -> str:
        """Whether the entropy of any layer tells incorrect from correct answers, over all judges."""
        return _answer(_judged(results))

    def headline(self, results: Results) -> list[str]:
        """For each judge: is there a significant difference after correction over the layers, and how well it ranks."""
        judged = _judged(results)
        legend = judge_legend(distinct(results.rows("entropy_layers"), "judge"))
        told = [_finding(judge, items) for judge, items in judged.items()]
        return [*told, f"The judges in full: {legend}."] if told and legend else told

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """Means, difference, AUROC and p by layer, a part a judge and estimator."""
        columns: list[Column | str] = [Column("layer", "d")]
        heads = ("correct (nats)", "incorrect", "incorrect − correct", "low", "high", "AUROC")
        columns += [*(Column(head, ".3f") for head in heads), Column("p (Holm)", ".3f")]
        names = ("correct", "incorrect", "difference", "difference_low", "difference_high", "auroc", "p_holm")
        parts = []
        short = short_judges(distinct(results.rows("entropy_layers"), "judge"))
        for judge, lines in groups(results.rows("entropy_layers"), "judge").items():
            for estimator, items in groups(lines, "estimator").items():
                items = sorted(items, key=lambda row: int(row["layer"]))
                items = items if whole else spread(items, 5)
                body = [[int(row["layer"]), *(row.get(name) for name in names)] for row in items]
                n = [units(row) for row in items]
                parts.append(Part(f"{short[judge]} ({estimator})", columns, body, _warning(estimator), n))
        return parts

    def tables(self, results: Results) -> list[Sheet]:
        """One table a judge and estimator, and answers with their verdicts."""
        headers = ["layer", "correct (nats)", "incorrect (nats)", "difference", "AUROC", "Cohen's d", "p", "p Holm"]
        headers += ["p BH", "length-adjusted", "its p"]
        out: list[Sheet] = []
        short = short_judges(distinct(results.rows("entropy_layers"), "judge"))
        for estimator, items in groups(results.rows("entropy_layers"), "estimator").items():
            for judge, lines in groups(items, "judge").items():
                body: list[list[object]] = [
                    [
                        int(row["layer"]),
                        *(cell(row, name, 2, n) for name, n in _RESTS_ON.items()),
                        number_text(row.get("cohens_d"), 2),
                        *(p_text(row.get(name)) for name in ("p", "p_holm", "p_bh")),
                        number_text(row.get("adjusted_difference"), 2),
                        p_text(row.get("adjusted_p")),
                    ]
                    for row in sorted(lines, key=lambda row: int(row["layer"]))
                ]
                warning = _warning(estimator)
                caption = f"By layer, judge {short[judge]}, estimator {estimator}" + (f". {warning}" if warning else "")
                out.append(Sheet(caption, headers, body, "entropy_layers", True))
        return [*out, answers_judged(results)]

    def figures(self, results: Results) -> list[Plate]:
        """Means, differences and AUROC by layer; the artefact where it was asked for."""
        frame = results.frame("entropy_layers")
        if frame is None:
            return []
        model = results.model
        judges = distinct(results.rows("entropy_layers"), "judge")
        legend = judge_legend(judges) or join([visible(name) for name in judges])
        who = f"Judge{'s' if len(judges) > 1 else ''}: {legend}. Model {model}, logit lens; n in each panel's title."
        made: list[Plate] = []
        if results.rows("entropy_layers", estimator="per-group"):
            drawings = (("mean", _MEAN, draw.means), ("difference", _DIFFERENCE, draw.difference))
            for name, caption, function in (*drawings, ("auroc", _AUROC, draw.auroc)):
                made.append(Plate(f"entropy-{name}", f"{caption} {who}", caption, partial(function, frame, note=model)))
        if results.rows("entropy_layers", estimator="pooled-weights"):
            pooled = partial(draw.means, frame, estimator="pooled-weights", note=model)
            where = f"{_POOLED} Model {model}; judge and n in each panel's title."
            made.append(Plate("entropy-pooled-weights", where, _POOLED, pooled))
        return made

    def views(self, results: Results) -> list[View]:
        """See :mod:`exitlens.studies.entropy.views`."""
        return run_views(results)

    def numbers(self, results: Results) -> list[Number]:
        """Verdicts, entropy at the last layer, and how well it ranks answers."""
        return entropy_numbers(results)

    def curves(self, results: Results) -> list[Curve]:
        """Entropy and its AUROC by layer."""
        return entropy_curves(results)


def _judged(results: Results) -> dict[str, list[Row]]:
    """The rows of each judge, by its short name."""
    judged = groups(results.rows("entropy_layers", estimator="per-group"), "judge")
    short = short_judges(judged)
    return {short[judge]: items for judge, items in judged.items()}


def _warning(estimator: object) -> str | None:
    """What stands below numbers that support no conclusion, wherever they are shown."""
    return _POOLED if estimator == "pooled-weights" else None


def _answer(judged: Mapping[str, Sequence[Row]]) -> str:
    """One sentence on all judges: a judge with a significant difference first; empty without judges."""
    able = {
        judge: [row for row in items if is_number(row.get("difference")) and is_number(row.get("difference_low"))]
        for judge, items in judged.items()
    }
    able = {judge: items for judge, items in able.items() if items}
    if not judged:
        return ""
    if not able:
        sizes = [f"{count(items[0], 'n_correct')} correct, {count(items[0], 'n_incorrect')} incorrect by "
                 f"{visible(judge)}" for judge, items in judged.items()]  # fmt: skip
        return f"Nothing can be compared ({join(sizes)}): ask more questions, or judge the answers otherwise."
    found = {judge: [row for row in items if to_float(row.get("p_holm")) < LEVEL] for judge, items in able.items()}
    found = {judge: items for judge, items in found.items() if items}
    judge, items = next(iter((found or able).items()))
    row = max(items, key=lambda row: abs(to_float(row.get("difference"))))
    told = f"{shown(row, 'difference', 2)} nats at layer {int(row['layer'])}"
    who = f"judge {visible(judge)}; {count(row, 'n_correct')} correct, {count(row, 'n_incorrect')} incorrect answers"
    if is_number(row.get("auroc")):
        who = f"AUROC {shown(row, 'auroc', 2)}; {who}"
    told += f" ({who}{reservation(row, _BOTH).replace(' (', '; ').rstrip(')')})"
    if not found:
        alone = excludes(row, "difference", 0.0)
        largest = f", {told}, does not survive the correction over the layers" if alone else f" is {told}"
        by = {1: "", 2: " by either judge"}.get(len(able), f" by any of {len(able)} judges")
        return (
            f"No: no layer's entropy differs significantly between incorrect and correct answers{by}; the largest "
            f"difference{largest}: do not use entropy to find incorrect answers."
        )
    signs = {to_float(row.get("difference")) > 0 for items in found.values() for row in items}
    by = "" if len(judged) == 1 else f" by {len(found)} of {len(judged)} judges"
    where = layers_text(layers_of(items))
    if signs == {True}:
        advice = "a warning sign, to be checked on other questions before it decides anything"
        return f"Yes{by}: the entropy of incorrect answers is higher at {where}, most by {told}: {advice}."
    if signs == {False}:
        advice = "high entropy is no sign of an incorrect answer here"
        return f"No, the reverse{by}: the entropy of incorrect answers is lower at {where}, most by {told}: {advice}."
    rows = [row for items in found.values() for row in items]
    up, down = (
        layers_text(layers_of([row for row in rows if (to_float(row.get("difference")) > 0) is higher]))
        for higher in (True, False)
    )
    return (
        f"Mixed{by}: the entropy of incorrect answers is higher at {up} and lower at {down}; the largest significant "
        f"difference is {told}: trust no single layer."
    )


def _finding(judge: object, items: Sequence[Row]) -> str:
    first = items[0]
    head = (
        f"Judge “{visible(judge)}” ({count(first, 'n_correct')} correct, {count(first, 'n_incorrect')} incorrect "
        "answers): "
    )
    measured = [row for row in items if is_number(row.get("difference"))]
    if not measured:
        return head + "one of the two groups is empty, so nothing can be compared."
    return head + _difference(measured, len(items)) + _ranking(items)


def _difference(measured: Sequence[Row], layers: int) -> str:
    """The largest difference among the significant ones; among all only where none is, and then called that."""
    significant = [row for row in measured if to_float(row.get("p_holm")) < LEVEL]
    largest = max(significant or measured, key=lambda row: abs(to_float(row.get("difference"))))
    value = f"{shown(largest, 'difference', 2)} nats at layer {int(largest['layer'])}{reservation(largest, _BOTH)}"
    if not significant:
        alone = excludes(largest, "difference", 0.0)
        rest = "whose 95% CI excludes 0 but which does not survive the correction" if alone else "whose 95% CI covers 0"
        value += f", {rest}" if is_number(largest.get("difference_low")) else ""
        none = f"no significant difference at {_any(layers)} after Holm correction"
        return f"{none}; the largest is {value}."
    higher = {to_float(row.get("difference")) > 0 for row in significant}
    direction = "higher" if higher == {True} else "lower" if higher == {False} else "different"
    text = (
        f"the entropy of incorrect answers is {direction} at {layers_text(layers_of(significant))} "
        f"(Holm-corrected over {counted(layers, 'layer')}, p < {LEVEL:g}); the largest difference is {value}."
    )
    if is_number(largest.get("adjusted_p")):
        adjusted = number_text(largest.get("adjusted_difference"), 2)
        kept = to_float(largest.get("adjusted_p")) < LEVEL
        text += f"\nWith answer length as a covariate it is {adjusted} nats (p {p_equals(largest.get('adjusted_p'))})"
        text += "." if kept else ": not significant once length is accounted for."
    return text


def _any(layers: int) -> str:
    return "the one layer read" if layers == 1 else f"any of {layers} layers"


def _ranking(items: Sequence[Row]) -> str:
    ranked = [row for row in items if is_number(row.get("auroc"))]
    if not ranked:
        return ""
    best = max(ranked, key=lambda row: abs(to_float(row.get("auroc")) - 0.5))
    told = (
        "the best of many layers and so optimistic."
        if excludes(best, "auroc", 0.5)
        else "whose 95% CI covers 0.5: no significant ranking."
    )
    told = f", {told}" if is_number(best.get("auroc_low")) else "."
    place = f"{shown(best, 'auroc', 2)} at layer {int(best['layer'])}{reservation(best, _BOTH)}"
    return f"\nAUROC furthest from chance: {place}{told}"

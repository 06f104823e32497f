"""What probes on the model's own answers tell: a sentence a judge, tables, and AUROC by layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from exitlens.report.chapter import Part, Plate, Sheet
from exitlens.report.frames import Results, Row, groups, rows
from exitlens.report.text import Column, is_number, number_text, to_float, visible
from exitlens.report.words import cell, count, counted, interval_reservation, layer_list, shown, units
from exitlens.studies.answers.judge_names import judge_legend, short_judges
from exitlens.studies.probes.figures import layer_curves

__all__ = ["answer_findings", "answer_parts", "answer_plates", "answer_sheets"]

# What an AUROC, and what an accuracy rests on: of these the least that is known.
_CLASSES = ("n", "n_test", "n_correct", "n_incorrect")
_ANSWERS = ("n", "n_test", "n_judged")
_NAMES = {"exact-answer": "the exact answer", "every-answer-token": "each token of the answer"}
_CAPTION = (
    "How well the state at {} ranks correct above incorrect answers (AUROC), by layer, with 95% CI: probes, the random-"
    "label control, and what costs less under the same folds. 0.5 is chance."
)


def answer_findings(results: Results) -> list[str]:
    """For each judge, the one with the most answers of the rarer verdict first: does the state know, and does it know
    more than what costs less.
    """
    facts = _facts(results)
    able = sorted((fact for fact in facts if not fact.get("reason")), key=_smaller, reverse=True)
    fitted = [_finding(results, fact) for fact in able]
    told = fitted + [_nothing(fact) for fact in facts if fact.get("reason")]
    legend = judge_legend([fact.get("judge") for fact in facts])
    return [*told, f"The judges in full: {legend}."] if legend else told


def _facts(results: Results) -> list[Row]:
    """What each judge decided, and its short name."""
    facts = results.rows("answer_probe_judges")
    short = short_judges([fact.get("judge") for fact in facts])
    return [{**fact, "short": short[fact.get("judge")]} for fact in facts]


def _smaller(fact: Row) -> float:
    """Answers of the rarer verdict: what an interval rests on."""
    return min(to_float(fact.get("n_correct")), to_float(fact.get("n_incorrect")))


def _nothing(fact: Row) -> str:
    sizes = f"{count(fact, 'n_correct')} correct, {count(fact, 'n_incorrect')} incorrect"
    return (
        f"Nothing can be told by judge {visible(fact.get('short'))} ({sizes} answers): {visible(fact.get('reason'))}: "
        "ask more questions, or judge the answers otherwise."
    )


def _finding(results: Results, fact: Row) -> str:
    judge = fact.get("judge")
    items = results.rows("answer_probe_best", judge=judge, role="probe")
    ranked = [row for row in items if is_number(row.get("auroc"))]
    where = _NAMES.get(str(fact.get("position")), visible(fact.get("position")))
    sizes = f"{count(fact, 'n_correct')} correct, {count(fact, 'n_incorrect')} incorrect answers"
    who = f"{sizes} by {visible(fact.get('short'))}"
    if not ranked:
        return f"Not measured at {where} ({who}): no fold has both correct and incorrect answers: ask more questions."
    best = max(ranked, key=lambda row: to_float(row.get("auroc")))
    layers = layer_list(best.get("layers"))
    few = interval_reservation(int(_smaller(fact)))
    probe = f"the {visible(best.get('kind'))} probe at {where}{f', {layers}' if layers else ''}"
    told = f"{probe} ranks correct above incorrect answers with AUROC {shown(best, 'auroc', 2)}{few} ({who})"
    if not to_float(best.get("auroc_low")) > 0.5:
        reach = "no more than chance (0.5)" if is_number(best.get("auroc_low")) else "without an interval"
        return f"Not shown: {told}, {reach}: do not take the state for a sign of an incorrect answer."
    gaps = results.rows("answer_probe_gaps", judge=judge, probe=best.get("kind"))
    rivals = {row.get("kind"): row for row in results.rows("answer_probe_best", judge=judge)}
    known = [row for row in gaps if is_number(row.get("difference")) and row.get("rival") in rivals]
    if not known:
        return f"Yes: {told}: compare it with the answer's own log-probability before using it."
    nearest = min(known, key=lambda row: to_float(row.get("difference")))
    rival = visible(nearest.get("rival"))
    gap = f"{to_float(nearest['difference']):+.2f} [{to_float(nearest['low']):+.2f}, {to_float(nearest['high']):+.2f}]"
    beside = f"the best of what costs less is {rival} with {shown(rivals[nearest['rival']], 'auroc', 2)}"
    beside += f" (difference {gap.replace('-', '−')})"
    if to_float(nearest.get("low")) > 0:
        return f"Yes: {told}; {beside}: use the probe as a warning, on questions like these."
    if to_float(nearest.get("high")) < 0:
        return f"Yes, but {told}; {beside}: use {rival} instead, it is better."
    return f"Yes, but {told}; {beside}, not significantly less: use {rival}, it costs less."


def answer_parts(results: Results) -> list[Part]:
    """For the terminal: every probe at its chosen layer, and what it has to beat, a part a judge."""
    parts = []
    short = short_judges([fact.get("judge") for fact in results.rows("answer_probe_judges")])
    for judge, items in groups(results.rows("answer_probe_best"), "judge").items():
        columns: list[Column | str] = ["kind", "role"]
        columns += [Column(name, ".3f") for name in ("AUROC", "low", "high", "accuracy", "Brier")]
        columns.append(Column("layers chosen", shrink=True))
        names = ("auroc", "auroc_low", "auroc_high", "accuracy", "brier")
        body = [[row["kind"], row["role"], *(row.get(n) for n in names), row.get("layers") or None] for row in items]
        where = f"{items[0].get('position')}, {items[0].get('protocol')}, n = {count(items[0], 'n_test')}"
        n = units(_judged(results, judge, items[0]), _CLASSES)
        parts.append(Part(f"judge {short[judge]} ({where})", columns, body, n=[n] * len(body)))
    return parts


def answer_sheets(results: Results) -> list[Sheet]:
    """Probes beside what they have to beat, AUROC by layer, and where each answer was read."""
    out = []
    short = short_judges([fact.get("judge") for fact in results.rows("answer_probe_judges")])
    for judge, items in groups(results.rows("answer_probe_best"), "judge").items():
        gaps = {row.get("rival"): row for row in results.rows("answer_probe_gaps", judge=judge)}
        body: list[list[object]] = [
            [
                row.get("kind"),
                row.get("role"),
                layer_list(row.get("layers")) or "–",
                cell(_judged(results, judge, row), "auroc", n=_CLASSES),
                _gap(_judged(results, judge, gaps.get(row.get("kind"), {}))),
                cell(_judged(results, judge, row), "accuracy", n=_ANSWERS),
                number_text(row.get("brier")),
            ]
            for row in items
        ]
        n = f"n = {count(items[0], 'n_test')}"
        caption = f"Correct or incorrect, read at {items[0].get('position')}; judge {short[judge]}, {n}"
        headers = ["kind", "role", "layers chosen", "AUROC", "probe minus this", "accuracy", "Brier"]
        out.append(Sheet(caption, headers, body, "answer_probe_best"))
        lines = results.rows("answer_probe_layers", judge=judge)
        by_layer: list[list[object]] = [
            [
                row.get("kind"),
                number_text(row.get("layer"), 0),
                cell(_judged(results, judge, row), "auroc", n=_CLASSES),
                cell(_judged(results, judge, row), "accuracy", n=_ANSWERS),
            ]
            for row in lines
        ]
        heads = ["kind", "layer", "AUROC", "accuracy"]
        out.append(Sheet(f"By kind and layer; judge {short[judge]}", heads, by_layer, "answer_probe_layers", True))
    spans: list[list[object]] = [
        [row.get("answer"), row.get("exact_answer"), row.get("found_by"), number_text(row.get("p_true"))]
        for row in results.rows("answer_probe_spans")
    ]
    heads = ["answer", "exact answer", "found by", "p(true)"]
    return [*out, Sheet("Where each answer was read", heads, spans, "answer_probe_spans", True)]


def _judged(results: Results, judge: object, row: Row) -> Row:
    """The row with the answers that the judge decided: rows of ``n`` and ``n_test`` may be their tokens."""
    facts = next(iter(results.rows("answer_probe_judges", judge=judge)), {})
    both = {name: facts[name] for name in ("n_correct", "n_incorrect") if is_number(facts.get(name))}
    return {**row, **both, **({"n_judged": sum(both.values())} if both else {})}


def _gap(row: Row) -> str:
    if not is_number(row.get("difference")):
        return "–"
    ends = {"gap": row.get("difference"), "gap_low": row.get("low"), "gap_high": row.get("high")}
    return cell({**row, **ends}, "gap", n=_CLASSES)


def answer_plates(results: Results) -> Iterator[Plate]:
    """AUROC by layer, a figure a judge."""
    frame = results.frame("answer_probe_layers")
    if frame is None:
        return
    short = short_judges([fact.get("judge") for fact in results.rows("answer_probe_judges")])
    for place, (judge, items) in enumerate(groups(rows(frame), "judge").items(), start=1):
        position = str(items[0].get("position"))
        caption = _CAPTION.format(_NAMES.get(position, position))
        facts = results.rows("answer_probe_judges", judge=judge)
        sizes = f"n = {count(facts[0], 'n_correct')} correct, {count(facts[0], 'n_incorrect')} incorrect answers"
        note = f"{results.model} · {position} · judge {short[judge]} · {sizes}"
        where = f"Model {results.model}; judge {visible(judge)}; {sizes}; {counted(count(items[0], 'n'), 'row')}."
        drawn = partial(layer_curves, frame[frame["judge"] == judge], value="auroc", note=note)
        yield Plate(f"probes-answers-{place}", f"{caption} {where}", caption, drawn)

"""The answers of a run with their verdicts, as the chapters of several studies show them."""

from __future__ import annotations

from collections.abc import Mapping

from exitlens.report.chapter import Sheet
from exitlens.report.comparable import Number, Unit, labels
from exitlens.report.frames import Results, groups
from exitlens.report.text import is_number, to_float
from exitlens.studies.answers.judge_names import short_judges

__all__ = ["answers_judged", "question_texts", "verdicts"]


def answers_judged(results: Results) -> Sheet:
    """The first decoder's answers, and each judge's verdict on them."""
    answers = results.rows("answers")
    first = answers[0].get("decoder") if answers else None
    verdicts: dict[object, dict[str, str]] = {}
    for row in results.rows("judgements", decoder=first):
        known = to_float(row.get("correct"))
        word = "correct" if known == 1 else "incorrect" if known == 0 else "–"
        verdicts.setdefault(row.get("question_id"), {})[str(row.get("judge", ""))] = word
    names = list(dict.fromkeys(name for one in verdicts.values() for name in one))
    body = [
        [
            str(row.get("question", "")),
            str(row.get("answer", "")).strip(" "),
            *(verdicts.get(row.get("question_id"), {}).get(name, "–") for name in names),
        ]
        for row in answers
        if row.get("decoder") == first
    ]
    short = short_judges(names)
    heads = ["question", "answer", *(short[name] for name in names)]
    return Sheet(f"Answers ({first}) and verdicts", heads, body, "answers", True)


def question_texts(results: Results) -> Mapping[str, str]:
    """The text of every question that was answered, by its id."""
    return {str(row.get("question_id")): str(row.get("question", "")) for row in results.rows("answers")}


def verdicts(results: Results) -> list[Number]:
    """For each judge and decoder the share of its answers that the judge finds correct, question by question."""
    texts = question_texts(results)
    given = {(row.get("decoder"), row.get("question_id")): row.get("answer") for row in results.rows("answers")}
    out: list[Number] = []
    for judge, items in groups(results.rows("judgements"), "judge").items():
        for place, (decoder, mine) in enumerate(groups(items, "decoder").items()):
            units = [
                Unit(
                    str(row.get("question_id")),
                    texts.get(str(row.get("question_id")), ""),
                    to_float(row["correct"]),
                    str(given.get((decoder, row.get("question_id"))) or "").strip(" "),
                )
                for row in mine
                if is_number(row.get("correct"))
            ]
            if units:
                of = labels({"judge": judge, "decoder": decoder}, ("judge", "decoder"))
                out.append(Number("answers judged correct", of=of, units=units, main=place == 0))
    return out

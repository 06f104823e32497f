"""The answers of a run with their verdicts, as the chapters of several studies show them."""

from __future__ import annotations

from exitlens.report.chapter import Sheet
from exitlens.report.frames import Results
from exitlens.report.text import to_float

__all__ = ["answers_judged"]


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
    return Sheet(f"Answers ({first}) and verdicts", ["question", "answer", *names], body, "answers", True)

"""TruthfulQA's generation form: a CSV with Question, Best Answer and `;`-separated Correct and Incorrect Answers."""

from __future__ import annotations

from collections.abc import Iterable

from exitlens.data.records import Question
from exitlens.data.sources import Source, csv_rows, delimiter_of
from exitlens.errors import DataError

__all__ = ["REQUIRED", "build", "read_questions", "unique"]

REQUIRED = ("question", "best answer", "correct answers", "incorrect answers")


def unique(answers: Iterable[str]) -> tuple[str, ...]:
    """The answers without empty ones and repeats, in their order, white space at the ends removed."""
    return tuple(dict.fromkeys(a for answer in answers if (a := answer.strip())))


def build(
    number: int,
    question: str,
    best: str,
    correct: Iterable[str],
    incorrect: Iterable[str],
    *,
    category: str | None,
    kind: str | None,
    where: str,
) -> Question:
    """One record; the best answer becomes a correct one when the source leaves it out. ``where`` opens an error."""
    question, best = question.strip(), best.strip()
    if not question:
        raise DataError(f"{where}: the question is empty; remove the row or fill it in")
    if not best:
        raise DataError(f"{where}: no best answer to {question!r}; fill it in")
    right = unique(correct)
    if best not in right:
        right = (best, *right)
    return Question(
        id=f"q{number:04d}",
        question=question,
        best=best,
        correct=right,
        incorrect=unique(incorrect),
        category=(category or "").strip() or None,
        kind=(kind or "").strip() or None,
    )


def read_questions(source: Source) -> tuple[list[Question], list[str]]:
    """Questions of one CSV with the lines to report; raises DataError for an empty question or best answer."""
    questions = []
    rows = csv_rows(source, (*REQUIRED, "category", "type"), delimiter_of(source, REQUIRED))
    for number, (line, cells) in enumerate(rows, start=1):
        questions.append(
            build(
                number,
                cells["question"],
                cells["best answer"],
                cells["correct answers"].split(";"),
                cells["incorrect answers"].split(";"),
                category=cells.get("category"),
                kind=cells.get("type"),
                where=f"{str(source.path)!r} line {line}",
            )
        )
    return questions, contradictions(questions)


def contradictions(questions: Iterable[Question]) -> list[str]:
    """A line when questions list the same answer as correct and as incorrect (they are kept as they are)."""
    both = [q.id for q in questions if set(q.correct) & set(q.incorrect)]
    if not both:
        return []
    listed = ", ".join(both[:5]) + (" ..." if len(both) > 5 else "")
    return [f"{len(both)} questions list an answer as both correct and incorrect: kept ({listed})"]

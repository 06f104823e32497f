"""Stored generations of any system: parsed, lined up with a data set's questions, refused when they do not fit."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from exitlens.data.records import Dataset
from exitlens.errors import DataError

__all__ = ["Prediction", "align", "parse_predictions"]

_ANSWERS = ("model_completion", "answer", "completion")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question as the file spells it, and the system's answer to it."""

    question: str
    answer: str


def parse_predictions(text: str) -> tuple[Prediction, ...]:
    """Predictions from a file's text, in any of these forms:

    ``{"question": [...], "model_completion": [...]}`` (one JSON object of two lists as long), a JSON list of
    ``{"question": ..., "model_completion": ...}``, or the same as JSON lines. ``answer`` or ``completion`` may stand
    for ``model_completion``. Raises DataError, quoting the place, for anything else.
    """
    body = text.removeprefix("\ufeff").strip()
    if not body:
        raise DataError("the predictions are empty: give JSON with question and model_completion")
    try:
        whole: object = json.loads(body)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and isinstance(whole.get("question"), list):
        return _from_lists(whole)
    if isinstance(whole, list):
        rows = [(f"row {i}", row) for i, row in enumerate(whole)]
    elif isinstance(whole, dict):
        rows = [("line 1", whole)]
    else:
        rows = _lines(body)
    if not rows:
        raise DataError("the predictions hold no rows: give JSON with question and model_completion")
    return tuple(_prediction(place, row) for place, row in rows)


def align(predictions: Sequence[Prediction], dataset: Dataset) -> tuple[str, ...]:
    """Answers in the order of ``dataset.questions``, matched by the question's text.

    Texts must be equal after Unicode normalisation (NFKC) and with white space collapsed. Raises DataError, quoting
    the first, for questions that come twice, that the data set does not have, or that have no prediction.
    """
    if dataset.kind != "questions":
        raise DataError(f"{dataset.name!r} holds statements: predictions can be scored against questions only")
    wanted: dict[str, int] = {}
    for i, question in enumerate(dataset.questions):
        key = _key(question.question)
        if key in wanted:
            raise DataError(
                f"{dataset.name!r} asks {_quote(question.question)} twice: its predictions cannot be told apart"
            )
        wanted[key] = i
    answers: dict[int, str] = {}
    unknown: list[str] = []
    twice: list[str] = []
    for prediction in predictions:
        place = wanted.get(_key(prediction.question))
        if place is None:
            unknown.append(prediction.question)
        elif place in answers:
            twice.append(prediction.question)
        else:
            answers[place] = prediction.answer
    missing = [question.question for i, question in enumerate(dataset.questions) if i not in answers]
    for what, found, remedy in (
        (f"not in {dataset.name!r}", unknown, "score them against the data they were made from"),
        ("predicted twice", twice, "keep one prediction a question"),
        ("without a prediction", missing, "predict them, or score with the same --limit as the predictions"),
    ):
        if found:
            many = "1 question" if len(found) == 1 else f"{len(found)} questions"
            raise DataError(f"{many} {what}, the first {_quote(found[0])}: {remedy}")
    return tuple(answers[i] for i in range(len(dataset.questions)))


def _from_lists(whole: dict[str, object]) -> tuple[Prediction, ...]:
    name = next((k for k in _ANSWERS if k in whole), None)
    if name is None:
        raise DataError(f"the predictions have no model_completion, only {', '.join(whole)!r}")
    questions, answers = whole["question"], whole[name]
    if not isinstance(questions, list) or not isinstance(answers, list):
        raise DataError(f"{name} must be a list as question is, got {str(answers)[:40]!r}")
    if len(questions) != len(answers):
        raise DataError(f"{len(questions)} questions but {len(answers)} of {name}: the lists must be as long")
    if not questions:
        raise DataError("the predictions hold no rows: give JSON with question and model_completion")
    pairs = zip(questions, answers, strict=True)
    return tuple(_prediction(f"row {i}", {"question": q, name: a}) for i, (q, a) in enumerate(pairs))


def _lines(body: str) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    # Not splitlines: U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(body.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((f"line {number}", json.loads(line)))
        except ValueError as error:
            raise DataError(f"line {number} is not JSON: {line.strip()[:60]!r}") from error
    return rows


def _prediction(place: str, row: object) -> Prediction:
    if not isinstance(row, dict):
        raise DataError(f"{place} is not a JSON object: {str(row)[:60]!r}")
    question = row.get("question")
    answer = next((row[k] for k in _ANSWERS if k in row), None)
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{place} has no question text, got {str(question)[:60]!r}")
    if not isinstance(answer, str):
        raise DataError(f"{place} has no model_completion text, got {str(answer)[:60]!r}")
    return Prediction(question, answer)


def _key(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")

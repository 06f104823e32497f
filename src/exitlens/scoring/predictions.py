"""Stored generations of any system: parsed, lined up with a data set's questions, refused when they do not fit."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exitlens.data.readers.rows import Row, json_rows
from exitlens.data.records import Dataset
from exitlens.data.sources import Source, quote_columns
from exitlens.errors import DataError
from exitlens.parsing import cut

__all__ = ["Prediction", "align", "parse_predictions"]

_ANSWERS = ("model_completion", "answer", "completion")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question as the file spells it, and the system's answer to it."""

    question: str
    answer: str


def parse_predictions(source: Source) -> tuple[Prediction, ...]:
    """Predictions of a file in any of these forms:

    ``{"question": [...], "model_completion": [...]}`` (one JSON object of two lists as long), a JSON list of
    ``{"question": ..., "model_completion": ...}``, or the same as JSON lines. ``answer`` or ``completion`` may stand
    for ``model_completion``.

    Raises:
        DataError: Quoting the place, for anything else.
    """
    rows = json_rows(source)
    if len(rows) == 1 and isinstance(rows[0][1].get("question"), list):
        rows = _from_lists(*rows[0])
    if not rows:
        raise DataError(f"{str(source.path)!r} holds no rows: give JSON with question and model_completion")
    return tuple(_prediction(where, row) for where, row in rows)


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
                f"{dataset.name!r} asks {cut(question.question)!r} twice: its predictions cannot be told apart"
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
            raise DataError(f"{many} {what}, the first {cut(found[0])!r}: {remedy}")
    return tuple(answers[i] for i in range(len(dataset.questions)))


def _from_lists(where: str, whole: dict[str, Any]) -> list[Row]:
    questions, name = whole["question"], next((k for k in _ANSWERS if k in whole), None)
    if name is None:
        raise DataError(f"{where}: no model_completion beside question, only {quote_columns(list(whole))}")
    answers = whole[name]
    if not isinstance(answers, list):
        raise DataError(f"{where}: {name} must be a list as question is, not {cut(repr(answers))}")
    if len(questions) != len(answers):
        raise DataError(f"{where}: {len(questions)} questions but {len(answers)} of {name}: the lists must be as long")
    pairs = enumerate(zip(questions, answers, strict=True))
    return [(f"{where} row {i}", {"question": q, name: a}) for i, (q, a) in pairs]


def _prediction(where: str, row: dict[str, Any]) -> Prediction:
    question = row.get("question")
    answer = next((row[k] for k in _ANSWERS if k in row), None)
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where} has no question text, got {cut(repr(question))}")
    if not isinstance(answer, str):
        raise DataError(f"{where} has no model_completion text, got {cut(repr(answer))}")
    return Prediction(question, answer)


def _key(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())

"""JSON lines of our own schema (docs/data.md): one object a line, all questions or all statements."""

from __future__ import annotations

from typing import Any

from exitlens.data.readers.rows import json_objects, read_label
from exitlens.data.readers.truthfulqa import contradictions, unique
from exitlens.data.records import Question, Statement
from exitlens.data.sources import Source, quote_columns
from exitlens.errors import DataError
from exitlens.parsing import cut

__all__ = ["QUESTION_FIELDS", "STATEMENT_FIELDS", "read_question", "read_records", "read_statement"]

QUESTION_FIELDS = ("id", "question", "best", "answer", "correct", "incorrect", "choices", "category", "kind")
STATEMENT_FIELDS = ("id", "statement", "label", "topic", "entity", "pair", "negated")


def read_records(
    source: Source, whole: dict[str, Any] | None = None
) -> tuple[list[Question], list[Statement], list[str]]:
    """The records, all questions or all statements, and the lines to report.

    ``whole``: the one record that is the file, which may then be spread over lines.

    Raises:
        DataError: Naming the line, a missing or unknown field, a value of the wrong type, a repeated id, or questions
            and statements in one file.
    """
    questions: list[Question] = []
    statements: list[Statement] = []
    ids: dict[str, str] = {}
    rows = json_objects(source) if whole is None else [(f"{str(source.path)!r} line 1", whole)]
    for number, (where, found) in enumerate(rows, start=1):
        if "question" in found and "statement" in found:
            raise DataError(f"{where} has both 'question' and 'statement'; keep one")
        if "question" in found:
            record: Question | Statement = read_question(where, f"q{number:04d}", found)
        elif "statement" in found:
            record = read_statement(where, f"s{number:04d}", found)
        else:
            raise DataError(f"{where}: neither 'question' nor 'statement' (fields: {quote_columns(list(found))})")
        if record.id in ids:
            raise DataError(f"{where}: id {cut(record.id)!r} is already used in {ids[record.id]}; ids must differ")
        ids[record.id] = where.removeprefix(f"{str(source.path)!r} ")
        if isinstance(record, Question):
            questions.append(record)
        else:
            statements.append(record)
        if questions and statements:
            raise DataError(f"{where}: a {type(record).__name__.lower()} among the others; keep one kind in a file")
    return questions, statements, contradictions(questions)


def _known(where: str, found: dict[str, Any], fields: tuple[str, ...]) -> None:
    unknown = [name for name in found if name not in fields]
    if unknown:
        raise DataError(f"{where}: unknown field {cut(unknown[0])!r}; known: {', '.join(fields)}")


def _text(where: str, found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value.strip():
        state = "is missing" if name not in found else f"must be a text that is not empty, not {cut(repr(value))}"
        raise DataError(f"{where}: field {name!r} {state}")
    return value.strip()


def _optional(where: str, found: dict[str, Any], name: str) -> str | None:
    return None if found.get(name) is None else _text(where, found, name)


def _texts(where: str, found: dict[str, Any], name: str) -> tuple[str, ...]:
    value = found.get(name, [])
    if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
        raise DataError(f"{where}: field {name!r} must be a list of texts, not {cut(repr(value))}")
    return unique(value)


def read_question(where: str, default_id: str, found: dict[str, Any]) -> Question:
    """A question from its fields. Raises DataError, which ``where`` opens."""
    _known(where, found, QUESTION_FIELDS)
    question = _text(where, found, "question")
    found = _with_answer(where, found)
    correct = _texts(where, found, "correct")
    if "best" not in found and not correct:
        raise DataError(f"{where}: fields 'best' and 'correct' are missing; give at least one")
    best = _text(where, found, "best") if "best" in found else correct[0]
    if best not in correct:
        correct = (best, *correct)
    choices = _texts(where, found, "choices")
    if choices and not set(choices) & set(correct):
        raise DataError(f"{where}: no choice of {cut(list(choices))} is in 'correct'; list the right choice there too")
    if choices and set(choices) <= set(correct):
        raise DataError(f"{where}: every choice of {cut(list(choices))} is in 'correct'; give a wrong one")
    return Question(
        id=_optional(where, found, "id") or default_id,
        question=question,
        best=best,
        correct=correct,
        incorrect=_texts(where, found, "incorrect"),
        choices=choices,
        category=_optional(where, found, "category"),
        kind=_optional(where, found, "kind"),
    )


def _with_answer(where: str, found: dict[str, Any]) -> dict[str, Any]:
    """``{"question", "answer"}``, as many tools write it: the answer is the best one, several are the correct ones."""
    if "answer" not in found:
        return found
    if "best" in found:
        raise DataError(f"{where} has both 'answer' and 'best'; keep one")
    answer = found["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    rest = {name: value for name, value in found.items() if name != "answer"}
    if isinstance(answer, list):
        if "correct" in found:
            raise DataError(f"{where} has both a list 'answer' and 'correct'; keep one")
        return {**rest, "correct": answer}
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{where}: field 'answer' must be a text that is not empty, not {cut(repr(answer))}")
    return {**rest, "best": answer}


def read_statement(where: str, default_id: str, found: dict[str, Any]) -> Statement:
    """A statement from its fields. Raises DataError, which ``where`` opens."""
    _known(where, found, STATEMENT_FIELDS)
    statement = _text(where, found, "statement")
    if "label" not in found:
        raise DataError(f"{where}: field 'label' is missing")
    label = read_label(found["label"])
    if label is None:
        raise DataError(f"{where}: label {cut(repr(found['label']))} is neither 0 nor 1 (nor true/false, yes/no)")
    negated = found.get("negated", False)
    if not isinstance(negated, bool):
        raise DataError(f"{where}: field 'negated' must be true or false, not {cut(repr(negated))}")
    return Statement(
        id=_optional(where, found, "id") or default_id,
        statement=statement,
        label=label,
        topic=_text(where, found, "topic"),
        entity=_optional(where, found, "entity"),
        pair=_optional(where, found, "pair"),
        negated=negated,
    )

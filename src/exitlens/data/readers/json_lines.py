"""JSON lines of our own schema (docs/data.md): one object a line, all questions or all statements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from exitlens.data.readers.truthfulqa import contradictions, unique
from exitlens.data.records import Question, Statement
from exitlens.data.sources import Source
from exitlens.errors import DataError

__all__ = ["QUESTION_FIELDS", "STATEMENT_FIELDS", "json_objects", "read_lines"]

QUESTION_FIELDS = ("id", "question", "best", "correct", "incorrect", "choices", "category", "kind")
STATEMENT_FIELDS = ("id", "statement", "label", "topic", "entity", "pair", "negated")


def json_objects(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """("'file' line 3", object) for every line that is not blank; DataError for a line that is not an object."""
    # Not str.splitlines(): it also cuts at U+2028 and its like, which JSON allows inside a text.
    for line, text in enumerate(source.text.split("\n"), start=1):
        if not text.strip():
            continue
        where = f"{str(source.path)!r} line {line}"
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON ({error.msg} at column {error.colno}); one object a line") from None
        if not isinstance(found, dict):
            raise DataError(f"{where} is a JSON {type(found).__name__}, not an object; one object a line")
        yield where, found


def read_lines(
    source: Source,
) -> tuple[Literal["questions", "statements"], list[Question], list[Statement], list[str]]:
    """What the file holds, its records, and the lines to report.

    Raises DataError, naming the line, for a missing or unknown field, a value of the wrong type, a repeated id,
    or questions and statements in one file.
    """
    questions: list[Question] = []
    statements: list[Statement] = []
    ids: dict[str, str] = {}
    for number, (where, found) in enumerate(json_objects(source), start=1):
        if "question" in found and "statement" in found:
            raise DataError(f"{where} has both 'question' and 'statement'; keep one")
        if "question" in found:
            record: Question | Statement = _question(where, f"q{number:04d}", found)
        elif "statement" in found:
            record = _statement(where, f"s{number:04d}", found)
        else:
            raise DataError(f"{where}: neither 'question' nor 'statement' (fields: {', '.join(map(repr, found))})")
        if record.id in ids:
            raise DataError(f"{where}: id {record.id!r} is already used in {ids[record.id]}; ids must differ")
        ids[record.id] = where.rsplit(" ", 2)[-2] + " " + where.rsplit(" ", 1)[-1]
        if isinstance(record, Question):
            questions.append(record)
        else:
            statements.append(record)
        if questions and statements:
            raise DataError(f"{where}: a {type(record).__name__.lower()} among the others; keep one kind in a file")
    notes = contradictions(questions)
    return ("questions" if questions else "statements"), questions, statements, notes


def _known(where: str, found: dict[str, Any], fields: tuple[str, ...]) -> None:
    unknown = [name for name in found if name not in fields]
    if unknown:
        raise DataError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(fields)}")


def _text(where: str, found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value.strip():
        state = "is missing" if name not in found else f"must be a text that is not empty, not {value!r}"
        raise DataError(f"{where}: field {name!r} {state}")
    return value.strip()


def _optional(where: str, found: dict[str, Any], name: str) -> str | None:
    return None if found.get(name) is None else _text(where, found, name)


def _texts(where: str, found: dict[str, Any], name: str) -> tuple[str, ...]:
    value = found.get(name, [])
    if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
        raise DataError(f"{where}: field {name!r} must be a list of texts, not {value!r}")
    return unique(value)


def _question(where: str, default_id: str, found: dict[str, Any]) -> Question:
    _known(where, found, QUESTION_FIELDS)
    question = _text(where, found, "question")
    correct = _texts(where, found, "correct")
    if "best" not in found and not correct:
        raise DataError(f"{where}: fields 'best' and 'correct' are missing; give at least one")
    best = _text(where, found, "best") if "best" in found else correct[0]
    if best not in correct:
        correct = (best, *correct)
    choices = _texts(where, found, "choices")
    if choices and not set(choices) & set(correct):
        raise DataError(f"{where}: no choice of {list(choices)} is in 'correct'; list the right choice there too")
    if choices and set(choices) <= set(correct):
        raise DataError(f"{where}: every choice of {list(choices)} is in 'correct'; give a wrong one")
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


def _statement(where: str, default_id: str, found: dict[str, Any]) -> Statement:
    _known(where, found, STATEMENT_FIELDS)
    statement = _text(where, found, "statement")
    label = found.get("label")
    if "label" not in found:
        raise DataError(f"{where}: field 'label' is missing")
    if label not in (0, 1) or not isinstance(label, bool | int):
        raise DataError(f"{where}: label {label!r} is neither 0 nor 1")
    negated = found.get("negated", False)
    if not isinstance(negated, bool):
        raise DataError(f"{where}: field 'negated' must be true or false, not {negated!r}")
    return Statement(
        id=_optional(where, found, "id") or default_id,
        statement=statement,
        label=int(label),
        topic=_text(where, found, "topic"),
        entity=_optional(where, found, "entity"),
        pair=_optional(where, found, "pair"),
        negated=negated,
    )

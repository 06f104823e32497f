"""BIG-bench task JSON: ``examples`` with ``input`` and ``target_scores`` (choices) or ``target`` (free answers)."""

from __future__ import annotations

from typing import Any

from exitlens.data.readers.truthfulqa import unique
from exitlens.data.records import Question
from exitlens.data.sources import Source, quote_columns
from exitlens.errors import DataError

__all__ = ["read_task"]


def read_task(source: Source, task: dict[str, Any]) -> tuple[str, list[Question], list[str]]:
    """The name of the ``task`` that the source holds, its questions and the lines to report.

    A choice is correct when its score is the highest of its example (ties are all correct); ``best`` is the first of
    them. Raises DataError when an example has neither scores nor a target.
    """
    examples = task.get("examples")
    if not isinstance(examples, list):
        raise DataError(
            f"{str(source.path)!r}: 'examples' is not a list (fields found: {quote_columns(list(task))});"
            " give a BIG-bench task.json"
        )
    name = str(task.get("name") or source.name)
    questions = [_question(source, name, number, example) for number, example in enumerate(examples, start=1)]
    return name, questions, []


def _question(source: Source, name: str, number: int, example: Any) -> Question:
    where = f"{str(source.path)!r} example {number}"
    if not isinstance(example, dict) or not isinstance(example.get("input"), str) or not example["input"].strip():
        raise DataError(f"{where}: 'input' is missing or not a text; give each example an input")
    text = example["input"].strip()
    scores = example.get("target_scores")
    if scores is None:
        target = example.get("target")
        targets = unique([target] if isinstance(target, str) else [str(t) for t in target or []])
        if not targets:
            raise DataError(f"{where}: neither 'target_scores' nor 'target' (fields: {quote_columns(list(example))})")
        return Question(f"q{number:04d}", text, targets[0], targets, (), category=name)
    if (
        not isinstance(scores, dict)
        or not scores
        or not all(isinstance(s, int | float) and not isinstance(s, bool) for s in scores.values())
    ):
        raise DataError(f"{where}: 'target_scores' is not an object of choice: number")
    best = max(scores.values())
    if best <= 0:
        raise DataError(f"{where}: no choice of {text!r} scores above 0; mark the right one with 1")
    correct = unique(choice for choice, score in scores.items() if score == best)
    choices = unique(scores)
    if not correct or len(choices) < 2:
        raise DataError(f"{where}: {text!r} has fewer than two choices that differ; give at least two")
    return Question(
        id=f"q{number:04d}",
        question=text,
        best=correct[0],
        correct=correct,
        incorrect=tuple(c for c in choices if c not in correct),
        choices=choices,
        category=name,
    )

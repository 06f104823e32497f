"""Reference answers of questions as statements that are true or false."""

from __future__ import annotations

from collections.abc import Sequence

from exitlens.data.records import Question, Statement

__all__ = ["as_statements"]


def as_statements(questions: Sequence[Question], topic: str = "answers") -> list[Statement]:
    """Every reference answer as a statement "question answer", true for correct ones.

    All answers to one question share its pair, so no split parts them.
    """
    out = []
    for question in questions:
        answers = [(answer, 1) for answer in dict.fromkeys((question.best, *question.correct))]
        answers += [(answer, 0) for answer in dict.fromkeys(question.incorrect)]
        for k, (answer, label) in enumerate(answers):
            text = f"{question.question.strip()} {answer.strip()}"
            out.append(Statement(f"{question.id}:{k}", text, label, question.category or topic, pair=question.id))
    return out

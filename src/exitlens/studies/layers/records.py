"""What is looked at layer by layer: a prompt, with choices or without; made and checked without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exitlens.data.prompts import QA_PROMPT, qa_prompt
from exitlens.errors import InputError

__all__ = ["LookRecord", "question_record"]


@dataclass(frozen=True, slots=True)
class LookRecord:
    """A prompt with choices; ``correct[i]`` says whether choice i is correct (all False: not known)."""

    id: str
    question: str
    prompt: str
    choices: tuple[str, ...] = ()
    correct: tuple[bool, ...] = ()


def question_record(
    question: str, choices: Sequence[str], correct: str | None = None, *, plain: bool = False
) -> LookRecord:
    """A record for one question. Raises InputError for an empty question and for a ``correct`` that is no choice."""
    if not question.strip():
        raise InputError("the question is empty: give a text")
    if correct is not None and correct.strip() not in choices:
        raise InputError(
            f"the correct answer '{correct}' is not among the choices: {', '.join(choices) or 'none given'}"
        )
    prompt = question if plain else "".join(qa_prompt(question, QA_PROMPT))
    is_correct = tuple(correct is not None and choice == correct.strip() for choice in choices)
    return LookRecord("question", question, prompt, tuple(choices), is_correct)

"""Multiple choice: how probable one decoder finds the answers that are given with each question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exitlens.data.prompts import QA_PROMPT, PromptStyle, qa_prompt
from exitlens.data.records import Question, as_records
from exitlens.decoding.contrast.base import Decoder
from exitlens.decoding.score import ContinuationScorer
from exitlens.errors import InputError
from exitlens.models.forward import shared_prefix
from exitlens.models.protocol import LayeredModel
from exitlens.scoring.choice import choice_scores

__all__ = ["ChooseStage", "McScores", "mc_scores"]


@dataclass(frozen=True, slots=True, repr=False)
class McScores:
    """Multiple choice, question by question: ``mc1``, ``mc2``, ``mc3`` ``[n]``, and the answers' scores.

    ``best[i]`` is one number, ``correct[i]`` and ``incorrect[i]`` one a reference answer, in the data's order.
    """

    mc1: NDArray[np.float64]
    mc2: NDArray[np.float64]
    mc3: NDArray[np.float64]
    best: NDArray[np.float64]
    correct: tuple[NDArray[np.float64], ...]
    incorrect: tuple[NDArray[np.float64], ...]
    decoder: str
    post_softmax: bool

    def __repr__(self) -> str:
        means = ", ".join(f"{name.upper()} {getattr(self, name).mean():.3f}" for name in ("mc1", "mc2", "mc3"))
        scores = "log-probabilities" if self.post_softmax else "the decoder's scores"
        return (
            f"McScores of {len(self.mc1)} questions, decoder {self.decoder}, from {scores}\n  mean {means}\n"
            "  .mc1, .mc2 and .mc3 have a value a question, .correct and .incorrect one a reference"
        )


def mc_scores(
    lm: LayeredModel,
    questions: Sequence[Question],
    decoder: str | Decoder = "vanilla",
    post_softmax: bool = True,
    *,
    style: PromptStyle | str = QA_PROMPT,
    batch_size: int = 32,
    progress: Any = None,
) -> McScores:
    """MC1, MC2 and MC3 of ``questions``: an answer's score is the sum over its tokens after ``A:``.

    The few-shot opening is run once, each question once.

    Args:
        lm: The model.
        questions: With correct and incorrect answers.
        decoder: Whose scores are summed.
        post_softmax: Sum log-probabilities, not the decoder's own scores.
        style: The prompt around a question.
        batch_size: Answers scored together.
        progress: Called with questions done and questions in all.

    Returns:
        The three measures of each question, and the scores that they come from.

    Raises:
        InputError: A question without correct or incorrect answers.
        ContextError: A question or answer that does not fit the model's context.
    """
    questions = as_records(questions, Question)
    for question in questions:
        if not question.correct or not question.incorrect:
            raise InputError(
                f"question {question.id!r} has no {'incorrect' if question.correct else 'correct'} answers: "
                "multiple choice needs both"
            )
    contexts = [lm.encode("".join(qa_prompt(q, style))) for q in questions]
    scorer = ContinuationScorer(lm, decoder, shared=shared_prefix(contexts), post_softmax=post_softmax)
    best, correct, incorrect = [], [], []
    for start in range(0, len(questions), batch_size):
        some = range(start, min(start + batch_size, len(questions)))
        answers = {
            i: list(dict.fromkeys((questions[i].best, *questions[i].correct, *questions[i].incorrect))) for i in some
        }
        pairs = []
        for i in some:
            text = "".join(qa_prompt(questions[i], style))
            pairs += [(contexts[i], _answer_ids(lm, text, contexts[i], answer)) for answer in answers[i]]
        scored = iter(scorer.score(pairs, batch_size=batch_size))
        for i in some:
            found = {answer: next(scored).total for answer in answers[i]}
            best.append(found[questions[i].best])
            correct.append(np.array([found[a] for a in questions[i].correct]))
            incorrect.append(np.array([found[a] for a in questions[i].incorrect]))
        if progress is not None:
            progress(some.stop, len(questions))
    made = choice_scores(best, correct, incorrect)
    return McScores(
        made.mc1,
        made.mc2,
        made.mc3,
        np.array(best),
        tuple(correct),
        tuple(incorrect),
        scorer.decoder.name,
        post_softmax,
    )


def _answer_ids(lm: LayeredModel, text: str, context: Sequence[int], answer: str) -> list[int]:
    """The tokens of ``" answer"`` after ``text``: those of the whole where it begins with the context's."""
    whole = lm.encode(f"{text} {answer.strip()}")
    if whole[: len(context)] == list(context):
        return list(whole[len(context) :])
    return list(lm.encode(f" {answer.strip()}", special=False))


@dataclass(frozen=True)
class ChooseStage:
    """MC1, MC2 and MC3 of each question by ``decoder``. Table ``choices``: question_id, metric, value.

    ``softmax``: from log-probabilities of the decoder's own distribution, else from its scores (``mc1_scores`` …).
    """

    name: ClassVar[str] = "choose"
    version: ClassVar[int] = 1

    decoder: str
    softmax: bool = True

    def settings(self) -> dict[str, Any]:
        """See :class:`exitlens.runs.engine.Stage`."""
        return {"decoder": self.decoder, "softmax": self.softmax}

    def identify(self, record: Question) -> Any:
        """See :class:`exitlens.runs.engine.Stage`."""
        return [record.id, record.question, record.best, record.correct, record.incorrect]

    def run(self, lm: LayeredModel, batch: Sequence[Question]) -> dict[str, pd.DataFrame]:
        """See :class:`exitlens.runs.engine.Stage`."""
        found = mc_scores(lm, batch, self.decoder, self.softmax)
        end = "" if self.softmax else "_scores"
        wide = pd.DataFrame(
            {
                "question_id": [question.id for question in batch],
                f"mc1{end}": found.mc1,
                f"mc2{end}": found.mc2,
                f"mc3{end}": found.mc3,
            }
        )
        return {"choices": wide.melt(id_vars="question_id", var_name="metric", value_name="value")}

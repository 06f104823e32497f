"""Answers of all decoders and what judges say of them, question by question, as views need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exitlens.report.frames import Results

__all__ = ["AnswerTable", "answers_and_verdicts"]


@dataclass(frozen=True, slots=True)
class AnswerTable:
    """``texts`` [question, decoder]; ``verdicts`` [question, decoder, judge]: True, False, or None: not decided."""

    ids: list[str]
    questions: list[str]
    decoders: list[str]
    judges: list[str]
    texts: NDArray[Any]
    verdicts: NDArray[Any]

    @staticmethod
    def column(values: Sequence[str]) -> NDArray[Any]:
        """Texts as a column of a view."""
        out = np.empty(len(values), dtype=object)
        out[:] = list(values)
        return out


def answers_and_verdicts(results: Results) -> AnswerTable | None:
    """The tables ``answers`` and ``judgements`` of a run; None where there are no answers."""
    answers = results.rows("answers")
    if not answers:
        return None
    ids = list(dict.fromkeys(str(row["question_id"]) for row in answers))
    decoders = list(dict.fromkeys(str(row["decoder"]) for row in answers))
    judged = results.rows("judgements")
    judges = list(dict.fromkeys(str(row["judge"]) for row in judged))
    place = {key: i for i, key in enumerate(ids)}
    questions = [""] * len(ids)
    texts = np.full((len(ids), len(decoders)), None, dtype=object)
    for row in answers:
        at = place[str(row["question_id"])]
        questions[at] = str(row["question"])
        texts[at, decoders.index(str(row["decoder"]))] = str(row["answer"])
    verdicts = np.full((len(ids), len(decoders), len(judges)), None, dtype=object)
    for row in judged:
        if str(row["question_id"]) in place and str(row["decoder"]) in decoders and row["correct"] is not None:
            where = (
                place[str(row["question_id"])],
                decoders.index(str(row["decoder"])),
                judges.index(str(row["judge"])),
            )
            verdicts[where] = None if row["correct"] != row["correct"] else bool(row["correct"])
    return AnswerTable(ids, questions, decoders, judges, texts, verdicts)

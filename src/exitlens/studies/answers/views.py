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

    def verdict_rows(self, decoders: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Verdicts as a table of a view, a row for each question, decoder and judge, in this order.

        Args:
            decoders: The first of the decoders; by default all.

        Returns:
            Arrays ``verdicts.question_id``, ``.decoder``, ``.judge`` and ``.correct``.
        """
        some = list(decoders) or self.decoders
        rows = [(key, decoder, judge) for key in self.ids for decoder in some for judge in self.judges]
        columns = [self.column(each) for each in zip(*rows, strict=True)]
        named = dict(zip(("verdicts.question_id", "verdicts.decoder", "verdicts.judge"), columns, strict=True))
        return named | {"verdicts.correct": self.verdicts[:, : len(some)].reshape(-1)}

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

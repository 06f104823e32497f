"""Multiple choice: how probable one decoder finds the answers that are given with each question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from exitlens.data.records import Question
from exitlens.decoding import mc_scores
from exitlens.models.protocol import LayeredModel

__all__ = ["ChooseStage"]


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

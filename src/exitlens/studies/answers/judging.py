"""Metrics and judges by the names that settings use, loaded once, and their verdicts as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from exitlens.data.readers.rows import table_rows
from exitlens.data.records import Question
from exitlens.data.sources import read_source
from exitlens.errors import ConfigError
from exitlens.scoring import (
    Bleu,
    ExactChoice,
    Judge,
    LabelsFromFile,
    ReferenceMargin,
    RougeL,
    SimilarityThreshold,
    TextMetric,
    parse_labels,
)

__all__ = ["JUDGES", "Scorers", "judge_answers"]

JUDGES = ("similarity[:threshold]", "margin:bleu", "margin:rouge", "margin:bertscore", "choice", "labels:FILE")


@dataclass
class Scorers:
    """The text metrics of a run. The encoder of BERTScore is loaded when it is first needed.

    ``encoder``: catalogue name, folder or Hub id; None leaves BERTScore out.
    """

    encoder: str | None = "all-minilm-l6-v2"
    layer: int | None = None
    device: str = "auto"
    _bertscore: TextMetric | None = field(default=None, repr=False)

    def metrics(self) -> list[TextMetric]:
        """BLEU, ROUGE-L and, with an encoder, BERTScore."""
        return [Bleu(), RougeL(), *([self.bertscore()] if self.encoder is not None else [])]

    def bertscore(self) -> TextMetric:
        """BERTScore F1; raises ConfigError when no encoder is set."""
        if self.encoder is None:
            raise ConfigError("BERTScore is needed but bertscore_model is none: name an encoder, or another judge")
        if self._bertscore is None:
            from exitlens.scoring import BertScorer

            self._bertscore = BertScorer(self.encoder, layer=self.layer, device=self.device)
        return self._bertscore

    def metric(self, name: str) -> TextMetric:
        """``bleu``, ``rouge`` (or ``rougeL``) or ``bertscore``; raises ConfigError."""
        known = "rouge" if name.lower() in ("rougel", "rouge-l") else name.lower()
        if known == "bleu":
            return Bleu()
        if known == "rouge":
            return RougeL()
        if known == "bertscore":
            return self.bertscore()
        raise ConfigError(f"no metric '{name}': use bleu, rouge or bertscore")

    def judge(self, text: str) -> Judge:
        """A judge by its name in settings, see :data:`JUDGES`; raises ConfigError, DataError."""
        head, _, rest = text.partition(":")
        if head == "similarity":
            try:
                threshold = float(rest) if rest else 0.85
            except ValueError:
                raise ConfigError(
                    f"threshold '{rest}' of judge '{text}' is not a number: write similarity:0.85"
                ) from None
            return SimilarityThreshold(self.bertscore(), threshold)
        if head == "margin":
            return ReferenceMargin(self.metric(rest or "rouge"))
        if head == "choice" and not rest:
            return ExactChoice()
        if head == "labels" and rest:
            source = read_source(Path(rest).expanduser(), "labels")
            return LabelsFromFile(parse_labels(table_rows(source)), source.path.name)
        raise ConfigError(f"no judge '{text}': use {', '.join(JUDGES)}")


def judge_answers(
    judges: Sequence[Judge], decoder: str, questions: Sequence[Question], answers: Sequence[str]
) -> pd.DataFrame:
    """Table ``judgements``: decoder, question_id, judge, value, right (missing where nothing was decided)."""
    frames = []
    for judge in judges:
        found = judge.judge(questions, answers)
        frames.append(
            pd.DataFrame(
                {
                    "decoder": decoder,
                    "question_id": [question.id for question in questions],
                    "judge": judge.name,
                    "value": found.value,
                    "right": pd.array(found.labels, dtype="boolean"),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)

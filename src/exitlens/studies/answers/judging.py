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
    LABEL_COLUMNS,
    ExactChoice,
    Judge,
    LabelsFromFile,
    ReferenceMargin,
    RougeL,
    SimilarityThreshold,
    TextMetric,
    parse_labels,
    protocol_named,
)
from exitlens.scoring.names import metric_name, parse_judge

__all__ = ["Scorers", "check_judges", "judge_answers"]


@dataclass
class Scorers:
    """The text metrics of a run. The encoder of BERTScore is loaded when it is first needed.

    ``encoder``: catalogue name, folder or Hub id; None leaves BERTScore out. ``protocol``: how answers meet references,
    see :mod:`exitlens.scoring.truthfulqa`.
    """

    encoder: str | None = "all-minilm-l6-v2"
    layer: int | None = None
    device: str = "auto"
    protocol: str = "truthfulqa"
    _bertscore: TextMetric | None = field(default=None, repr=False)

    def metrics(self) -> list[TextMetric]:
        """BLEU, ROUGE-L and, with an encoder, BERTScore."""
        return [self.metric("bleu"), RougeL(), *([self.bertscore()] if self.encoder is not None else [])]

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
        known = metric_name(name)
        return (
            protocol_named(self.protocol).bleu()
            if known == "bleu"
            else RougeL()
            if known == "rouge"
            else self.bertscore()
        )

    def judge(self, text: str) -> Judge:
        """A judge by its name in settings, see :mod:`exitlens.scoring.names`; raises ConfigError, DataError."""
        head, rest = parse_judge(text)
        if head == "similarity":
            return SimilarityThreshold(self.bertscore(), float(rest))
        if head == "margin":
            return ReferenceMargin(self.metric(rest), self.protocol)
        if head == "choice":
            return ExactChoice()
        source = read_source(Path(rest).expanduser(), "labels")
        return LabelsFromFile(parse_labels(table_rows(source, LABEL_COLUMNS)), source.path.name)


def check_judges(names: Sequence[str], encoder: str | None) -> None:
    """Raise ConfigError or DataError for a judge that cannot be made; the encoder is not loaded for it."""
    for name in names:
        head, rest = parse_judge(name)
        needs_encoder = head == "similarity" or (head == "margin" and rest == "bertscore")
        # Any metric stands in for the encoder's: only names and files are looked at here.
        Scorers(encoder, _bertscore=RougeL() if needs_encoder else None).judge(name)


def judge_answers(
    judges: Sequence[Judge], decoder: str, questions: Sequence[Question], answers: Sequence[str]
) -> pd.DataFrame:
    """Table ``judgements``: decoder, question_id, judge, value, correct (missing where nothing was decided)."""
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
                    "correct": pd.array(found.labels, dtype="boolean"),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)

"""How good answers are: text metrics, multiple choice, judges, and stored predictions lined up with their questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exitlens.lazy import lazy_names

if TYPE_CHECKING:
    from exitlens.scoring.bertscore import DEFAULT_ENCODER as DEFAULT_ENCODER
    from exitlens.scoring.bertscore import BertScorer as BertScorer
    from exitlens.scoring.bertscore import Encoder as Encoder
    from exitlens.scoring.choice import ChoiceScores as ChoiceScores
    from exitlens.scoring.choice import binary as binary
    from exitlens.scoring.choice import choice_scores as choice_scores
    from exitlens.scoring.choice import mc1 as mc1
    from exitlens.scoring.choice import mc2 as mc2
    from exitlens.scoring.choice import mc3 as mc3
    from exitlens.scoring.judges import LABEL_COLUMNS as LABEL_COLUMNS
    from exitlens.scoring.judges import ExactChoice as ExactChoice
    from exitlens.scoring.judges import Judge as Judge
    from exitlens.scoring.judges import Judgement as Judgement
    from exitlens.scoring.judges import LabelsFromFile as LabelsFromFile
    from exitlens.scoring.judges import ReferenceMargin as ReferenceMargin
    from exitlens.scoring.judges import SimilarityThreshold as SimilarityThreshold
    from exitlens.scoring.judges import parse_labels as parse_labels
    from exitlens.scoring.predictions import Prediction as Prediction
    from exitlens.scoring.predictions import align as align
    from exitlens.scoring.predictions import parse_predictions as parse_predictions
    from exitlens.scoring.text import Bleu as Bleu
    from exitlens.scoring.text import RougeL as RougeL
    from exitlens.scoring.text import TextMetric as TextMetric
    from exitlens.scoring.text import best_of as best_of
    from exitlens.scoring.text import corpus_bleu as corpus_bleu
    from exitlens.scoring.truthfulqa import PROTOCOLS as PROTOCOLS
    from exitlens.scoring.truthfulqa import best_answer_scores as best_answer_scores
    from exitlens.scoring.truthfulqa import protocol_named as protocol_named
    from exitlens.scoring.truthfulqa import score_rows as score_rows
    from exitlens.scoring.truthfulqa import truthfulqa_scores as truthfulqa_scores

_HOME = {
    "BertScorer": "bertscore",
    "Bleu": "text",
    "ChoiceScores": "choice",
    "DEFAULT_ENCODER": "bertscore",
    "Encoder": "bertscore",
    "ExactChoice": "judges",
    "Judge": "judges",
    "Judgement": "judges",
    "LABEL_COLUMNS": "judges",
    "LabelsFromFile": "judges",
    "PROTOCOLS": "truthfulqa",
    "Prediction": "predictions",
    "ReferenceMargin": "judges",
    "RougeL": "text",
    "SimilarityThreshold": "judges",
    "TextMetric": "text",
    "align": "predictions",
    "best_answer_scores": "truthfulqa",
    "best_of": "text",
    "binary": "choice",
    "choice_scores": "choice",
    "corpus_bleu": "text",
    "mc1": "choice",
    "mc2": "choice",
    "mc3": "choice",
    "parse_labels": "judges",
    "parse_predictions": "predictions",
    "protocol_named": "truthfulqa",
    "score_rows": "truthfulqa",
    "truthfulqa_scores": "truthfulqa",
}

__all__ = list(_HOME)

__getattr__ = lazy_names(__name__, _HOME)

"""How good answers are: text metrics, multiple choice, judges, and stored predictions lined up with their questions."""

from .bertscore import DEFAULT_ENCODER, BertScorer, Encoder
from .choice import ChoiceScores, binary, choice_scores, mc1, mc2, mc3
from .judges import (
    ExactChoice,
    Judge,
    Judgement,
    LabelsFromFile,
    ReferenceMargin,
    SimilarityThreshold,
    parse_labels,
)
from .predictions import Prediction, align, parse_predictions
from .text import Bleu, RougeL, TextMetric, best_of, bleu, bleu_rows, rouge_l, rouge_l_rows
from .truthfulqa import score_rows, truthfulqa_scores

__all__ = [
    "DEFAULT_ENCODER",
    "BertScorer",
    "Bleu",
    "ChoiceScores",
    "Encoder",
    "ExactChoice",
    "Judge",
    "Judgement",
    "LabelsFromFile",
    "Prediction",
    "ReferenceMargin",
    "RougeL",
    "SimilarityThreshold",
    "TextMetric",
    "align",
    "best_of",
    "binary",
    "bleu",
    "bleu_rows",
    "choice_scores",
    "mc1",
    "mc2",
    "mc3",
    "parse_labels",
    "parse_predictions",
    "rouge_l",
    "rouge_l_rows",
    "score_rows",
    "truthfulqa_scores",
]

"""How good answers are: text metrics, multiple choice, judges, and stored predictions lined up with their questions."""

from exitlens.scoring.bertscore import DEFAULT_ENCODER, BertScorer, Encoder
from exitlens.scoring.choice import ChoiceScores, binary, choice_scores, mc1, mc2, mc3
from exitlens.scoring.judges import (
    LABEL_COLUMNS,
    ExactChoice,
    Judge,
    Judgement,
    LabelsFromFile,
    ReferenceMargin,
    SimilarityThreshold,
    parse_labels,
)
from exitlens.scoring.predictions import Prediction, align, parse_predictions
from exitlens.scoring.text import Bleu, RougeL, TextMetric, best_of, corpus_bleu
from exitlens.scoring.truthfulqa import PROTOCOLS, best_answer_scores, protocol_named, score_rows, truthfulqa_scores

__all__ = [
    "DEFAULT_ENCODER",
    "LABEL_COLUMNS",
    "PROTOCOLS",
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
    "best_answer_scores",
    "best_of",
    "binary",
    "choice_scores",
    "corpus_bleu",
    "mc1",
    "mc2",
    "mc3",
    "parse_labels",
    "parse_predictions",
    "protocol_named",
    "score_rows",
    "truthfulqa_scores",
]

"""The tables of the entropy study, column by column."""

from __future__ import annotations

from exitlens.studies.answers.columns import ANSWERS, JUDGEMENTS
from exitlens.studies.tables import NARROW, Field, TableSpec, with_interval

__all__ = ["ENTROPY_LAYERS", "ENTROPY_TABLES"]

ENTROPY_LAYERS = TableSpec(
    "entropy_layers",
    "a judge, estimator and layer",
    (
        Field("judge", "who decided which answers are correct"),
        Field("estimator", "per-group, or pooled-weights (the artefact, on request)"),
        Field("layer", "0: embeddings, N: the model's own output"),
        Field("n_correct", "answers judged correct", "answers"),
        Field("n_incorrect", "answers judged incorrect", "answers"),
        *with_interval("correct", "mean entropy over the tokens of correct answers", "nats"),
        *with_interval("incorrect", "mean entropy over the tokens of incorrect answers", "nats"),
        *with_interval("difference", "`incorrect` minus `correct`", "nats"),
        *with_interval("auroc", "probability that an incorrect answer has the higher mean entropy", "0–1"),
        Field("cohens_d", "standardised difference of the answers' means"),
        Field("p", "permutation test of the difference, token-weighted", "0–1"),
        Field("p_holm", "`p`, corrected over the layers by Holm", "0–1"),
        Field("p_bh", "`p`, corrected over the layers by Benjamini and Hochberg", "0–1"),
        Field("adjusted_difference", "the difference with the answer's length as a covariate", "nats"),
        Field("adjusted_p", "its p-value (HC3)", "0–1"),
        NARROW,
    ),
    printed=True,
)
ENTROPY_TABLES = (
    ANSWERS,
    JUDGEMENTS,
    TableSpec(
        "entropy_tokens",
        "an answer's token and a layer",
        (
            Field("question_id", "id of the question"),
            Field("position", "of the token in its answer, from 0", "tokens"),
            Field("token_id", "id of the token"),
            Field("token", "its text"),
            Field("layer", "0: embeddings, N: the model's own output"),
            Field("entropy", "of the layer's distribution from which the token was chosen", "nats"),
        ),
    ),
    ENTROPY_LAYERS,
)

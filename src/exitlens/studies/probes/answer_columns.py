"""The tables of probes on the model's own answers, column by column."""

from __future__ import annotations

from exitlens.studies.probes.columns import METRICS
from exitlens.studies.tables import NARROW, Field, TableSpec

__all__ = ["ANSWER_TABLES"]

_JUDGE = Field("judge", "who decided which answers are correct")
_POSITION = Field("position", "exact-answer (its last token) or every-answer-token (each token is a row)")
_KIND = Field("kind", "kind of probe, control, or what it has to beat")
_ROLE = Field("role", "probe, ensemble, control, floor (text only) or lm (entropy, log-probability, p(true))")
_PROTOCOL = Field("protocol", "which answers are trained and tested on; answers to one question stay together")
_N = Field("n", "held-out rows: answers, or their tokens")
_SEEDS = Field("n_seeds", "seeds over which the values are averaged", "seeds")

ANSWER_TABLES = (
    TableSpec(
        "answer_probe_judges",
        "a judge",
        (
            _JUDGE,
            _POSITION,
            Field("n_correct", "answers judged correct", "answers"),
            Field("n_incorrect", "answers judged incorrect", "answers"),
            Field("n_undecided", "answers without a verdict, or without a token", "answers"),
            Field("reason", "why nothing was fitted; empty where probes were fitted"),
        ),
        printed=True,
    ),
    TableSpec(
        "answer_probe_spans",
        "an answer",
        (
            Field("question_id", "id of the question"),
            Field("answer", "the text generated"),
            Field("exact_answer", "the tokens that answer the question, as text"),
            Field("found_by", "verdict (a leading yes or no), alignment (what the question does not say) or sentence"),
            Field("first", "the first of these tokens, counted from the answer's first", "tokens"),
            Field("end", "the token after the last", "tokens"),
            Field("entropy", "mean over the answer's tokens, of the model's output", "nats"),
            Field("log_probability", "mean over the answer's tokens", "nats"),
            Field("p_true", "P(true) over P(true) + P(false) when the model is asked about its answer", "0–1"),
        ),
    ),
    TableSpec(
        "answer_probe_layers",
        "a judge, kind and layer (floor and model: one row without a layer)",
        (_JUDGE, _POSITION, _KIND, _ROLE, _PROTOCOL, Field("layer", "1 to N"), _SEEDS, *METRICS, _N, NARROW),
        printed=True,
    ),
    TableSpec(
        "answer_probe_best",
        "a judge, and a kind at the layer chosen inside the training folds",
        (
            _JUDGE,
            _POSITION,
            _KIND,
            _ROLE,
            _PROTOCOL,
            Field("layers", "the layer chosen in each fold, comma-separated"),
            Field("settings", "the regularisation chosen in each fold, comma-separated"),
            Field("folds", "the folds' names, comma-separated"),
            Field("n_test", "held-out rows: answers, or their tokens"),
            _SEEDS,
            Field("selectivity", "accuracy minus that of the random-label control at the same layers", "0–1"),
            *METRICS,
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "answer_probe_gaps",
        "a judge, a probe and what it has to beat",
        (
            _JUDGE,
            _POSITION,
            Field("probe", "kind of probe, at the layer chosen inside the training folds"),
            Field("rival", "what it has to beat"),
            Field("difference", "AUROC of the probe minus that of the rival, on the same rows", "0–1"),
            Field("low", "lower end of its interval; all intervals of one probe hold together with 95%", "0–1"),
            Field("high", "upper end of its interval", "0–1"),
            NARROW,
        ),
        printed=True,
    ),
)

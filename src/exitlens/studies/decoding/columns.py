"""The tables of the decoding study, column by column."""

from __future__ import annotations

from exitlens.studies.answers.columns import ANSWERS, JUDGEMENTS
from exitlens.studies.tables import NARROW, Field, TableSpec, with_interval

__all__ = ["DECODING", "DECODING_TABLES", "PARTINGS"]

_DECODER = Field("decoder", "as the run names it")

DECODING = TableSpec(
    "decoding",
    "a decoder and metric",
    (
        _DECODER,
        Field("metric", "bleu, rouge or bertscore with _max, _diff or _acc; mc1, mc2, mc3"),
        Field("protocol", "of text metrics: truthfulqa (published) or plain; missing for multiple choice"),
        Field("n", "questions that have a value for every decoder", "questions"),
        Field("mean", "over these questions", "as the metric has it"),
        Field("low", "lower end of the 95% interval of `mean`", "as the metric has it"),
        Field("high", "upper end of the 95% interval of `mean`", "as the metric has it"),
        *with_interval("difference", "to the first decoder, paired by question (missing for the first)", "as `mean`"),
        Field("p", "paired sign-flip test of the difference", "0–1"),
        Field("repetition_penalty", "with which the decoder ran (1: none)"),
        NARROW,
    ),
    printed=True,
)
PARTINGS = TableSpec(
    "decoding_partings",
    "a decoder, question and candidate layer, at the first token that the first decoder would not have written",
    (
        _DECODER,
        Field("question_id", "id of the question"),
        Field("position", "the token's place in the answer, from 0", "tokens"),
        Field("token", "what the decoder wrote there"),
        Field("first_token", "what the first decoder wrote there (missing: its answer had ended)"),
        Field("layer", "a candidate layer"),
        Field("divergence", "between it and the final layer, as the decoder computes it (missing: it does not)"),
        Field("chosen", "whether the decoder contrasted with this layer"),
    ),
)
DECODING_TABLES = (
    ANSWERS,
    JUDGEMENTS,
    TableSpec(
        "scores",
        "a decoder, question and metric",
        (
            _DECODER,
            Field("question_id", "id of the question"),
            Field("metric", "as in `decoding`"),
            Field("value", "missing where the metric is not defined", "as the metric has it"),
        ),
    ),
    DECODING,
    TableSpec(
        "decoding_layers",
        "a decoder and an early layer that it chose",
        (_DECODER, Field("layer", "the early layer"), Field("count", "tokens for which it was chosen", "tokens")),
    ),
    PARTINGS,
    TableSpec(
        "decoding_cost",
        "a decoder",
        (
            _DECODER,
            Field("repetition_penalty", "with which it ran (1: none)"),
            Field("extra_unembeddings", "layers unembedded at each token besides the last", "layers"),
            Field("answers", "answers generated", "answers"),
            Field("tokens", "tokens generated", "tokens"),
        ),
    ),
)

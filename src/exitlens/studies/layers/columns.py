"""The tables of the layer study, column by column."""

from __future__ import annotations

from exitlens.studies.tables import NARROW, Field, TableSpec

__all__ = ["LAYERS_TABLES"]

_ID = Field("question_id", "id of the question")
_LENS = Field("lens", "through which the layer is read")
_LAYER = Field("layer", "0: embeddings, N: the model's own output")

_COMPONENT = Field("component", "embeddings, the attention or MLP of a block, final bias, or rounding (half precision)")
_KIND = Field("kind", "attention, mlp, mixer, embeddings, …")
_BLOCK = Field("block", "1 to N; 0: embeddings, -1: belongs to no block")

LAYERS_TABLES = (
    TableSpec(
        "layers",
        "a question, lens, layer and choice",
        (
            _ID,
            Field("question", "its text"),
            _LENS,
            _LAYER,
            Field("choice", "text of the choice"),
            Field("correct", "whether the choice is correct (False for all: not known)"),
            Field("rule", "what represents a choice: first-token or sequence"),
            Field("spellings", "JSON list: texts of the tokens summed for the choice (empty for sequence)"),
            Field("probability", "of the choice, over the whole vocabulary: the sum over its spellings", "0–1"),
            Field("share", "the same over the sum of the choices", "0–1"),
            Field(
                "mass", "of all choices together, over the whole vocabulary (a choice in another counts once)", "0–1"
            ),
        ),
    ),
    TableSpec(
        "layers_top",
        "a question, lens, layer and rank",
        (
            _ID,
            _LENS,
            _LAYER,
            Field("rank", "0: the top-1 token after the prompt"),
            Field("token_id", "id of the token"),
            Field("token", "its text"),
            Field("probability", "of the token", "0–1"),
        ),
    ),
    TableSpec(
        "layers_picks",
        "a question worth looking at",
        (
            _ID,
            Field("question", "its text"),
            Field("verdict", "correct or incorrect: the choice that ranks first among the choices at the last layer"),
            Field("answer", "that choice"),
            Field("correct_choice", "the first correct choice"),
            Field("interest", "how far the correct choices' share moves between some layer and the last", "0–1"),
            _LENS,
        ),
        printed=True,
    ),
    TableSpec(
        "layers_accuracy",
        "a lens and layer",
        (
            _LENS,
            _LAYER,
            Field("n", "questions whose correct choice is known", "questions"),
            Field("accuracy", "share of questions where a correct choice has the largest share", "0–1"),
            Field("low", "lower end of the 95% interval of `accuracy`", "0–1"),
            Field("high", "upper end of the 95% interval of `accuracy`", "0–1"),
            Field("chance", "what drawing a choice reaches: the mean share of choices that are correct", "0–1"),
            Field("correct_share", "mean share of the correct choices", "0–1"),
            Field("mass", "mean probability of all choices together, over the whole vocabulary", "0–1"),
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "attribution",
        "a question and component",
        (
            _ID,
            Field("question", "its text"),
            Field("correct_choice", "the correct choice whose first distinguishing token has the largest logit"),
            Field("incorrect_choice", "the incorrect choice with the largest"),
            _COMPONENT,
            _KIND,
            _BLOCK,
            Field("contribution", "what it adds to the correct choice's logit minus the incorrect one's", "logits"),
            Field("logit_difference", "the model's own difference, before its soft-cap: the sum of them", "logits"),
        ),
    ),
    TableSpec(
        "attribution_heads",
        "a question and attention head, where attention splits into heads",
        (
            _ID,
            Field("question", "its text"),
            _BLOCK,
            Field("head", "the head of the block, from 0"),
            Field(
                "contribution", "as in `attribution`; the heads of a block sum to its attention, without bias", "logits"
            ),
        ),
    ),
    TableSpec(
        "attribution_means",
        "a component",
        (
            _COMPONENT,
            _KIND,
            _BLOCK,
            Field("n", "questions whose choices one token tells apart", "questions"),
            Field("contribution", "mean over questions of what it adds to correct minus best incorrect", "logits"),
            Field("low", "lower end of the 95% interval of `contribution`", "logits"),
            Field("high", "upper end of the 95% interval of `contribution`", "logits"),
            Field("p", "two-sided sign-flip test of: the mean is 0", "0–1"),
            Field("p_holm", "the same, corrected over components (Holm)", "0–1"),
            Field("p_bh", "the same, corrected over components (Benjamini–Hochberg)", "0–1"),
            NARROW,
        ),
        printed=True,
    ),
)

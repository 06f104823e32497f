"""The tables of the exit study, column by column."""

from __future__ import annotations

from exitlens.studies.answers.columns import ANSWERS, JUDGEMENTS
from exitlens.studies.tables import NARROW, Field, TableSpec, with_interval

__all__ = ["CALIBRATION", "EXITS_TABLES"]

_POLICY = Field(
    "policy",
    "probability, margin, entropy, patience, cosine, classifier, fixed, never; oracle: the bound; best of K: no kind",
)
_THRESHOLD = Field("threshold", "of the policy; fixed: the layer; oracle: the agreement required")
_AGREEMENT = with_interval("agreement", "share of tokens that are the full model's", "0–1")
_ANSWERS = Field("n_answers", "answers that these tokens are of; on them the intervals rest", "answers")
_FLOPS = Field(
    "flops_saved", "share of the full model's FLOPs, exit checks and catching up counted (cache: defer)", "0–1"
)
_LAYERS = Field("layers_saved", "share of the blocks that a token does not run, mean over tokens", "0–1")

CALIBRATION = TableSpec(
    "exits_calibration",
    "a policy and a risk asked for",
    (
        _POLICY,
        Field("control", "ltt: one look at all calibration answers; anytime: valid whenever one stops"),
        Field("delta", "the risk allowed: share of an answer's tokens that differ from the full model's", "0–1"),
        Field("epsilon", "how often the guarantee may fail", "0–1"),
        Field(
            "chosen_among", "kinds of policy of which this one saved most; 1: the kind was given beforehand", "kinds"
        ),
        Field("level", "how often each kind's test may fail: epsilon / chosen_among (Bonferroni)", "0–1"),
        Field("n_calibration", "answers on which the threshold was chosen", "answers"),
        Field("n_test", "answers on which it was tested", "answers"),
        Field("outcome", "threshold; nowhere: no threshold passed; too few: how many answers are needed"),
        Field("threshold", "the one chosen"),
        Field("calibration_risk", "on the calibration answers", "0–1"),
        Field("answers_used", "calibration answers after which it had passed; ltt: all of them", "answers"),
        *with_interval("test_risk", "on the other answers", "0–1"),
        _LAYERS,
        _FLOPS,
        NARROW,
    ),
    printed=True,
)
EXITS_TABLES = (
    ANSWERS,
    JUDGEMENTS,
    TableSpec(
        "exits",
        "a policy and threshold",
        (
            _POLICY,
            _THRESHOLD,
            Field("exits", "first and last exit layer"),
            Field("n", "tokens", "tokens"),
            _ANSWERS,
            *_AGREEMENT,
            Field("mean_exit", "mean exit layer", "layers"),
            _LAYERS,
            Field("exit_checks", "mean exit checks a token", "checks"),
            _FLOPS,
            Field("flops_saved_propagate", "the same without catching up (cache: propagate, not exact)", "0–1"),
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "exits_layers",
        "a policy, threshold and layer",
        (
            _POLICY,
            _THRESHOLD,
            Field("layer", "the exit layer"),
            Field("count", "tokens that exit there", "tokens"),
            Field("share", "the same over all tokens", "0–1"),
        ),
        printed=True,
    ),
    TableSpec(
        "exits_kinds",
        "a policy, threshold and group of tokens",
        (
            _POLICY,
            _THRESHOLD,
            Field("kind", "how tokens are grouped: position, confidence, verdict:JUDGE"),
            Field("group", "positions in the answer, confidence of the full model, or the answer's verdict"),
            Field("n", "tokens of the group", "tokens"),
            _ANSWERS,
            *_AGREEMENT,
            Field("mean_exit", "mean exit layer", "layers"),
            NARROW,
        ),
        printed=True,
    ),
    CALIBRATION,
)

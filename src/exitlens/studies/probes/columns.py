"""The tables of the probe study, column by column."""

from __future__ import annotations

from exitlens.studies.tables import NARROW, Field, TableSpec, with_interval

__all__ = ["METRICS", "PROBES_TABLES"]

_KIND = Field("kind", "kind of probe, control, floor or the model's own answer")
_ROLE = Field("role", "probe, ensemble, control, floor (text only) or lm (the language model's own answer)")
_PROTOCOL = Field("protocol", "which statements are trained and tested on")
_SEEDS = Field("n_seeds", "seeds over which the values are averaged", "seeds")
METRICS = (
    *with_interval("accuracy", "share of held-out statements classified correctly", "0–1"),
    *with_interval("auroc", "probability that a true statement is ranked above a false one, mean over folds", "0–1"),
    *with_interval("brier", "mean squared error of P(true)", "0–1"),
    *with_interval("ece", "expected calibration error, 15 bins", "0–1"),
    *with_interval("selective_accuracy", "selective accuracy at 80% coverage", "0–1"),
    *with_interval("aurc", "area under the risk–coverage curve", "0–1"),
)

PROBES_TABLES = (
    TableSpec(
        "probes",
        "a setting and method of the original study",
        (
            Field("setting", "few-shot (after the few-shot prompt) or zero-shot (the statement alone)"),
            Field("method", "MLP, majority, or the language model's own answer (LM …)"),
            Field("layer", "the probed layer; missing for a method without one"),
            Field("n_train", "training statements", "statements"),
            Field("n_test", "test statements, of the held-out topic", "statements"),
            Field("train_loss", "after the last epoch", "nats"),
            Field("train_accuracy", "after training, on the training statements", "0–1"),
            Field("test_loss", "over the whole test set", "nats"),
            *with_interval("test_accuracy", "on the held-out topic", "0–1"),
            Field("auroc", "on the held-out topic", "0–1"),
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "probe_curves",
        "a setting, layer and epoch of the original study",
        (
            Field("setting", "few-shot or zero-shot"),
            Field("layer", "the probed layer"),
            Field("epoch", "from 1"),
            Field("train_loss", "mean over the epoch's batches", "nats"),
            Field("train_accuracy", "mean over the epoch's batches", "0–1"),
        ),
    ),
    TableSpec(
        "probe_layers",
        "a kind and layer (floor and model: one row without a layer)",
        (
            _KIND,
            _ROLE,
            _PROTOCOL,
            Field("layer", "1 to N"),
            _SEEDS,
            *METRICS,
            Field("n", "held-out statements"),
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "probe_best",
        "a kind at the layer chosen inside the training folds",
        (
            _KIND,
            _ROLE,
            _PROTOCOL,
            Field("layers", "the layer chosen in each fold, comma-separated"),
            Field("settings", "the regularisation chosen in each fold, comma-separated"),
            Field("folds", "the folds' names, comma-separated"),
            Field("n_test", "held-out statements", "statements"),
            _SEEDS,
            Field("selectivity", "accuracy minus that of the random-label control at the same layers", "0–1"),
            *METRICS,
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "probe_comparisons",
        "a pair of kinds",
        (
            Field("a", "one kind"),
            Field("b", "the other"),
            Field("difference", "accuracy of `a` minus that of `b`, paired", "0–1"),
            Field("low", "lower end of the 95% interval of `difference`", "0–1"),
            Field("high", "upper end of the 95% interval of `difference`", "0–1"),
            Field("p", "paired sign-flip test over groups", "0–1"),
            Field("p_holm", "`p`, corrected over the pairs by Holm", "0–1"),
            _PROTOCOL,
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "probe_calibration",
        "a kind and bin of P(true)",
        (
            Field("confidence", "mean P(true) of the bin", "0–1"),
            *with_interval("observed", "share of true statements in the bin", "0–1"),
            Field("n", "statements in the bin, mean over seeds", "statements"),
            _KIND,
            _PROTOCOL,
            NARROW,
        ),
    ),
    TableSpec(
        "probe_risk",
        "a kind and coverage",
        (
            Field("coverage", "share of statements answered, the most confident first", "0–1"),
            *with_interval("risk", "share of errors among them", "0–1"),
            _KIND,
            _PROTOCOL,
            NARROW,
        ),
    ),
    TableSpec(
        "probe_transfer",
        "a pair of topics",
        (
            _KIND,
            Field("train_topic", "the topic trained on"),
            Field("test_topic", "the topic tested on"),
            Field("layer", "chosen on the training topic"),
            Field("n", "test statements", "statements"),
            *with_interval("accuracy", "on the test topic", "0–1", optional=True),
            *with_interval("auroc", "on the test topic", "0–1", optional=True),
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "probe_verdict",
        "the run",
        (
            _PROTOCOL,
            Field("setting", "prompt around the statements: few-shot or zero-shot"),
            Field("position", "where a statement is read: last, mean, answer or every"),
            Field("sentence", "whether the best probe beats the text-only floor and the model's own answer"),
        ),
    ),
)

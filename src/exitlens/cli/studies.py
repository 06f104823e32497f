"""`exitlens layers`, `entropy`, `decoding`, `probe`, `exits`: one command a study, its options a run's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from exitlens.cli._settings import Own
from exitlens.cli.help import add_command, new_group
from exitlens.cli.predict import predict_command
from exitlens.cli.study_command import ANSWERS, LOADING, OUT, SPREAD, keyword, study_command, under
from exitlens.cli.train_exits import adapt_command, train_command

__all__ = ["register"]

_JSON = "--json prints model, findings (sentences) and the {}, which docs/tables.md describes."
_QUESTIONS = {"model": Own(), "data": Own(), "column": Own(), "limit": Own(), **OUT, "seed": Own()}
_KINDS, _ORIGINAL = "Probes of --kinds", "The original study"

LAYERS = {
    **_QUESTIONS,
    "layers": Own(),
    "lens": Own(help="Lenses, comma-separated: logit, raw, tuned, jacobian, a file or a name."),
    "prompts": Own(),
    **under("Choices", "rule", "look_limit", "picks", "top_k"),
    **LOADING,
}
_ANSWERS = {**ANSWERS, **under("Answers", "generation_config")}
ENTROPY = {**_QUESTIONS, "judges": Own(), "entropy_estimators": Own(), **_ANSWERS, **LOADING}
DECODING = {**_QUESTIONS, "decoders": Own(), "mc": Own(), "scoring": Own(), "judges": Own(), **_ANSWERS, **LOADING}
PROBE = {
    "model": Own(),
    "statements": Own(("--data", "-d")),
    "column": Own(help="A file's columns: statement=Claim,label=Truth."),
    "limit_statements": Own(("--limit",)),
    "kinds": Own(),
    **OUT,
    "seed": Own(),
    "protocol": Own(heading=_KINDS),
    "probe_layers": Own(("--layers",), heading=_KINDS),
    "position": Own(
        ("--position",),
        help="Of a statement: last, mean, answer, every; of an answer: exact-answer, every-answer-token.",
        heading=_KINDS,
    ),
    "test_data": Own(heading=_KINDS),
    "probe_seeds": Own(("--seeds",), heading=_KINDS),
    "original": Own(help="The original study's table [yes, unless --kinds].", heading=_ORIGINAL),
    **under(_ORIGINAL, "probed_layers", "epochs", "test_topic"),
    "zero_shot": Own(
        ("--zero-shot/--few-shot",),
        help="Prompt [--kinds: few-shot; original: both].",
        heading=_ORIGINAL,
    ),
    "states": Own(heading=_KINDS),
    **SPREAD,
}
EXITS = {
    **_QUESTIONS,
    "exit_heads": Own(("--heads",)),
    "exit_lens": Own(("--lens",)),
    "adapter": Own(),
    "exit_layers": Own(("--layers",)),
    "exit_delta": Own(("--delta",)),
    "exit_epsilon": Own(("--epsilon",)),
    "exit_test": Own(("--control",)),
    "judges": Own(default="none", heading="Answers"),
    **ANSWERS,
    "batch_size": Own(default="16", heading="Answers"),
    **LOADING,
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    layers = study_command(
        "layers",
        LAYERS,
        "What would each layer have answered? The probability of every choice at every layer.\n\n"
        + _JSON.format("tables layers_accuracy and layers_picks"),
    )
    entropy = study_command(
        "entropy",
        ENTROPY,
        "Answer questions and compare the entropy of correct and incorrect answers at every layer.\n\n"
        "Prints means (nats), difference, AUROC and corrected p-values by layer, for every judge. "
        + _JSON.format("table entropy_layers"),
    )
    decoding = study_command(
        "decoding",
        DECODING,
        "Answer questions with each decoder and compare with greedy decoding, question by question.\n\n"
        + _JSON.format("table decoding"),
    )
    add_command(
        app, "layers", layers, "The probability of every choice at every layer",
        "exitlens layers --limit 20",
        "exitlens layers --data my.csv --column best=Answer --lens logit,tuned",
    )  # fmt: skip
    add_command(
        app, "entropy", entropy, "Entropy of correct and incorrect answers, layer by layer",
        "exitlens entropy --limit 40",
        "exitlens entropy --judges similarity:0.9,labels:verdicts.csv --out run",
    )  # fmt: skip
    add_command(
        app, "decoding", decoding, "Decoders compared with greedy decoding, question by question",
        "exitlens decoding --limit 40 --decoders vanilla,dola:high,sled",
        "exitlens decoding --decoders vanilla@1.2,dola:low@1.2 --mc softmax --out run",
    )  # fmt: skip
    _register_probe(app)
    _register_exits(app)


def _register_probe(app: typer.Typer) -> None:
    save = Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Save the best of --kinds, fitted on all rows."),
    ]
    probe = study_command(
        "probes",
        PROBE,
        "Do hidden states tell true from false? --kinds at every layer, then the original study.\n\n"
        + _JSON.format("tables probes, probe_best, probe_layers, probe_comparisons and probe_transfer")
        + " With --save also saved, the file.",
        adapt=_probe_settings,
        more=[keyword("save", save, None), keyword("context", typer.Context)],
    )
    group = new_group(
        app, "probe", "Do hidden states tell true statements from false ones?",
        "exitlens probe --kinds logistic,mass-mean --limit 300",
        "exitlens probe --zero-shot --kinds logistic --save probe.safetensors",
    )  # fmt: skip
    group.callback(invoke_without_command=True)(probe)
    add_command(
        group, "predict", predict_command, "P(true) of each text, by a saved probe",
        "exitlens probe predict claims.txt --probe probe.safetensors",
    )  # fmt: skip


def _probe_settings(given: dict[str, Any], save: Path | None) -> dict[str, Any]:
    """What --zero-shot, --kinds, --original, --position and --save mean together."""
    from exitlens.data.prompts import ANSWER_POSITIONS
    from exitlens.errors import ConfigError

    zero_shot, kinds = given.get("zero_shot"), given.get("kinds")
    if save is not None:
        if kinds == "none":
            raise ConfigError(f"--save '{save}' keeps the best of --kinds: name some, for example --kinds logistic")
        given = {**given, "kinds": kinds or "logistic"}  # named, so that data that it cannot be fitted on are refused
    if given.get("position") in ANSWER_POSITIONS:  # --data and --limit are then of questions
        names = {"statements": "data", "limit_statements": "limit"}
        given = {names.get(name, name): value for name, value in given.items()}
    return {
        "original": kinds in (None, "none") and save is None,
        **given,
        "setting": "zero-shot" if zero_shot else "few-shot",
        "zero_shot": zero_shot is not False,
    }


def _register_exits(app: typer.Typer) -> None:
    exits = study_command(
        "exits",
        EXITS,
        "What early exit would save: every exit policy against the full model, agreement, FLOPs and time.\n\n"
        + _JSON.format("tables exits, exits_layers, exits_kinds and exits_calibration"),
        usual={"judges": "", "batch_size": 16},
        more=[keyword("context", typer.Context)],
    )
    group = new_group(
        app, "exits", "What early exit would save; train exit heads, adapt a model",
        "exitlens exits --limit 20",
        "exitlens exits --heads heads.safetensors --delta 0.05 --out run",
    )  # fmt: skip
    group.callback(invoke_without_command=True)(exits)
    add_command(
        group, "train", train_command, "Fit exit heads on the frozen model",
        "exitlens exits train --text corpus.txt --out heads.safetensors",
    )  # fmt: skip
    add_command(
        group, "adapt", adapt_command, "Train a LoRA adapter that makes exits agree with the last layer",
        "exitlens exits adapt --self-text 200 --out adapter",
    )  # fmt: skip

"""What does an option mean that several commands share? Each is defined here once, its help from its setting of a run.

The settings of :class:`~exitlens.studies.config.RunConfig` are the source: ``option("limit")`` is the option
``--limit`` with that field's description. What the parser can check without a model it checks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from exitlens.compute.names import DTYPE_NAMES, check_device_name, dtype_name
from exitlens.layer_range import parse_layers
from exitlens.parsing import check_day
from exitlens.runs.cluster.address import parse_engine
from exitlens.studies.config import RunConfig

__all__ = [
    "BOTH",
    "CHECKS",
    "DEFAULT_MODEL",
    "MACHINES",
    "MODEL",
    "AdapterOption",
    "BaseOption",
    "BatchSizeOption",
    "BertscoreLayerOption",
    "BertscoreModelOption",
    "ColumnOption",
    "DataOption",
    "DeadlineOption",
    "DecoderOption",
    "DeviceOption",
    "DtypeOption",
    "EngineOption",
    "JsonOption",
    "JudgesOption",
    "LayersOption",
    "LensOption",
    "LimitOption",
    "MaxNewTokensOption",
    "ModelOption",
    "PenaltyOption",
    "QuietOption",
    "RevisionOption",
    "RuleOption",
    "SeedOption",
    "SelfTextOption",
    "TextFieldOption",
    "TrustOption",
    "WorkersOption",
    "checked",
    "described",
    "option",
]

DEFAULT_MODEL = str(RunConfig.model_fields["model"].default)
MACHINES = "Machines (help: exitlens read)"
BOTH = "Model, machines (help: exitlens models check, exitlens read)"  # where each line of help is dear
MODEL = "Model (help: exitlens models check)"  # how it is loaded: the same options everywhere, told once

# Short names, what stands for the value, and the heading, where the setting's own name would not do.
_SHORT = {"model": "-m", "data": "-d", "out": "-o"}
_METAVAR = {
    "model": "NAME", "data": "DATA", "statements": "DATA", "test_data": "DATA", "out": "FOLDER", "prompts": "FILE",
    "states": "FOLDER", "layers": "LAYERS", "probed_layers": "LAYERS", "probe_layers": "LAYERS",
    "compared_lenses": "LIST", "pass_at": "LIST",
    "exit_layers": "LAYERS", "lens": "LENS", "decoders": "LIST", "judges": "LIST", "kinds": "LIST", "only": "LIST",
    "position": "WHERE", "read_at": "WHERE", "generation_config": "model", "figure_width": "WIDTH",
    "entropy_estimators": "LIST", "device": "DEVICE", "dtype": "DTYPE", "revision": "REF", "bertscore_model": "NAME",
    "column": "ROLE=NAME", "protocol": "NAME", "test_topic": "NAME",
    "engine": "ENGINE", "exit_heads": "FILE", "exit_lens": "LENS", "adapter": "FOLDER", "base": "NAME",
}  # fmt: skip
_HEADING = {
    **dict.fromkeys(("device", "dtype", "revision", "trust_remote_code", "base"), MODEL),
    **dict.fromkeys(("engine", "workers", "deadline"), MACHINES),
}


def described(field: str) -> str:
    """The help of a setting: its description as a sentence."""
    text = str(RunConfig.model_fields[field].description)
    return f"{text[:1].upper()}{text[1:]}."


def option(field: str, *flags: str, help: str | None = None, heading: str | None = None, **more: Any) -> Any:  # noqa: A002
    """The option of a setting.

    Args:
        field: the setting's name in :class:`RunConfig`.
        flags: the option's names; by default ``--field`` and its short name.
        help: help of its own where one command means less than the setting does.
        heading: the heading of ``--help`` under which it stands.
        more: passed to ``typer.Option``.
    """
    names = flags or tuple(filter(None, (f"--{field.replace('_', '-')}", _SHORT.get(field))))
    more.setdefault("metavar", _METAVAR.get(field))
    return typer.Option(*names, help=help or described(field), rich_help_panel=heading or _HEADING.get(field), **more)


def checked(check: Callable[[str], object]) -> Callable[[str | None], str | None]:
    """A check as the parser calls it: on what was given, before anything is loaded."""

    def callback(value: str | None) -> str | None:
        if value is not None:
            check(value)
        return value

    return callback


def _complete(*words: str) -> Callable[[], list[str]]:
    return lambda: list(words)


CHECKS: dict[str, dict[str, Any]] = {
    "device": {"callback": checked(check_device_name), "autocompletion": _complete("auto", "cpu", "cuda", "mps")},
    "dtype": {"callback": checked(dtype_name), "autocompletion": _complete("auto", *DTYPE_NAMES)},
    "engine": {"callback": checked(parse_engine), "autocompletion": _complete("local", "ray", "ray://")},
    "layers": {"callback": checked(parse_layers), "autocompletion": _complete("all", "last", "1/2,3/4")},
    "lens": {"autocompletion": _complete("logit", "raw", "tuned", "jacobian")},
    "decoder": {"autocompletion": _complete("vanilla", "dola:high", "dola:low", "sled", "acd", "end", "delta")},
}
"""What the parser checks at once, and what a shell completes, by setting."""

ModelOption = Annotated[str, option("model")]
DeviceOption = Annotated[str, option("device", **CHECKS["device"])]
DtypeOption = Annotated[str, option("dtype", **CHECKS["dtype"])]
RevisionOption = Annotated[str | None, option("revision")]
TrustOption = Annotated[bool, option("trust_remote_code")]
BaseOption = Annotated[str | None, option("base")]
EngineOption = Annotated[str, option("engine", **CHECKS["engine"])]
WorkersOption = Annotated[int | None, option("workers", min=1)]
DeadlineOption = Annotated[float | None, option("deadline")]
ChatDateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-date",
        metavar="DAY",
        callback=checked(check_day),
        help="The day that the chat template sees: 2026-11-27.",
    ),
]
GenerationConfigOption = Annotated[Literal["model"] | None, option("generation_config", metavar="model")]

DataOption = Annotated[str, option("data", help="Questions: built-in name, file, folder or Hub id.")]
ColumnOption = Annotated[list[str] | None, option("column")]
LimitOption = Annotated[int | None, option("limit", min=1)]
SeedOption = Annotated[int, option("seed", min=0, max=2**63 - 1)]  # what torch and numpy both take
BatchSizeOption = Annotated[int, option("batch_size", min=1)]
MaxNewTokensOption = Annotated[int, option("max_new_tokens", min=1)]
PenaltyOption = Annotated[float, option("repetition_penalty", help="1 is none.")]
JudgesOption = Annotated[str, option("judges")]
BertscoreModelOption = Annotated[str, option("bertscore_model")]
BertscoreLayerOption = Annotated[int | None, option("bertscore_layer", min=0)]
LayersOption = Annotated[
    str, option("layers", help="Numbers, ranges, fractions of the depth, last, all: 0,8,16-20.", **CHECKS["layers"])
]
LensOption = Annotated[
    str,
    option("lens", help="logit, raw, tuned, jacobian (this model's own), or a lens's file or name.", **CHECKS["lens"]),
]
RuleOption = Annotated[Literal["auto", "first-token", "sequence"], option("rule")]
DecoderOption = Annotated[
    str,
    option(
        "decoders", "--decoder", metavar="NAME", help="vanilla, dola:high, static:16, sled, acd, end, delta, ...",
        **CHECKS["decoder"],
    ),
]  # fmt: skip

AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", metavar="FOLDER", help="LoRA folder of `exits adapt` or of peft.")
]
SelfTextOption = Annotated[
    int, typer.Option("--self-text", min=0, metavar="N", help="Use N texts that the model writes itself.")
]
TextFieldOption = Annotated[str, typer.Option("--field", metavar="NAME", help="Field or column that holds the text.")]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with full precision instead of a table.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks; results only.")]

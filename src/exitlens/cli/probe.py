"""`exitlens probe --data DIR`: do hidden states tell true statements from false ones?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exitlens.cli.options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    SeedOption,
    TrustOption,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("probe")(probe_command)


def probe_command(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="True/false statements: built-in name, file or folder [facts-tf]."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many statements.")] = None,
    kinds: Annotated[
        str,
        typer.Option(
            "--kinds", help="By commas: logistic, mass-mean, mass-mean-whitened, lda, mlp, ccs, ttpd; at every layer."
        ),
    ] = "",
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            help="leave-one-topic-out, grouped-k-fold, original, affirmed-to-negated, transfer, random-k-fold.",
        ),
    ] = "leave-one-topic-out",
    layers: Annotated[
        str, typer.Option("--layers", help="Layers of those probes: numbers and ranges, or all.")
    ] = "all",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of kinds that need one.")] = 5,
    taps: Annotated[
        str | None, typer.Option("--taps", help="Layers of the original study [1/2, 5/8, 3/4 of the depth].")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of the original study.")] = 5,
    test_topic: Annotated[
        str | None, typer.Option("--test-topic", help="Topic held out [cities, or the last].")
    ] = None,
    bare: Annotated[
        bool | None,
        typer.Option(
            "--bare/--prompted", help="Statements alone, or under an instruction [--kinds: prompted; original: both]."
        ),
    ] = None,
    positions: Annotated[
        str, typer.Option("--positions", help="Where --kinds reads a statement: last, mean, answer or every.")
    ] = "last",
    test_data: Annotated[
        list[str] | None,
        typer.Option("--test-data", help="With --protocol transfer: statements, or questions with answers."),
    ] = None,
    original: Annotated[
        bool | None, typer.Option("--original/--no-original", help="The original's table [yes, unless --kinds].")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Save the best of --kinds, fitted on all rows, as safetensors.")
    ] = None,
    states: Annotated[
        str | None, typer.Option("--states", help="Keep hidden states in this folder, for other studies too.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Keep states and tables in this run directory.")
    ] = None,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The original study's table; with --kinds every kind at every layer, with controls, comparisons and a verdict.

    --json prints findings (sentences), probes and, with --kinds, probe_best, probe_layers, probe_comparisons and
    probe_transfer; with --save also the file's path.
    """
    from exitlens.cli.study_command import run_one
    from exitlens.errors import ConfigError

    if save is not None and not kinds:
        raise ConfigError(f"--save '{save}' keeps the best of --kinds: name some, for example --kinds logistic")
    run_one(
        "probes",
        {
            "statements": data, "limit_statements": limit, "kinds": kinds, "protocol": protocol,
            "probe_layers": _layers(layers), "probe_seeds": seeds, "taps": taps, "epochs": epochs,
            "test_topic": test_topic, "bare": bare is not False, "setting": "bare" if bare else "prompted",
            "position": positions, "test_data": test_data, "states": states,
            "original": not kinds if original is None else original, "seed": seed, "model": model, "device": device,
            "dtype": dtype, "revision": revision, "trust_remote_code": trust_remote_code,
        },
        out, as_json, quiet, keep={} if save is None else {"probe.safetensors": save},
    )  # fmt: skip


def _layers(text: str) -> str | list[int]:
    """Numbers and ranges; the model says later which exist."""
    from exitlens.layer_range import parse_layers

    parse_layers(text)
    return text if text == "all" else list(parse_layers(text).resolve(1 << 20))

"""`exitlens entropy --data FILE`: how confident every layer is when the answer is correct, and when it is incorrect."""

from __future__ import annotations

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
    app.command("entropy")(entropy_command)


def entropy_command(
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Questions: built-in name, file or Hub id [facts-qa].")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many questions.")] = None,
    judges: Annotated[
        str,
        typer.Option(
            "--judges", help="By commas: similarity[:0.85], margin:bleu|rouge|bertscore, choice, labels:FILE."
        ),
    ] = "similarity,margin:rouge",
    estimators: Annotated[
        str, typer.Option("--entropy-estimators", help="per-group; pooled-weights reproduces an artefact.")
    ] = "per-group",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 50,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="1 is none.")] = 1.0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts generated together.")] = 32,
    bertscore_model: Annotated[str, typer.Option("--bertscore-model", help="Encoder, or none.")] = "all-minilm-l6-v2",
    out: Annotated[str | None, typer.Option("--out", "-o", help="Keep everything in this run directory.")] = None,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Generate an answer to every question and compare the entropy of correct and incorrect answers at every layer.

    Prints the means (nats), their difference, AUROC and corrected p-values by layer, for every judge. --json prints
    findings (sentences) and entropy_layers (all columns of that table).
    """
    from exitlens.cli.study_command import run_one

    run_one(
        "entropy",
        {
            "data": data, "limit": limit, "judges": judges, "entropy_estimators": estimators,
            "max_new_tokens": max_new_tokens, "repetition_penalty": repetition_penalty, "batch_size": batch_size,
            "bertscore_model": bertscore_model, "seed": seed, "model": model, "device": device, "dtype": dtype,
            "revision": revision, "trust_remote_code": trust_remote_code,
        },
        out, as_json, quiet,
    )  # fmt: skip

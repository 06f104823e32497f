"""`exitlens run`: the whole study in one command: layers, entropy, probes, decoding; one folder, one report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exitlens.cli.console import echo, print_json, print_table, say
from exitlens.cli.options import JsonOption, QuietOption
from exitlens.progress import StageProgress

if TYPE_CHECKING:
    import exitlens.studies.run

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run_command)


def run_command(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Catalogue name, Hub id, folder or .gguf file [smollm2-135m].")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Questions (or statements): built-in name, file, folder, Hub id [facts-qa]."),
    ] = None,
    statements: Annotated[
        list[str] | None, typer.Option("--statements", help="True/false statements for the probes [facts-tf].")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Studies, separated by commas: layers,entropy,probes,decoding,exits.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most this many questions.")] = None,
    limit_statements: Annotated[
        int | None, typer.Option("--limit-statements", help="At most this many statements.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same tables [0].")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Run directory [exitlens-run].")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file with the same settings.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, also where the folder holds a run.")] = False,
    prompts: Annotated[
        str | None, typer.Option("--prompts", help='JSON lines {"prompt": ..., "choices": [...]} to look at as well.')
    ] = None,
    decoders: Annotated[
        str | None, typer.Option("--decoders", help="Decoders compared, by commas [vanilla,dola:high,dola:low].")
    ] = None,
    mc: Annotated[
        str | None, typer.Option("--mc", help="MC1-3 of every decoder too, by its softmax or its scores [none].")
    ] = None,
    scoring: Annotated[
        str | None, typer.Option("--scoring", help="How answers meet references: truthfulqa or plain [truthfulqa].")
    ] = None,
    judges: Annotated[str | None, typer.Option("--judges", help="How answers are judged, comma-separated.")] = None,
    entropy_estimators: Annotated[
        str | None, typer.Option("--entropy-estimators", help="per-group; pooled-weights reproduces an artefact.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="Of every decoder that names none itself [1.0].")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="Longest answer [50].")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Prompts generated together [32].")] = None,
    lens: Annotated[str | None, typer.Option("--lens", help="Lenses of the layer study [logit,raw].")] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers of the layer study, by commas, or all.")
    ] = None,
    taps: Annotated[str | None, typer.Option("--taps", help="Probed layers [1/2, 5/8, 3/4 of the depth].")] = None,
    kinds: Annotated[
        str | None, typer.Option("--kinds", help="Also probes of these kinds at every layer: logistic,mass-mean,mlp.")
    ] = None,
    bertscore_model: Annotated[
        str | None, typer.Option("--bertscore-model", help="Encoder of BERTScore, or none [all-minilm-l6-v2].")
    ] = None,
    figures: Annotated[bool | None, typer.Option("--figures/--no-figures", help="Draw figures [yes].")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps or auto.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16 or auto.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub model.")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run the Python code that a Hub model brings along.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The whole study: what each layer would answer, how sure it is, whether it knows the truth, and decoding.

    Without options it runs on the built-in model and data. Killed and started again it goes on where it stopped.
    --json prints run, report, findings (sentences by study), and tables (rows by table), as docs/tables.md describes
    them.
    """
    import shlex
    import sys

    from exitlens.studies.config import load_config

    given = {
        "model": model, "data": data, "statements": statements, "only": only, "limit": limit,
        "limit_statements": limit_statements, "seed": seed, "out": out, "prompts": prompts, "decoders": decoders,
        "mc": mc, "scoring": scoring,
        "judges": judges, "entropy_estimators": entropy_estimators, "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens, "batch_size": batch_size, "lens": lens, "layers": layers,
        "taps": taps, "kinds": kinds,
        "bertscore_model": bertscore_model, "figures": figures, "device": device, "dtype": dtype, "revision": revision,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    settings = load_config(config, given)

    from exitlens.studies.run import run

    with StageProgress(quiet) as report:
        finished = run(
            settings,
            command=shlex.join(["exitlens", *sys.argv[1:]]),
            fresh=fresh,
            report=report,
            say=lambda line: say(line, quiet),
        )
    if as_json:
        print_json(_json(finished))
    else:
        print_headlines(finished)


def _json(finished: exitlens.studies.run.Finished) -> dict[str, Any]:
    return {
        "run": str(finished.path),
        "report": str(finished.report),
        "findings": finished.findings(),
        "tables": finished.printed(),
    }


def print_headlines(
    finished: exitlens.studies.run.Finished, *, only: str | None = None, whole: bool = False, report: bool = True
) -> None:
    """The tables a reader wants first, the findings in sentences, and where the report is.

    ``only``: one study; ``whole``: every layer instead of a few.
    """
    from exitlens.studies.registry import chapters

    for study, chapter in chapters().items():
        parts = chapter.terminal(finished.results, whole)
        if not parts or only not in (None, study):
            continue
        for place, part in enumerate(parts):
            title = ": ".join(filter(None, (chapter.title if place == 0 else "", part.title)))
            print_table(part.columns, part.rows, title=title)
        for finding in chapter.headline(finished.results):
            for line in finding.split("\n"):
                echo(line)
        echo()
    if report:
        echo(f"report: {finished.report}")

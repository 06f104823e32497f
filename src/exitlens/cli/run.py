"""`exitlens run`: the whole study in one command: layers, entropy, probes, decoding; one folder, one report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exitlens.cli.console import Column, echo, print_json, print_table, say
from exitlens.cli.options import JsonOption, QuietOption
from exitlens.progress import StageProgress

if TYPE_CHECKING:
    from exitlens.studies.run import Finished

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
    judges: Annotated[str | None, typer.Option("--judges", help="Who says which answers are right, by commas.")] = None,
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
    --json prints run, report, findings (sentences by study), and tables (rows by table: decoding, probes,
    entropy_layers, layers_accuracy, layers_picks), as docs/tables describes them.
    """
    import shlex
    import sys

    from exitlens.studies.config import load_config

    given = {
        "model": model, "data": data, "statements": statements, "only": only, "limit": limit,
        "limit_statements": limit_statements, "seed": seed, "out": out, "prompts": prompts, "decoders": decoders,
        "mc": mc, "judges": judges, "entropy_estimators": entropy_estimators, "repetition_penalty": repetition_penalty,
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


# A table to print: what it is of, its columns, its rows.
Part = tuple[str, list[str | Column], list[list[Any]]]
HEADLINE_TABLES = (
    "decoding",
    "probes",
    "entropy_layers",
    "layers_accuracy",
    "layers_picks",
    "exits",
    "exits_calibration",
)


def _json(finished: Finished) -> dict[str, Any]:
    from exitlens.report.page import headlines

    return {
        "run": str(finished.path),
        "report": str(finished.report),
        "findings": headlines(finished.tables),
        "tables": {
            name: finished.tables[name].astype(object).where(finished.tables[name].notna(), None).to_dict("records")
            for name in HEADLINE_TABLES
            if name in finished.tables
        },
    }


def print_headlines(finished: Finished, *, only: str | None = None, whole: bool = False, report: bool = True) -> None:
    """The tables a reader wants first, the findings in sentences, and where the report is.

    ``only``: one study; ``whole``: every layer instead of a few.
    """
    from exitlens.report.page import headlines
    from exitlens.report.sections import TITLES

    tables = finished.tables
    said = headlines(tables)
    for study in ("layers", "entropy", "probes", "decoding", "exits"):
        parts = _HEADLINES[study](tables, 1000 if whole else 5)
        if not parts or only not in (None, study):
            continue
        for place, (name, columns, body) in enumerate(parts):
            title = ": ".join(filter(None, (TITLES[study] if place == 0 else "", name)))
            print_table(columns, body, title=title)
        for finding in said.get(study, []):
            for line in finding.split("\n"):
                echo(line)
        echo()
    if report:
        echo(f"report: {finished.report}")


def _layers(tables: Any, most: int) -> list[Part]:
    frame = tables.get("layers_accuracy")
    if frame is None or not len(frame):
        return []
    lens = frame["lens"].iloc[0]
    mine = frame[frame["lens"] == lens].sort_values("layer")
    shown = mine.iloc[_spread(len(mine), most + 2)]
    body = [[int(r.layer), int(r.n), r.accuracy, r.low, r.high, r.right_share] for r in shown.itertuples()]
    columns: list[str | Column] = [Column("layer", "d"), "questions"]
    columns += [Column(name, ".3f") for name in ("right choice first", "low", "high", "share of the right choices")]
    return [(f"{lens} lens", columns, body)]


def _entropy(tables: Any, most: int) -> list[Part]:
    frame = tables.get("entropy_layers")
    if frame is None or not len(frame):
        return []
    columns: list[str | Column] = [Column("layer", "d")]
    columns += [Column(n, ".3f") for n in ("right (nats)", "wrong", "wrong − right", "low", "high", "AUROC")]
    columns += [Column("p (Holm)", ".3g")]
    parts: list[Part] = []
    for (judge, estimator), rows in frame.groupby(["judge", "estimator"], sort=False):
        shown = rows.sort_values("layer").iloc[_spread(len(rows), most)]
        body = [
            [int(r.layer), r.right, r.wrong, r.difference, r.difference_low, r.difference_high, r.auroc, r.p_holm]
            for r in shown.itertuples()
        ]
        parts.append((f"{judge} ({estimator})", columns, body))
    return parts


def _probes(tables: Any, _most: int) -> list[Part]:
    frame = tables.get("probes")
    if frame is None or not len(frame):
        return _kinds(tables)
    names = ["setting", "method", "layer", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "auroc"]
    body = [
        [int(v) if name == "layer" and v is not None else v for name, v in zip(names, row, strict=True)]
        for row in _rows(frame[names])
    ]
    columns: list[str | Column] = [Column(n.replace("_", " "), "d" if n == "layer" else ".3f") for n in names]
    return [("", columns, body), *_kinds(tables)]


def _kinds(tables: Any) -> list[Part]:
    frame = tables.get("probe_best")
    if frame is None or not len(frame):
        return []
    names = ["accuracy", "accuracy_low", "accuracy_high", "auroc", "brier", "ece", "selective_accuracy", "aurc"]
    heads = ["accuracy", "low", "high", "AUROC", "Brier", "ECE", "80 % surest", "AURC"]
    body = [[*row[:2], row[2] or None, *row[3:]] for row in _rows(frame[["kind", "role", "layers", *names]])]
    columns: list[str | Column] = ["kind", "role", Column("layers", shrink=True)]
    protocol = f"{frame['protocol'].iloc[0]}, n = {int(frame['n_test'].iloc[0])}"
    return [(protocol, [*columns, *(Column(head, ".3f") for head in heads)], body)]


def _decoding(tables: Any, _most: int) -> list[Part]:
    frame = tables.get("decoding")
    if frame is None or not len(frame):
        return []
    shown = frame[frame["metric"].str.endswith(("_max", "_acc"))]
    names = ["metric", "decoder", "mean", "low", "high", "difference", "difference_low", "difference_high", "p"]
    heads = ["metric", "decoder", "mean", "low", "high", "difference", "d. low", "d. high", "p"]
    return [("", [Column(h, ".3g" if h == "p" else ".3f") for h in heads], _rows(shown[names]))]


def _rows(frame: Any) -> list[list[Any]]:
    """Rows of a frame with None where a value is missing."""
    plain: list[list[Any]] = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return plain


def _exits(tables: Any, _most: int) -> list[Part]:
    frame = tables.get("exits")
    if frame is None or not len(frame):
        return []
    names = ["policy", "threshold", "agreement", "agreement_low", "agreement_high", "layers_saved", "flops_saved"]
    shown = frame[frame["policy"].isin(["probability", "classifier", "oracle"])]
    columns: list[str | Column] = [Column(name.replace("_", " "), ".3f") for name in names]
    return [("", columns, _rows(shown[names]))]


_HEADLINES = {"layers": _layers, "entropy": _entropy, "probes": _probes, "decoding": _decoding, "exits": _exits}


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` places out of ``count``, evenly spread, first and last included."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})

"""`exitlens probe predict FILE --probe probe.safetensors`: how probably each statement or answer of a file is true."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exitlens.cli._load import load_model
from exitlens.cli.console import Column, echo, print_json, print_table
from exitlens.cli.options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    QuietOption,
    RevisionOption,
    TrustOption,
    option,
)

__all__ = ["predict_command"]


def predict_command(
    file: Annotated[
        str,
        typer.Argument(
            help="Statements (any data set, or .txt with one a line) or answers (JSON lines: question, answer)."
        ),
    ],
    probe: Annotated[Path, typer.Option("--probe", "-p", metavar="FILE", help="A probe of `exitlens probe --save`.")],
    limit: Annotated[int | None, option("limit", min=1, help="Only the first so many texts.")] = None,
    position: Annotated[
        str | None, option("position", help="Refuse a probe that was not fitted at this position.")
    ] = None,
    model: Annotated[str | None, option("model", help="The probe's own model [as the probe says].")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    base: BaseOption = None,
) -> None:
    """P(true) of each text, by a probe on the hidden states of the model that it was fitted on.

    Answers are read as "question answer". Where labels are known, accuracy and AUROC follow. --json prints probe (kind,
    model, layers, setting, position), texts (id, text, p_true, label) and, with labels, accuracy and auroc.
    """
    from exitlens.errors import InputError
    from exitlens.probes import load_probe
    from exitlens.studies.probes.predict import judge_texts, read_texts

    saved = load_probe(probe)
    texts = read_texts(file)[:limit]
    if position is not None:
        saved.probe.check(position=position)
    name = model or saved.model
    if not name:
        raise InputError(f"'{probe}' does not name its model: give it with --model")

    lm = load_model(name, device, dtype, revision, trust_remote_code, quiet, base=base)
    judged = judge_texts(lm, saved, texts, position=position)
    known = [(j.label, j.p_true) for j in judged if j.label is not None and j.p_true is not None]
    accuracy = auroc = None
    if known:
        accuracy = sum((p > 0.5) == bool(y) for y, p in known) / len(known)
        if 0 < sum(y for y, _ in known) < len(known):
            import numpy as np

            from exitlens.stats import auroc as area

            auroc = float(area(np.array([p for _, p in known]), np.array([y for y, _ in known])))
    if as_json:
        print_json(
            {
                "probe": {
                    "kind": saved.probe.kind, "model": saved.model, "layers": saved.layers, "setting": saved.setting,
                    "position": saved.position,
                },
                "texts": judged,
                "accuracy": accuracy,
                "auroc": auroc,
            }
        )  # fmt: skip
        return
    rows = [[j.p_true, "true" if (j.p_true or 0) > 0.5 else "false", j.label, j.text] for j in judged]
    columns: list[str | Column] = [Column("P(true)", ".3f"), "prediction", "label", Column("text", shrink=True)]
    if not known:
        rows = [[row[0], row[1], row[3]] for row in rows]
        del columns[2]
    where = ", ".join(map(str, saved.layers))
    print_table(
        columns, rows, title=f"{saved.probe.kind} at layer {where} of {lm.name}, {saved.setting}, {saved.position}"
    )
    if accuracy is not None:
        area_text = "" if auroc is None else f", AUROC {auroc:.3f}"
        echo(f"accuracy {accuracy:.3f} of {len(known)} with a label{area_text}")

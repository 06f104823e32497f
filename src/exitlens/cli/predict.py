"""`exitlens probe predict FILE --probe probe.safetensors`: how probably each statement or answer of a file is true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitlens.cli._load import load_model
from exitlens.cli.console import Column, echo, print_json, print_table
from exitlens.cli.options import (
    BaseOption,
    ColumnOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    QuietOption,
    RevisionOption,
    TrustOption,
    option,
)

if TYPE_CHECKING:
    from exitlens.stats import Interval

__all__ = ["predict_command"]


def predict_command(
    file: Annotated[
        str,
        typer.Argument(
            help="Statements (any data set, or .txt with one a line) or answers (JSON lines: question, answer)."
        ),
    ],
    probe: Annotated[Path, typer.Option("--probe", "-p", metavar="FILE", help="A probe of `exitlens probe --save`.")],
    limit: Annotated[int | None, option("limit", min=1, help="At most this many texts, the first ones.")] = None,
    column: ColumnOption = None,
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
    model, layers, setting, position), texts (id, text, p_true, label), labelled (how many have a label), accuracy and
    auroc with their 95% intervals (_low, _high), and whether those rest on too few texts (_too_narrow).
    """
    from exitlens.errors import InputError
    from exitlens.probes import load_probe
    from exitlens.studies.probes.predict import judge_texts, read_texts

    saved = load_probe(probe)
    texts = read_texts(file, column)[:limit]
    if position is not None:
        saved.probe.check(position=position)
    name = model or saved.model
    if not name:
        raise InputError(f"'{probe}' does not name its model: give it with --model")

    lm = load_model(name, device, dtype, revision, trust_remote_code, quiet, base=base)
    judged = judge_texts(lm, saved, texts, position=position)
    known = [(j.label, j.p_true) for j in judged if j.label is not None and j.p_true is not None]
    found = _beside_labels([y for y, _ in known], [p for _, p in known])
    if as_json:
        from exitlens.stats import too_narrow

        ends = {name: (one.value, one.low, one.high) for name, one in found.items()}
        numbers = {f"{name}{end}": value if math.isfinite(value) else None for name, each in ends.items()
                   for end, value in zip(("", "_low", "_high"), each, strict=True)}  # fmt: skip
        narrow = {f"{name}_too_narrow": too_narrow(one.n) for name, one in found.items()}
        about = {
            "kind": saved.probe.kind, "model": saved.model, "layers": saved.layers, "setting": saved.setting,
            "position": saved.position,
        }  # fmt: skip
        usual = {"accuracy": None, "auroc": None}
        print_json({"probe": about, "texts": judged, "labelled": len(known), **usual, **numbers, **narrow})
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
    if known:
        from exitlens.report.text import interval_text

        said = [
            f"{_NAMES[name]} {interval_text(one.value, one.low, one.high)}{one.note and f' ({one.note})'}"
            for name, one in found.items()
        ]
        echo(f"{', '.join(said)}, of {len(known)} with a label")


_NAMES = {"accuracy": "accuracy", "auroc": "AUROC"}


def _beside_labels(labels: Sequence[int], p_true: Sequence[float]) -> dict[str, Interval]:
    """Accuracy, and AUROC where both labels are there, with 95% intervals."""
    if not labels:
        return {}
    import numpy as np

    from exitlens.stats import auroc_interval, mean_interval

    p, y = np.array(p_true), np.array(labels)
    found = {"accuracy": mean_interval(((p > 0.5) == (y == 1)).astype(float))}
    if 0 < y.sum() < len(y):
        found["auroc"] = auroc_interval(p, y)
    return found

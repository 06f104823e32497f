"""`exitlens look --by component`: what each block adds to the choices, as tables, JSON and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exitlens.cli.console import Column, echo, print_json, print_table, say
from exitlens.errors import InputError

if TYPE_CHECKING:
    from exitlens.lenses.attribution import Attribution
    from exitlens.models.protocol import LayeredModel
    from exitlens.studies.layers.records import LookRecord

__all__ = ["check_by", "look_components"]

_COMPONENTS, _HEADS = 20, 10  # rows of the two tables in a terminal


def check_by(by: str, records: Sequence[LookRecord], *, unused: Sequence[str]) -> bool:
    """Whether components are asked for. Raises InputError for another word, and for options that then say nothing."""
    if by not in ("layer", "component"):
        raise InputError(f"--by {by[:80]!r} is not known: use layer or component")
    if by == "layer":
        return False
    if unused:
        raise InputError(f"{unused[0]} says how layers are read, and --by component reads none: leave it out")
    for record in records:
        if not record.choices:
            raise InputError(f"--by component needs choices, and {record.question[:60]!r} has none: give --choices")
    return True


def look_components(
    lm: LayeredModel, records: Sequence[LookRecord], *, out: Path | None, as_json: bool, quiet: bool, name: str
) -> None:
    """Split the choices of each record, and print or write what was found."""
    from exitlens.studies.layers.attribution import attribute_record

    found = [(record, attribute_record(lm, record)) for record in records]
    if out is not None:
        from exitlens.studies.layers.attribution_figures import write_attributions

        for path in write_attributions(found, out):
            say(f"wrote {path}", quiet)
    if as_json:
        print_json([_json(record, each, name) for record, each in found])
        return
    for record, each in found:
        _print(record, each)


def _json(record: LookRecord, found: Attribution, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "question": record.question,
        "prompt": record.prompt,
        "logits": found.logits.drop(columns="prompt").to_dict("records"),
        "components": found.components.drop(columns="prompt").to_dict("records"),
    }


def _print(record: LookRecord, found: Attribution) -> None:
    from exitlens.lenses.attribution import HEAD_KINDS

    correct = {c.strip() for c, right in zip(record.choices, record.correct, strict=False) if right}
    wide = found.table()
    targets = [column for column in wide.columns if column not in ("component", "kind", "block", "head")]
    gap = targets[-1]
    wide = wide.loc[wide[gap].abs().sort_values(ascending=False, kind="stable").index]
    columns = [Column("component"), Column(gap, "+.3f")]
    columns += [Column(name + (" *" if name in correct else ""), "+.3f") for name in targets[:-1]]
    shown = [gap, *targets[:-1]]
    heads = wide["kind"].isin(HEAD_KINDS)
    for mine, most, what in ((wide[~heads], _COMPONENTS, "component"), (wide[heads], _HEADS, "head")):
        if not len(mine):
            continue
        rows = [[row["component"], *(row[name] for name in shown)] for row in mine.head(most).to_dict("records")]
        rest = mine.iloc[most:]
        if len(rest):
            rows.append([f"{len(rest)} more", *(float(rest[name].sum()) for name in shown)])
        if what == "component":
            logits = found.logits.assign(column=targets).set_index("column")
            rows.append(["sum: the model's logit", *(float(logits["logit"][name]) for name in shown)])
            if bool((logits["logit"] != logits["capped"]).any()):
                rows.append(["after its soft-cap", *(float(logits["capped"][name]) for name in shown)])
        note = "logits that each component adds, largest difference first; blocks count from 1, heads from 0"
        note = note if what == "component" else "heads split the attention of their block"
        title = record.question if what == "component" else None
        print_table(columns, rows, title=title, note=note + ("; * correct" if correct else ""))
    echo(f"the sums are the model's own logits to {float(found.logits['error'].max()):.1g}")
    echo()

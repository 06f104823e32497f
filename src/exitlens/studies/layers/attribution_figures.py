"""Figures of attribution: what attention and MLP of each block add, for one question and on the mean of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from exitlens.lenses.attribution import HEAD_KINDS, Attribution
from exitlens.report.figure_style import BLUE, GREEN, INK, MUTED, VERMILION, drawing, new_figure, title
from exitlens.report.frames import Row, rows
from exitlens.report.text import is_number, to_float
from exitlens.storage.atomic import write_parquet
from exitlens.studies.layers.records import LookRecord

__all__ = ["component_bars", "write_attributions"]


@drawing
def component_bars(components: DataFrame, *, heading: str, note: str = "") -> Figure:
    """Bars by block: attention and MLP (and what else a block adds) side by side, embeddings at 0.

    ``components``: rows of ``component``, ``kind``, ``block`` and ``contribution`` [logits] of one question or of the
    means; ``low`` and ``high`` are drawn where they are there.
    """
    items = [row for row in rows(components) if row.get("kind") not in HEAD_KINDS]
    inner = [row for row in items if int(row["block"]) > 0]
    figure = new_figure(3.0)
    axes = figure.subplots()
    series = {
        "attention": (BLUE, [row for row in inner if str(row["kind"]).startswith("attention")]),
        "MLP": (VERMILION, [row for row in inner if str(row["kind"]).startswith("mlp")]),
    }
    taken = [id(row) for _, mine in series.values() for row in mine]
    others = [row for row in items if int(row["block"]) >= 0 and id(row) not in taken]
    if others:
        begins = [int(row["block"]) == 0 for row in others]
        name = "embeddings" if all(begins) else "embeddings and other" if any(begins) else "other"
        series[name] = (GREEN, others)
    used = {name: entry for name, entry in series.items() if entry[1]}
    width = 0.8 / max(len(used), 1)
    for place, (name, (colour, mine)) in enumerate(used.items()):
        _bars(axes, mine, (place - (len(used) - 1) / 2) * width, width, name, colour)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("block (0: embeddings)")
    axes.set_ylabel("logits added")
    axes.grid(axis="y")
    if used:
        axes.legend(loc="best", ncols=len(used))
    # What belongs to no block has no place on the axis.
    fixed = [f"{row['component']} {to_float(row['contribution']):+.2g}" for row in items if int(row["block"]) < 0]
    title(figure, heading, " · ".join([*([note] if note else []), *(f"{text}, not drawn" for text in fixed)]))
    return figure


def _bars(axes: object, items: Sequence[Row], shift: float, width: float, name: str, colour: str) -> None:
    blocks: dict[int, list[Row]] = {}
    for row in items:
        blocks.setdefault(int(row["block"]), []).append(row)
    xs = np.array(sorted(blocks), dtype=float) + shift
    heights = [sum(to_float(row.get("contribution")) for row in blocks[block]) for block in sorted(blocks)]
    axes.bar(xs, heights, width=width, color=colour, label=name)  # type: ignore[attr-defined]  # Axes has no stubs here
    for x, block in zip(xs, sorted(blocks), strict=True):
        if len(blocks[block]) == 1 and is_number(blocks[block][0].get("low")):
            row = blocks[block][0]
            axes.plot([x, x], [to_float(row["low"]), to_float(row["high"])], color=MUTED, linewidth=1.0)  # type: ignore[attr-defined]


def write_attributions(found: Sequence[tuple[LookRecord, Attribution]], folder: Path) -> list[Path]:
    """The table of components and the figure of each record, in ``folder``; returns what was written."""
    from exitlens.report.figure_style import save

    written: list[Path] = []
    for number, (record, each) in enumerate(found, start=1):
        stem = f"look-{number:03d}-components"
        path = folder / f"{stem}.parquet"
        write_parquet(path, each.components)
        written.append(path)
        gap = str(each.logits["target"].iloc[-1])
        mine = each.components[each.components["target"] == gap]
        figure = component_bars(mine, heading=record.question, note=f"{each.model} · logit of {gap}")
        written += save(figure, folder, stem).values()
    return written

"""The interactive view of the decoding study: decoders side by side, metric by metric and answer by answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from exitlens.report.frames import Results, distinct
from exitlens.report.view_data import View
from exitlens.report.view_figures import Figure, Switch, tables_view
from exitlens.report.words import counted
from exitlens.studies.answers.judge_names import short_judges
from exitlens.studies.answers.views import AnswerTable, answers_and_verdicts
from exitlens.studies.decoding.figures import metric_name

__all__ = ["run_views"]


def _partings(results: Results, found: AnswerTable) -> dict[str, Any]:
    """The step at which each answer leaves the first decoder's, with the divergence of every candidate layer."""
    frame = results.frame("decoding_partings")
    if frame is None:
        return {}
    place = {key: i for i, key in enumerate(found.ids)}
    steps = [(key, rows) for key, rows in frame.groupby(["question_id", "decoder"], sort=False) if str(key[0]) in place]
    candidates = sorted(int(layer) for layer in frame["layer"].unique())
    column = {layer: i for i, layer in enumerate(candidates)}
    divergence = np.full((len(steps), len(candidates)), np.nan)
    for i, (_, rows) in enumerate(steps):
        divergence[i, [column[int(layer)] for layer in rows["layer"]]] = rows["divergence"]
    first = [rows.iloc[0] for _, rows in steps]
    return {
        "candidates": np.asarray(candidates, dtype=np.int64),
        "steps.answer": np.asarray([place[str(row["question_id"])] for row in first], dtype=np.int64),
        "steps.decoder": found.column([str(row["decoder"]) for row in first]),
        "steps.position": np.asarray([row["position"] for row in first], dtype=np.int64),
        "steps.token": found.column([str(row["token"]) for row in first]),
        "steps.chosen": np.asarray([rows.loc[rows["chosen"], "layer"].iloc[0] for _, rows in steps], dtype=np.int64),
        "partings.question_id": found.column([str(row["question_id"]) for row in first for _ in candidates]),
        "partings.decoder": found.column([str(row["decoder"]) for row in first for _ in candidates]),
        "partings.layer": np.tile(np.asarray(candidates, dtype=np.int64), len(steps)),
        "partings.divergence": divergence.reshape(-1),
    }


def run_views(results: Results) -> list[View]:
    """Metrics by decoder, layers that decoders chose, and where their answers part."""
    found = answers_and_verdicts(results)
    if found is None or len(found.decoders) < 2:
        return []
    arrays = {
        "decoders": found.column(found.decoders),
        "answers.id": found.column(found.ids),
        "answers.question": found.column(found.questions),
        "answers.text": found.texts,
    }
    if found.judges:
        arrays |= {"judges": found.column(found.judges), **found.verdict_rows()}
    first, *others = found.decoders
    arrays |= _partings(results, found)
    metrics = [str(name) for name in distinct(results.rows("decoding"), "metric")]
    short = short_judges(found.judges)
    switches = [
        Switch("decoder", "Compared with", options=tuple((name, name) for name in others)),
        Switch("metric", "Metric", options=tuple((name, metric_name(name)) for name in metrics)),
        Switch("judge", "Judge", options=tuple((name, short[name]) for name in found.judges)),
    ]
    figures = [
        Figure(
            "bar", "scores", "{$metric} by decoder", "scores", "decoder", "mean", by="decoder", where=("metric",),
            low="low", high="high", label="{decoder}", note="n = {n} questions; lines: 95% intervals.",
        ),
        Figure(
            "bar", "difference", f"{{$metric}}: difference to {first}", "scores", "decoder", "difference",
            by="decoder", where=("metric",), label="{decoder}", signed=True, without=(first,),
            note="Paired by question; lines: 95% intervals.",
        ),
        Figure(
            "bar", "layers", "Layers that {decoder} chose", "layers", "layer", "count", where=("decoder",),
            label="layer {layer}", note="Tokens for which each early layer was chosen.",
        ),
    ]  # fmt: skip
    return [
        tables_view(
            "decoders",
            {"scores": results.frame("decoding"), "layers": results.frame("decoding_layers")},
            figures,
            title="Decoders side by side",
            caption=f"{results.model} · {counted(len(found.ids), 'question')} · compared with {first}",
            model=results.model,
            switches=switches,
            arrays=arrays,
        )
    ]

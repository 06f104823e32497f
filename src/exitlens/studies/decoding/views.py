"""The interactive view of the decoding study: decoders side by side, metric by metric and answer by answer."""

from __future__ import annotations

from exitlens.report.frames import Results
from exitlens.report.view_data import View
from exitlens.report.view_figures import Figure, Switch, tables_view
from exitlens.studies.answers.views import answers_and_verdicts

__all__ = ["run_views"]


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
        arrays |= {"judges": found.column(found.judges), "answers.correct": found.verdicts}
    first, *others = found.decoders
    switches = [
        Switch("decoder", "Compared with", options=tuple((name, name) for name in others)),
        Switch("metric", "Metric", "scores"),
        Switch("judge", "Judge", options=tuple((name, name) for name in found.judges)),
    ]
    figures = [
        Figure(
            "bar", "scores", "{metric} by decoder", "scores", "decoder", "mean", by="decoder", where=("metric",),
            low="low", high="high", label="{decoder}", note="n = {n} questions; lines: 95% intervals.",
        ),
        Figure(
            "bar", "difference", f"{{metric}}: difference to {first}", "scores", "decoder", "difference",
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
            caption=f"{results.model} · {len(found.ids)} questions · compared with {first}",
            model=results.model,
            switches=switches,
            arrays=arrays,
        )
    ]

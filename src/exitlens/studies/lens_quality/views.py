"""The interactive view of the lens study: pass@k by lens and set, and every lens layer by layer."""

from __future__ import annotations

from exitlens.report.frames import Results
from exitlens.report.view_data import View
from exitlens.report.view_figures import Figure, Switch, tables_view

__all__ = ["run_views"]


def run_views(results: Results) -> list[View]:
    """Lenses beside each other and beside their controls."""
    passed, layers = results.frame("lenses"), results.frame("lenses_layers")
    if passed is None and layers is None:
        return []
    where = ("set", "k")
    figures = [
        Figure(
            "bar", "passed", "pass@{k}, {set}", "passed", "lens", "passed", by="lens", where=where, label="{lens}",
            note="n = {n} prompts; lines: 95% intervals; chance {chance}.",
        ),
        Figure(
            "bar", "gain", "Gain over the concepts of other prompts", "passed", "lens", "gain", by="lens",
            where=where, label="{lens}", signed=True, note="Paired by prompt; lines: 95% intervals.",
        ),
        *(
            Figure(
                "line", column, title, "layers", "layer", column, by="lens", yLabel=unit,
                note="n = {n} prompts; bands: 95% intervals.",
                log=column == "kl",  # the raw lens is decades away from the others
            )
            for column, title, unit in (
                ("share", "Concepts within the first {k} ranks, by layer", "share of concepts"),
                ("agreement", "Top-1 token is the last layer's", "share of prompts"),
                ("kl", "Divergence from the last layer", "nats"),
            )
        ),
    ]  # fmt: skip
    return [
        tables_view(
            "lenses",
            {"passed": passed, "layers": layers},
            figures,
            title="Lenses side by side",
            caption=results.model,
            model=results.model,
            switches=[Switch("set", "Set", "passed"), Switch("k", "k", "passed")],
        )
    ]

"""The interactive view of the exit study: agreement by layers saved, and where tokens exit, threshold by threshold."""

from __future__ import annotations

from exitlens.report.frames import Results
from exitlens.report.view_data import View
from exitlens.report.view_figures import Figure, Slider, Switch, tables_view

__all__ = ["run_views"]

_BOUNDS = ("oracle", "never")  # no policies, but what none can beat and what saves nothing
_FACTS = (
    ("agreement", "Agreement with the full model"),
    ("mean_exit", "Mean exit layer"),
    ("layers_saved", "Share of layers saved"),
    ("exit_checks", "Exit checks a token"),
    ("flops_saved", "Share of FLOPs saved"),
)


def run_views(results: Results) -> list[View]:
    """Every policy and threshold."""
    frame = results.frame("exits")
    if frame is None:
        return []
    figures = [
        Figure(
            "line", "pareto", "Agreement with the full model, by layers saved", "policies", "layers_saved",
            "agreement", by="policy", without=_BOUNDS, height=320, xLabel="share of layers saved",
            marks=((0.0, 1.0, "full depth"),), label="{policy}, threshold {threshold}, layers saved {layers_saved}",
            note="n = {n} tokens; bands: 95% intervals. Press a point to go there.",
        ),
        Figure(
            "bar", "exit-layers", "Where tokens exit: {policy}", "exit_layers", "layer", "share",
            where=("policy", "=threshold"), label="layer {layer}", percent=True,
            note="Share of tokens by exit layer, at the threshold chosen.",
        ),
    ]  # fmt: skip
    return [
        tables_view(
            "exits",
            {"policies": frame, "exit_layers": results.frame("exits_layers")},
            figures,
            title="Early exits: what they save and what they cost",
            caption=results.model,
            model=results.model,
            switches=[Switch("policy", "Policy", "policies", without=_BOUNDS)],
            slider=Slider("Threshold", "policies", ("policy",), "layers_saved", "{policy} {threshold}", _FACTS),
        )
    ]

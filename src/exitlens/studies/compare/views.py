"""The interactive views of a comparison: numbers and curves of runs side by side."""

from __future__ import annotations

from exitlens.report.frames import Results
from exitlens.report.view_data import View
from exitlens.report.view_figures import Figure, Switch, tables_view

__all__ = ["curve_views", "number_views"]


def number_views(results: Results) -> list[View]:
    """Every headline number in every run, and its difference to the first run."""
    frame = results.frame("compare_numbers")
    if frame is None:
        return []
    named = frame.assign(name=frame["number"] + frame["of"].fillna("").map(lambda of: f", {of}" if of else ""))
    # What several runs have comes first: a reader came to compare.
    alone = named.groupby(["study", "name"])["run"].transform("nunique") < 2
    named = named.assign(alone=alone).sort_values("alone", kind="stable").drop(columns="alone")
    where = ("study", "name")
    figures = [
        Figure(
            "bar", "values", "{name}", "numbers", "run", "value", by="run", where=where, label="{run}",
            note="Lines: 95% intervals; n of the first run: {n} {counted}.",
        ),
        Figure(
            "bar", "differences", "Difference to the first run", "numbers", "run", "difference", by="run",
            where=where, label="{run}", signed=True, note="Lines: 95% intervals.",
        ),
    ]  # fmt: skip
    return [
        tables_view(
            "runs",
            {"numbers": named},
            figures,
            title="Numbers of the runs, side by side",
            switches=[Switch("study", "Study", "numbers"), Switch("name", "Number", "numbers", where=("study",))],
        )
    ]


def curve_views(results: Results) -> list[View]:
    """Every curve, a line a run."""
    frame = results.frame("compare_curves")
    if frame is None:
        return []
    named = frame.assign(name=frame["curve"] + frame["of"].fillna("").map(lambda of: f", {of}" if of else ""))
    figures = [
        Figure(
            "line", "curves", "{name}", "curves", "x", "value", by="run", where=("study", "name"), height=320,
            xLabel="{axis}", yLabel="{unit}", note="Bands: 95% intervals.",
        )
    ]  # fmt: skip
    return [
        tables_view(
            "runs",
            {"curves": named},
            figures,
            title="Curves of the runs, on one axis",
            switches=[Switch("study", "Study", "curves"), Switch("name", "Curve", "curves", where=("study",))],
        )
    ]

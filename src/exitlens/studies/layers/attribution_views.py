"""The interactive view of attribution: what blocks add to the chosen difference, on the mean and for one question."""

from __future__ import annotations

from exitlens.report.frames import Results
from exitlens.report.view_data import View
from exitlens.report.view_figures import Figure, Switch, tables_view

__all__ = ["attribution_views"]


def attribution_views(results: Results) -> list[View]:
    """Mean contributions by block with intervals, and every component of a question that the reader chooses."""
    means, single = results.frame("attribution_means"), results.frame("attribution")
    if means is None and single is None:
        return []
    figures = [
        Figure(
            "line", "means", "Mean contribution by block", "means", "block", "contribution", by="kind", low="low",
            high="high", yLabel="logits", height=280, refs=((0, "nothing added"),),
            note="To the correct choice minus the best incorrect one; n = {n} questions; bands: 95% intervals.",
        ),
        Figure(
            "line", "question", "One question: what each block adds", "parts", "block", "contribution",
            by="kind", where=("question",), yLabel="logits", height=280, refs=((0, "nothing added"),),
            note="“{correct_choice}” over “{incorrect_choice}”; together {logit_difference} logits.",
        ),
    ]  # fmt: skip
    return [
        tables_view(
            "attribution",
            {
                "means": None if means is None else means[means["block"] >= 0],
                "parts": None if single is None else single[single["block"] >= 0],
            },
            figures,
            title="Attribution: which blocks wrote the answer",
            caption=f"{results.model} · contributions to the logit of the correct choice minus the best incorrect one",
            model=results.model,
            switches=[Switch("question", "Question", "parts")],
        )
    ]

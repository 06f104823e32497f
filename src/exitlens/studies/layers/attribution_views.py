"""The interactive view of attribution: what blocks add to the chosen difference, on the mean and for one question."""

from __future__ import annotations

from pandas import DataFrame

from exitlens.report.frames import Results
from exitlens.report.view_data import View
from exitlens.report.view_figures import Figure, Switch, tables_view

__all__ = ["attribution_views"]

MOST_ROWS = 40_000  # of heads in a view: some 150 questions of a small model


def attribution_views(results: Results) -> list[View]:
    """Mean contributions by block with intervals, and every component of a question that the reader chooses."""
    means, single = results.frame("attribution_means"), results.frame("attribution")
    heads = results.frame("attribution_heads")
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
        Figure(
            "matrix", "heads", "Heads, mean over questions: rows are blocks, columns heads", "head_means", "block",
            "contribution", by="head", signed=True,
            note="Logits that each attention head adds to the same difference; blue adds, orange takes away.",
        ),
        Figure(
            "matrix", "question-heads", "Heads, one question", "heads", "block", "contribution", by="head",
            where=("question",), signed=True, note="Logits; the heads of a block sum to its attention.",
        ),
    ]  # fmt: skip
    return [
        tables_view(
            "attribution",
            {
                "means": None if means is None else means[means["block"] >= 0],
                "parts": None if single is None else single[single["block"] >= 0],
                "head_means": None if heads is None else _means(heads),
                "heads": None if heads is None else _of_some(heads),
            },
            figures,
            title="Attribution: which blocks and heads wrote the answer",
            caption=f"{results.model} · contributions to the logit of the correct choice minus the best incorrect one",
            model=results.model,
            switches=[Switch("question", "Question", "parts")],
        )
    ]


def _means(heads: DataFrame) -> DataFrame:
    return heads.groupby(["block", "head"], sort=True)["contribution"].mean().reset_index()


def _of_some(heads: DataFrame) -> DataFrame:
    """Heads of the first questions: a model of many heads would fill the page with those of all."""
    known = list(dict.fromkeys(heads["question"]))
    most = max(MOST_ROWS // max(len(heads) // max(len(known), 1), 1), 1)
    return heads.loc[heads["question"].isin(known[:most]), ["question", "block", "head", "contribution"]]

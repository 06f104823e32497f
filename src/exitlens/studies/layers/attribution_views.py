"""The interactive view of attribution: what blocks add to the chosen difference, on the mean and for one question."""

from __future__ import annotations

from pandas import DataFrame

from exitlens.lenses.attribution import HEAD_KINDS, Attribution
from exitlens.parsing import cut
from exitlens.report.frames import Results, rows
from exitlens.report.notebook import Shape, table_html
from exitlens.report.text import number_text, visible
from exitlens.report.view_data import View
from exitlens.report.view_figures import Figure, Switch, tables_view

__all__ = ["attribution_views", "contribution_view", "drawn"]

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


def contribution_view(found: Attribution) -> View:
    """What blocks and heads add to the logits that were asked for: prompt and target are the reader's to choose."""
    whole = found.components
    texts = [cut(text, 60) for text in found.prompts]
    names = [text if texts.count(text) == 1 else f"{i}: {text}" for i, text in enumerate(texts)]
    frame = whole.assign(prompt=[names[i] for i in whole["prompt"]])
    where = ("prompt", "target")
    figures = [
        Figure(
            "line", "blocks", "What each block adds", "parts", "block", "contribution", by="kind", where=where,
            yLabel="logits", height=280, refs=((0, "nothing added"),),
        ),
        Figure(
            "matrix", "heads", "Heads: rows are blocks, columns heads", "heads", "block", "contribution", by="head",
            where=where, signed=True, note="Logits; blue adds, orange takes away.",
        ),
    ]  # fmt: skip
    heads = frame[frame["kind"] == "head"]
    parts = frame[(frame["block"] >= 0) & ~frame["kind"].isin(HEAD_KINDS)]
    return tables_view(
        "attribution",
        {"parts": parts, "heads": heads if len(heads) else None},
        figures,
        title="Attribution: what blocks and heads add to a logit",
        caption=f"{visible(found.model)} · logits before a soft-cap",
        model=found.model,
        switches=[Switch("prompt", "Prompt", "parts"), Switch("target", "Token", "parts")],
    )


def drawn(found: Attribution) -> Shape:
    """How a notebook shows an attribution."""
    top = [
        [target, row["component"], number_text(row["contribution"])]
        for target in dict.fromkeys(found.logits["target"])
        for row in rows(found.top(5, target))
    ]
    caption = f"Largest contributions in “{cut(found.prompts[0])}” [logits]"
    return Shape([contribution_view(found)], table_html(["token", "component", "contribution"], top, caption))


def _means(heads: DataFrame) -> DataFrame:
    return heads.groupby(["block", "head"], sort=True)["contribution"].mean().reset_index()


def _of_some(heads: DataFrame) -> DataFrame:
    """Heads of the first questions: a model of many heads would fill the page with those of all."""
    known = list(dict.fromkeys(heads["question"]))
    most = max(MOST_ROWS // max(len(heads) // max(len(known), 1), 1), 1)
    return heads.loc[heads["question"].isin(known[:most]), ["question", "block", "head", "contribution"]]

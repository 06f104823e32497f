"""The interactive view of the layer study: choices by layer, of every question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame

from exitlens.report.frames import Results, evenly
from exitlens.report.text import visible
from exitlens.report.view_data import Values, View, columns_of, view
from exitlens.report.view_figures import Figure, Switch, figures_meta
from exitlens.report.words import counted, join

__all__ = ["choices_view", "run_views"]

BARS = 6  # layers with bars of their own, as in the original figures
PAGE = 40  # questions: some 100 kB, unpacked in a few milliseconds


def run_views(results: Results) -> list[View]:
    """Every question of a run."""
    frame = results.frame("layers")
    if frame is None:
        return []
    rules = [visible(name) for name in frame["rule"].unique()]
    count = frame["question_id"].nunique()
    return [
        choices_view(
            frame,
            results.frame("layers_top"),
            title="Choices by layer, every question",
            caption=f"{results.model} · rule{'s' * (len(rules) > 1)} {join(rules)} · {counted(count, 'question')}",
            model=results.model,
            accuracy=results.frame("layers_accuracy"),
            facts=_facts(results),
        )
    ]


def choices_view(
    frame: DataFrame,
    top: DataFrame | None,
    *,
    title: str,
    caption: str = "",
    model: str = "",
    accuracy: DataFrame | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> View:
    """Probability and share of every choice at every layer.

    Args:
        frame: Table ``layers``.
        top: Table ``layers_top``, or None.
        title: Heading.
        caption: What a reader must know: model, lens, rule, n.
        model: The model's name.
        accuracy: Table ``layers_accuracy``, or None.
        facts: By name (``entropy``, ``changed``), values by question id: what questions can be filtered by.

    Returns:
        The view: questions on pages of 40, which are unpacked when they are looked at.
    """
    lenses = [str(name) for name in frame["lens"].unique()]
    layers = np.sort(frame["layer"].unique())
    # A row a question and choice; a column a lens and layer.
    wide = {name: _wide(frame, name, lenses, layers) for name in ("probability", "share", "mass")}
    choices = wide["share"].index.to_frame(index=False)
    ids = list(dict.fromkeys(choices["question_id"]))
    firsts = frame.drop_duplicates("question_id").set_index("question_id")
    truth = frame.drop_duplicates(["question_id", "choice"]).set_index(["question_id", "choice"])["correct"]
    correct = np.array([bool(truth[key]) for key in choices.itertuples(index=False, name=None)])
    place = choices.groupby("question_id", sort=False).indices
    tops = _tops(top, ids, lenses, layers)
    pages: list[dict[str, Values]] = []
    for start in range(0, len(ids), PAGE):
        mine = ids[start : start + PAGE]
        where = np.concatenate([place[key] for key in mine])
        counts = np.array([len(place[key]) for key in mine])
        starts = np.cumsum(counts) - counts
        numbers = {name: _cube(made.to_numpy()[where], len(lenses), len(layers)) for name, made in wide.items()}
        page: dict[str, Values] = {
            "first": starts,
            "count": counts,
            "choice": choices["choice"].to_numpy(dtype=object)[where],
            "correct": correct[where],
            "probability": numbers["probability"],
            "share": numbers["share"],
            "mass": numbers["mass"][:, :, starts],
        }
        if tops is not None:
            page |= {name: values[:, :, start : start + PAGE] for name, values in tops.items()}
        pages.append(page)
    shares = wide["share"].to_numpy()[:, len(layers) - 1]  # at the last layer, through the first lens
    arrays: dict[str, Values] = {
        "lenses": np.array(lenses, dtype=object),
        "layers": layers,
        "questions.id": np.array(ids, dtype=object),
        "questions.text": firsts.loc[ids, "question"].to_numpy(dtype=object),
        "questions.page": np.arange(len(ids)) // PAGE,
        "questions.outcome": np.array([_outcome(shares, correct, np.asarray(place[key])) for key in ids], dtype=object),
    }
    for name, values in (facts or {}).items():
        found = [values.get(key) for key in ids]
        arrays[f"questions.{name}"] = np.array(found, dtype=object if name == "changed" else np.float64)
    if accuracy is not None:
        names = ("lens", "layer", "n", "accuracy", "low", "high", "correct_share", "mass")
        arrays |= columns_of("accuracy", accuracy, names)
    meta = {"early": int(layers[len(layers) // 2]), **_figures(lenses, [int(layer) for layer in layers])}
    return view("choices", arrays, title=title, caption=caption, model=model, meta=meta, pages=pages)


def _figures(lenses: list[str], layers: list[int]) -> dict[str, Any]:
    """Shares or probabilities of the choices: curves over all layers, bars at six of them, and accuracy over all."""
    measure = Switch("measure", "Show", options=(("share", "Share among the choices"), ("probability", "Probability")))
    switches = [measure, Switch("lens", "Lens", options=tuple((name, name) for name in lenses))]
    where = ("lens",)
    figures = [
        Figure("line", "by-layer", "{$measure} by layer", "choices", "layer", "$measure", by="choice", where=where),
        Figure(
            "line", "accuracy", "Correct choice first, all questions (n = {n})", "accuracy", "layer", "accuracy",
            by="lens", low="low", high="high", range=(0, 1), note="Bands: 95% intervals.",
        ),
    ]  # fmt: skip
    for layer in evenly(layers, BARS):
        last = ", the last" if layer == layers[-1] else ""
        figures.append(
            Figure(
                "bar", f"layer-{layer}", f"Layer {layer}{last}", "choices", "choice", "$measure",
                by="choice", where=where, only={"layer": layer}, label="{mark}{choice}", range=(0, 1),
            )
        )  # fmt: skip
    return figures_meta(figures, switches)


def _wide(frame: DataFrame, value: str, lenses: list[str], layers: NDArray[Any]) -> DataFrame:
    table = frame.pivot_table(
        index=["question_id", "choice"],
        columns=["lens", "layer"],
        values=value,
        sort=False,
        dropna=False,
        observed=True,
    )
    return table.reindex(columns=[(lens, layer) for lens in lenses for layer in layers]).dropna(how="all")


def _cube(rows: NDArray[Any], lenses: int, layers: int) -> NDArray[np.float32]:
    """``[choice, lens × layer]`` as ``[lens, layer, choice]``, in the 32 bits in which the readout computed it."""
    return np.ascontiguousarray(rows.T.reshape(lenses, layers, -1).astype(np.float32))


def _tops(
    top: DataFrame | None, ids: list[str], lenses: list[str], layers: NDArray[Any]
) -> dict[str, NDArray[Any]] | None:
    """Top tokens and their probabilities ``[lens, layer, question, rank]``."""
    if top is None:
        return None
    ranks = int(top["rank"].max()) + 1
    shape = (len(lenses), len(layers), len(ids), ranks)
    texts, numbers = np.full(shape, None, dtype=object), np.full(shape, np.nan, dtype=np.float32)
    top = top[top["question_id"].isin(ids)]
    at = (
        top["lens"].map({name: i for i, name in enumerate(lenses)}).to_numpy(),
        np.searchsorted(layers, top["layer"].to_numpy()),
        top["question_id"].map({name: i for i, name in enumerate(ids)}).to_numpy(),
        top["rank"].to_numpy(),
    )
    texts[at], numbers[at] = top["token"].to_numpy(dtype=object), top["probability"].to_numpy()
    return {"top": texts, "top_p": numbers}


def _outcome(shares: NDArray[Any], correct: NDArray[Any], where: NDArray[Any]) -> str | None:
    """Whether a correct choice leads at the last layer; None where none is marked correct."""
    if not correct[where].any() or np.isnan(shares[where]).all():
        return None
    return "correct" if correct[where][np.nanargmax(shares[where])] else "incorrect"


def _changed(answers: Mapping[str, str]) -> str | None:
    """The decoders whose answer is not that of the first; None where there are none."""
    first = next(iter(answers.values()))
    return ", ".join(name for name, answer in answers.items() if answer != first) or None


def _facts(results: Results) -> dict[str, dict[str, Any]]:
    """What else a run knows of its questions: answers that a decoder changed, entropy at the middle layer."""
    facts: dict[str, dict[str, Any]] = {}
    answers = results.frame("answers")
    if answers is not None and answers["decoder"].nunique() > 1:
        questions = answers.groupby("question_id", sort=False)
        facts["changed"] = {str(k): _changed(dict(zip(g["decoder"], g["answer"], strict=True))) for k, g in questions}
    tokens = results.frame("entropy_tokens")
    if tokens is not None:
        numbers = np.sort(tokens["layer"].unique())
        middle = tokens[tokens["layer"] == numbers[len(numbers) // 2]]
        facts["entropy"] = {str(k): float(v) for k, v in middle.groupby("question_id")["entropy"].mean().items()}
    return facts

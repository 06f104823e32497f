"""One question, layer by layer: the function behind ``exitlens look``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from exitlens.arguments import as_names, as_texts, wrong_kind
from exitlens.display import Shown
from exitlens.errors import InputError
from exitlens.layer_range import Layers
from exitlens.lenses.lens import Lens, lens_name
from exitlens.lenses.read_hidden import readout
from exitlens.lenses.read_texts import read_ids
from exitlens.lenses.trace import Trace
from exitlens.models.forward import common_prefix
from exitlens.models.protocol import LayeredModel
from exitlens.parsing import cut
from exitlens.report.frames import spread
from exitlens.report.notebook import MOST_ROWS, Shape, register_drawing, table_html
from exitlens.report.text import number_text, token_text
from exitlens.report.view_data import View
from exitlens.report.view_page import page
from exitlens.report.view_trace import MAP_STATS, trace_view
from exitlens.storage.atomic import write_bytes, write_parquet
from exitlens.studies.layers.choices import Rule
from exitlens.studies.layers.records import LookRecord, question_record
from exitlens.studies.layers.stage import LayersStage, check_layers
from exitlens.studies.layers.views import choices_view

__all__ = ["Look", "check_rule", "look", "trace_of", "write_looks"]

FOLLOWED = 3  # tokens that a map follows where nobody names any
_RULES = ("auto", "first-token", "sequence")


@dataclass(frozen=True, slots=True, repr=False)
class Look(Shown):
    """What the layers said: ``layers`` (a row a layer and choice), ``top`` (a row a layer and rank), and where it was
    asked for, or where there are no choices, ``trace`` (:func:`trace_of`).
    """

    record: LookRecord
    lens: str
    rule: str
    layers: pd.DataFrame
    top: pd.DataFrame
    trace: Trace | None = None

    def __repr__(self) -> str:
        last = self.top[self.top["layer"] == self.top["layer"].max()].sort_values("rank")
        tokens = ", ".join(f"{token!r} {p:.2f}" for token, p in zip(last["token"], last["probability"], strict=True))
        lines = [f"Look at {cut(repr(self.record.question))}, {self.lens} lens, by {self.rule}"]
        if len(self.layers):
            here = self.layers[self.layers["layer"] == self.layers["layer"].max()]
            shares = ", ".join(f"{c!r} {s:.2f}" for c, s in zip(here["choice"], here["share"], strict=True))
            lines.append(f"  last layer, share of each choice: {cut(shares, 200)}")
        lines.append(f"  last layer, top next tokens: {cut(tokens, 200)}")
        return "\n".join([*lines, "  .show() draws it; .layers, .top and .map are tables"])

    @property
    def map(self) -> pd.DataFrame | None:
        """Token × layer: a row a layer and position, with the layer's top-1 token; None where nothing was read.

        Columns: question_id, lens, layer, position, context (the token read there), token_id, token, probability.
        """
        if self.trace is None:
            return None
        trace = self.trace
        top = trace["top_ids"][0, :, :, 0]
        probability = np.exp(trace["top_logprobs"][0, :, :, 0].astype(np.float64))
        first = int(trace.extra.get("first", "0"))
        rows = [
            {
                "question_id": self.record.id,
                "lens": trace.lens,
                "layer": layer,
                "position": first + place,
                "context": context,
                "token_id": int(top[k, place]),
                "token": trace.vocabulary[int(top[k, place])],
                "probability": float(probability[k, place]),
            }
            for k, layer in enumerate(trace.layers)
            for place, context in enumerate(trace.tokens[0])
        ]
        return pd.DataFrame(rows)

    @property
    def spellings(self) -> dict[str, list[str]]:
        """Texts of the tokens that were summed for each choice; empty under rule ``sequence`` and without choices."""
        if not len(self.layers):
            return {}
        firsts = self.layers.drop_duplicates("choice")
        found = {choice: json.loads(texts) for choice, texts in zip(firsts["choice"], firsts["spellings"], strict=True)}
        return {choice: texts for choice, texts in found.items() if texts}


def look(
    lm: LayeredModel,
    record: LookRecord | str,
    choices: Sequence[str] = (),
    *,
    lens: str | Lens = "logit",
    layers: Layers = "all",
    rule: Rule = "auto",
    top_k: int = 5,
    trace: bool | None = None,
    pins: Sequence[str] = (),
) -> Look:
    """Probability of each choice at each layer, and the top next tokens.

    Args:
        lm: The model.
        record: A text as it is; with ``choices`` a question, put under the six few-shot examples; or a record of one's
            own.
        choices: The answers to compare, where ``record`` is a question.
        lens: How a layer is read.
        layers: Which layers, in the grammar of :mod:`exitlens.layer_range` or as numbers.
        rule: What stands for a choice: see :func:`~exitlens.studies.layers.choices.plan_choices`. Under
            ``first-token`` the spellings of a choice are summed: see
            :func:`~exitlens.studies.layers.choices.spellings`.
        top_k: How many top tokens a layer are kept.
        trace: Whether every token of the text is read, for a map; by default where there are no choices.
        pins: Tokens that the map follows from the beginning: see :func:`trace_of`.

    Returns:
        Tables in which ``probability`` and ``mass`` are of the whole vocabulary, ``share`` among the choices.

    Raises:
        InputError: Choices that collide, an empty question.
        LayerError: A layer that the model does not have.
        ContextError: A prompt that does not fit the model's context.
    """
    if not isinstance(record, LookRecord):
        if not isinstance(record, str):
            raise wrong_kind("the text", record, "give a text or a record")
        choices = as_names(choices, "the choices")
        record = question_record(record, choices, None, plain=not choices)
    numbers = tuple(check_layers(lm, layers))
    tables = LayersStage((lens,), numbers, rule, top_k).run(lm, [record])
    found = tables["layers"]
    used = str(found["rule"].iloc[0]) if len(found) else "next token"
    wanted = not record.choices if trace is None else trace
    read = trace_of(lm, record, lens=lens, layers=numbers, pins=pins) if wanted else None
    return Look(record, lens_name(lens), used, found, tables["layers_top"], read)


def check_rule(text: str) -> Rule:
    """One of the rules; raises InputError."""
    if text not in _RULES:
        raise InputError(f"no rule '{text}': use {', '.join(_RULES)}")
    return cast(Rule, text)


def trace_of(
    lm: LayeredModel,
    record: LookRecord,
    *,
    lens: str | Lens = "logit",
    layers: Layers = "all",
    pins: Sequence[str] = (),
) -> Trace:
    """What each layer expects after each token of the record's text.

    Few-shot examples before the question are read but not kept; ``extra["first"]`` is the position of the first token
    kept. The last layer is always among the layers: what the others say is compared with it.

    Args:
        lm: The model.
        record: Its prompt is the text.
        lens: How a layer is read.
        layers: Which layers, besides the last.
        pins: Tokens whose rank is followed over all layers and positions: of each text the first token; by default the
            three most probable after the text.

    Returns:
        The trace of one text, with the statistics that a map shows.

    Raises:
        InputError: An empty prompt.
        LayerError: A layer that the model does not have.
        ContextError: A prompt that does not fit the model's context.
    """
    ids = list(lm.encode(record.prompt))
    if not ids:
        raise InputError(f"prompt '{record.id}' is empty: give a text")
    numbers = tuple(sorted({*check_layers(lm, layers), lm.n_layers}))
    before = record.prompt.rfind(record.question) if record.question else 0
    first = common_prefix([lm.encode(record.prompt[:before]), ids]) if before > 0 else 0
    found = read_ids(lm, [ids], layers=numbers, lens=lens, stats=MAP_STATS)
    wanted = [lm.encode(pin)[0] for pin in as_texts(pins, "pin") if lm.encode(pin)]
    if not wanted:
        wanted = [int(i) for i in found["top_ids"][0, -1, -1, :FOLLOWED]]
    followed = follow(lm, ids, wanted, numbers, lens)
    vocabulary = {**found.vocabulary, **{i: lm.token(i) or f"<{i}>" for i in wanted}}
    facts = {**found.extra, "pins": json.dumps(wanted), "first": str(first)}
    return replace(found, values={**found.values, **followed}, vocabulary=vocabulary, extra=facts).since(first)


def follow(
    lm: LayeredModel, ids: Sequence[int], wanted: Sequence[int], layers: Sequence[int], lens: str | Lens
) -> dict[str, NDArray[Any]]:
    """Rank and ln p of the same tokens at every layer and position: ``[1, layer, position, token]``."""
    hidden = lm.forward(torch.tensor([list(ids)], device=lm.device), layers=layers).hidden
    targets = torch.tensor([list(wanted)] * len(ids))
    states = {j: hidden[j][0] for j in layers}
    found = readout(lm, states, lens=lens, stats=("logprob", "rank"), targets=targets)
    return {f"pin_{name}": found[name].cpu().numpy()[None] for name in ("logprob", "rank")}


def write_looks(found: Sequence[Look], folder: Path) -> list[Path]:
    """Tables and the original's six-panel figure of each question, in ``folder``; returns what was written.

    A ``folder`` that ends in ``.html`` becomes one page with the interactive views instead.
    """
    from exitlens.report.figure_style import save
    from exitlens.studies.layers.figures import choice_bars, top_grid

    if folder.suffix == ".html":
        views = [made for each in found for made in _views(each)]
        write_bytes(folder, page(views, title=found[0].record.question).encode("utf-8", "replace"))
        return [folder]
    written: list[Path] = []
    for number, each in enumerate(found, start=1):
        stem = f"look-{number:03d}"
        for name, frame in (("layers", each.layers), ("top", each.top), ("map", each.map)):
            if frame is not None and len(frame):
                path = folder / f"{stem}-{name}.parquet"
                write_parquet(path, frame)
                written.append(path)
        note = f"{each.lens} lens, {each.rule}"
        figures = {"top": top_grid(each.top, question=each.record.question, note=note)}
        if each.record.choices:
            figures["bars"] = choice_bars(each.layers, note=note)
        for name, figure in figures.items():
            written += save(figure, folder, f"{stem}-{name}").values()
    return written


def _views(found: Look) -> list[View]:
    """The choices where there are any, the map where every token was read."""
    views = []
    if len(found.layers):
        # The view has the question for itself above its figures.
        how = {"first-token": "by their first tokens", "sequence": "by all of their tokens"}[found.rule]
        caption = f"{found.lens} lens · choices compared {how}"
        views.append(choices_view(found.layers, found.top, title="Choices by layer", caption=caption))
    if found.trace is not None:
        views.append(trace_view(found.trace, title=found.record.question))
    return views


def _shape(found: Look) -> Shape:
    told = f"{found.record.question} ({found.lens} lens)"
    return Shape(_views(found), _shares(found, told) if len(found.layers) else _best(found, told))


def _shares(found: Look, told: str) -> str:
    """The share of every choice at some layers."""
    wide = found.layers.pivot(index="layer", columns="choice", values="share")[[*dict.fromkeys(found.layers["choice"])]]
    layers = list(reversed(spread(list(wide.index), MOST_ROWS)))
    rows = [[int(layer), *(number_text(float(share)) for share in wide.loc[layer])] for layer in layers]
    return table_html(["layer", *wide.columns], rows, f"{told}, share of each choice among the choices")


def _best(found: Look, told: str) -> str:
    """The top-1 token at every layer."""
    best = found.top[found.top["rank"] == 0].sort_values("layer", ascending=False)
    rows = [
        [int(layer), token_text(token), number_text(float(p), 3)]
        for layer, token, p in zip(best["layer"], best["token"], best["probability"], strict=True)
    ]
    return table_html(["layer", "top-1 next token", "probability"], rows, told)


register_drawing(Look, _shape)

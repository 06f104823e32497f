"""What notebooks show of a result: a frame with the interactive view, a table beside it, on request a widget."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exitlens.data.records import Dataset
from exitlens.decoding.generation import Generation
from exitlens.decoding.trace import trace_answer
from exitlens.errors import InputError
from exitlens.lenses.trace import Trace
from exitlens.models.layered import Layered
from exitlens.report.frames import spread
from exitlens.report.text import number_text, token_text, visible
from exitlens.report.view_data import View
from exitlens.report.view_page import frame, page
from exitlens.report.view_trace import trace_view
from exitlens.report.words import counted
from exitlens.storage.atomic import write_bytes

__all__ = [
    "MOST_ROWS",
    "Drawing",
    "Shape",
    "drawing_of",
    "mimebundle",
    "register_drawing",
    "shown",
    "side_by_side",
    "table_html",
]

_SPACE = "padding:.2em .6em"
MOST_PROMPT = 200  # characters of a prompt, its last ones
MOST_ROWS, MOST_COLUMNS = 12, 16  # of a table that stands in a notebook
_NUMBER = re.compile(r"[-−+]?[\d.,]+(e[-−+]?\d+)?|–?")


@dataclass(frozen=True, slots=True)
class Shape:
    """How a result is drawn: its views, and the table for viewers that run no scripts (escaped HTML)."""

    views: Sequence[View]
    static: str


@dataclass(frozen=True, slots=True, repr=False)
class Drawing:
    """A drawn result, as :meth:`exitlens.display.Shown.show` returns it."""

    shape: Shape
    text: str
    height: int | None = None

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        if not self.shape.views:
            return self.shape.static
        return frame(self.shape.views, static=self.shape.static, height=self.height)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the views as one HTML file that needs no network; returns its path."""
        if not self.shape.views:
            raise InputError("there is no view to save: this result is shown as a table")
        place = Path(path)
        write_bytes(place, page(self.shape.views, static=self.shape.static).encode("utf-8", "replace"))
        return place


_DRAWERS: dict[type, Callable[[Any], Shape]] = {}


def register_drawing(kind: type, draw: Callable[[Any], Shape]) -> None:
    """Say how results of a class are drawn; for rooms that come after this one, and for classes of one's own."""
    _DRAWERS[kind] = draw


def drawing_of(result: object) -> Shape:
    """The shape of a result. Raises InputError for a class that nobody draws."""
    for kind in type(result).__mro__:
        if kind in _DRAWERS:
            return _DRAWERS[kind](result)
    raise InputError(f"{type(result).__name__} has no drawing: register one with register_drawing")


def shown(result: object, *, widget: bool = False, height: int | None = None) -> Any:
    """See :meth:`exitlens.display.Shown.show`."""
    shape = drawing_of(result)
    if widget:
        from exitlens.report.widget import ViewWidget

        if len(shape.views) != 1:
            raise InputError(f"a widget shows one view, and this result has {len(shape.views)}: use show()")
        return ViewWidget.of(shape.views[0], static=shape.static)
    return Drawing(shape, repr(result), height)


def side_by_side(traces: Sequence[Trace], *, height: int | None = None) -> Drawing:
    """One text through several lenses as one map, with a switch between them.

    Args:
        traces: Of the same text and layers; of more texts the first is shown.
        height: Of the frame [px]; by default what the view needs.

    Returns:
        An object that notebooks display; ``.save(FILE)`` writes it as one HTML file.

    Raises:
        InputError: No trace, traces that differ in text or layers, or nothing that a map could show.
    """
    made = trace_view(traces)
    static = "".join(_trace_table(each) for each in traces)
    return Drawing(Shape([made], static), f"{made.title}: {', '.join(each.lens for each in traces)}", height)


def mimebundle(result: object) -> dict[str, Any]:
    """Plain text and HTML of a result; where it cannot be drawn, HTML of its text."""
    try:
        made = Drawing(drawing_of(result), repr(result))._repr_html_()
    except InputError as error:
        told = "\n".join(html.escape(visible(line)) for line in repr(result).splitlines())
        made = f"<pre>{told}</pre><p>{html.escape(visible(str(error)))}</p>"
    return {"text/plain": repr(result), "text/html": made}


def table_html(heads: Sequence[object], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """A plain table, everything in it escaped: texts from the left, columns of numbers from the right.

    Notebooks and viewers align cells in ways of their own (and marimo gives them no space), and some drop styles: the
    sides are said twice.
    """
    sides = ["right" if _numbers(row[i] for row in rows) else "left" for i in range(len(heads))]

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f'<{tag} align="{side}" style="text-align:{side};{_SPACE}"><bdi>{html.escape(visible(value))}</bdi></{tag}>'
            for value, side in zip(values, sides, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    title = (
        f'<caption style="text-align:left;padding:.2em .6em">{html.escape(visible(caption))}</caption>'
        if caption
        else ""
    )
    head = f"<thead><tr>{cells('th', heads)}</tr></thead>" if any(heads) else ""
    return f"<table>{title}{head}<tbody>{body}</tbody></table>"


def _numbers(values: Iterable[object]) -> bool:
    """Whether a column holds numbers, as numbers or as they are written."""
    written = [str(value) for value in values]
    return bool(written) and all(_NUMBER.fullmatch(text) for text in written)


def _trace(trace: Trace) -> Shape:
    if not len(trace):
        raise InputError("this trace holds no text: there is nothing to show")
    many = f"This is the first of {len(trace)} texts; trace.text(1).show() shows the second."
    made = trace_view(trace)
    if len(trace) > 1:
        made = made.model_copy(update={"notes": [*made.notes, many]})
    return Shape([made], _trace_table(trace))


def _trace_table(trace: Trace) -> str:
    """Some layers and the first tokens, for viewers that run no scripts."""
    tokens = trace.tokens[0][:MOST_COLUMNS]
    rows = []
    for layer in reversed(spread(trace.layers, MOST_ROWS)):
        here = trace.at(layer)
        rows.append([layer, *(_cell(trace, here, place) for place in range(len(tokens)))])
    what = "top-1 token and its probability" if trace.vocabulary else next(iter(trace.values))
    some = f"at some layers, first {len(tokens)} of {trace.lengths[0]} tokens"
    caption = f"{trace.model}, {trace.lens} lens: {what} {some}"
    return table_html(["layer", *map(token_text, tokens)], rows, caption)


def _cell(trace: Trace, here: dict[str, Any], place: int) -> str:
    if trace.vocabulary and "top_ids" in here:
        import math

        token = trace.vocabulary.get(int(here["top_ids"][0, place, 0]), "")
        return f"{token_text(token)} {math.exp(float(here['top_logprobs'][0, place, 0])):.2f}"
    values = next((v for v in here.values() if v.ndim == 3 - 1), None)
    return "" if values is None else number_text(values[0, place])


def _generation(answer: Generation) -> Shape:
    ends = {"stop": "at a stop text", "eos": "at the end-of-text token", "length": "at the longest length allowed"}
    asked = answer.prompt if len(answer.prompt) <= MOST_PROMPT else "…" + answer.prompt[-MOST_PROMPT:]
    count = counted(len(answer.token_ids), "token")
    facts = [("prompt", asked), ("answer", answer.text), ("length", f"{count}; ended {ends[answer.finish]}")]
    static = table_html(["", ""], facts, "An answer")
    return Shape([trace_view(trace_answer(answer), title=answer.text)] if answer.reads else [], static)


_NAMES = {
    "questions": ("id", "question", "best"),
    "statements": ("id", "statement", "label", "topic"),
    "concepts": ("id", "prompt", "intermediates"),
}


def _dataset(data: Dataset) -> Shape:
    names = _NAMES[data.kind]
    rows = [[_written(name, getattr(record, name)) for name in names] for record in data.records[:MOST_ROWS]]
    more = f", first {len(rows)}" if len(data) > len(rows) else ""
    return Shape([], table_html(names, rows, f"{data.name}: {data.counted}{more}"))


def _written(name: str, value: object) -> str:
    if name == "label":
        return {0: "false", 1: "true"}.get(value, str(value)) if isinstance(value, int) else str(value)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _layered(lm: Layered) -> Shape:
    facts = [
        ("layers", f"{lm.n_layers} blocks; layer 0 is the embeddings, layer {lm.n_layers} the model's own output"),
        ("width", f"{lm.d_model:,}"),
        ("vocabulary", f"{lm.vocab_size:,} tokens"),
        ("type, device", f"{str(lm.dtype).removeprefix('torch.')} on {lm.device}"),
        ("readout at the last layer", f"{_distance(lm.parity.max_abs)} the model's logits"),
    ]
    return Shape([], table_html(["", ""], facts, lm.name))


def _distance(largest: float) -> str:
    return f"within {largest:.1e} of" if largest else "equal to"


register_drawing(Trace, _trace)
register_drawing(Generation, _generation)
register_drawing(Dataset, _dataset)
register_drawing(Layered, _layered)

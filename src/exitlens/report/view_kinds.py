"""What each kind of view holds: the arrays by name, with their axes. One list for both sides.

``scripts/view_schema.py`` writes it as ``web/src/schema.json``, by which the component checks what it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

__all__ = ["KINDS", "VERSION", "ArraySpec", "Kind", "lacks", "schema"]

VERSION: Final = 1  # of the packed form; goes up when an older component could no longer read it

Type = Literal["number", "text", "flag"]


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """An array: numbers, texts or yes-or-no; arrays that share an axis name have the same length along it."""

    type: Type
    axes: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of view: the arrays of the view, and of each of its pages."""

    arrays: Mapping[str, ArraySpec]
    pages: Mapping[str, ArraySpec] = field(default_factory=dict)


_CELL = ("lens", "layer", "position")
# In blocks of their own: every statistic of a cell, and what only some texts have.
_MAP: Final[Mapping[str, ArraySpec]] = {
    "lenses": ArraySpec("text", ("lens",)),
    "layers": ArraySpec("number", ("layer",)),
    "tokens": ArraySpec("text", ("position",)),
    "top": ArraySpec("text", (*_CELL, "rank"), optional=True),
    "top_p": ArraySpec("number", (*_CELL, "rank"), optional=True),
    "entropy": ArraySpec("number", _CELL, optional=True),
    "kl": ArraySpec("number", _CELL, optional=True),
    "margin": ArraySpec("number", _CELL, optional=True),
    "next": ArraySpec("text", ("position",), optional=True),
    "next_rank": ArraySpec("number", _CELL, optional=True),
    "next_p": ArraySpec("number", _CELL, optional=True),
    "pins": ArraySpec("text", ("pin",), optional=True),
    "pin_rank": ArraySpec("number", (*_CELL, "pin"), optional=True),
    "pin_p": ArraySpec("number", (*_CELL, "pin"), optional=True),
    "chosen": ArraySpec("number", ("position",), optional=True),
}

_TABLES: Final = ("entropy", "probes", "exits", "attribution", "lenses", "runs")
KINDS: Final[Mapping[str, Kind]] = {
    "map": Kind(_MAP),
    "choices": Kind(
        {
            "lenses": ArraySpec("text", ("lens",)),
            "layers": ArraySpec("number", ("layer",)),
            "questions.id": ArraySpec("text", ("questions",)),
            "questions.text": ArraySpec("text", ("questions",)),
            "questions.page": ArraySpec("number", ("questions",)),
        },
        {
            "first": ArraySpec("number", ("question",)),
            "count": ArraySpec("number", ("question",)),
            "choice": ArraySpec("text", ("choice",)),
            "correct": ArraySpec("flag", ("choice",)),
            "probability": ArraySpec("number", ("lens", "layer", "choice")),
            "share": ArraySpec("number", ("lens", "layer", "choice")),
            "mass": ArraySpec("number", ("lens", "layer", "question")),
            "top": ArraySpec("text", ("lens", "layer", "question", "rank"), optional=True),
            "top_p": ArraySpec("number", ("lens", "layer", "question", "rank"), optional=True),
        },
    ),
    "decoders": Kind(
        {
            "decoders": ArraySpec("text", ("decoder",)),
            "answers.id": ArraySpec("text", ("answers",)),
            "answers.question": ArraySpec("text", ("answers",)),
            "answers.text": ArraySpec("text", ("answers", "decoder")),
            # A row for each answer, decoder and judge; one for each step at which decoders part and candidate layer.
            "verdicts.correct": ArraySpec("flag", ("verdicts",), optional=True),
            "judges": ArraySpec("text", ("judge",), optional=True),
            "candidates": ArraySpec("number", ("candidate",), optional=True),
            "partings.divergence": ArraySpec("number", ("partings",), optional=True),
        }
    ),
    # Figures over tables: which columns they need stands with the figures (report/view_figures.py).
    **{name: Kind({}) for name in _TABLES},
}


def schema() -> dict[str, object]:
    """The list as JSON, short because every page carries it: ``{"version": …, "kinds": {kind: [line, …]}}``.

    A line is type, axes and names, as in ``number lens layer position?: entropy kl`` (``?``: may be missing). Pages
    stand as ``kind/page``.
    """
    kinds: dict[str, list[str]] = {}
    for name, kind in KINDS.items():
        kinds[name] = _lines(kind.arrays)
        if kind.pages:
            kinds[f"{name}/page"] = _lines(kind.pages)
    return {"version": VERSION, "kinds": kinds}


def lacks(figure: Mapping[str, Any], arrays: Collection[str], switches: Any = ()) -> str | None:
    """The first array that a figure needs and that is not there.

    Args:
        figure: As :class:`~exitlens.report.view_figures.Figure` declares it, as JSON.
        arrays: Names of the arrays that are there. A table of which there is none has no rows: it needs nothing.
        switches: The view's switches as JSON. Of the columns that one offers as ``$key``, one must be there.

    Returns:
        ``table.column``, or None.
    """
    table = f"{figure['table']}."
    if not any(name.startswith(table) for name in arrays):
        return None
    offered = {f"${one['key']}": [value for value, _ in one.get("options") or ()] for one in switches or ()}
    columns = [figure["x"], figure.get("by"), *(name.removeprefix("=") for name in figure.get("where") or ())]
    columns += [name for name, _ in figure["lines"]] if figure.get("lines") else [figure["y"]]
    for name in filter(None, columns):
        any_of = offered.get(name) or [name]
        if not any(table + each in arrays for each in any_of):
            return f"{table}{any_of[0]}"
    return None


def _lines(specs: Mapping[str, ArraySpec]) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for name, spec in specs.items():
        grouped.setdefault(f"{spec.type} {' '.join(spec.axes)}{'?' * spec.optional}", []).append(name)
    return [f"{head}: {' '.join(names)}" for head, names in grouped.items()]

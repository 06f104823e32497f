"""What each kind of view holds: the arrays by name, with their axes. One list for both sides.

``scripts/view_schema.py`` writes it as ``web/src/schema.json``, by which the component checks what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["KINDS", "VERSION", "ArraySpec", "Kind", "schema"]

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


def _table(name: str, *, text: str = "", number: str = "", flag: str = "", more: str = "") -> dict[str, ArraySpec]:
    """Columns of a table ``name``, one row axis; ``more``: numbers that may be missing."""
    kinds: tuple[tuple[Type, str], ...] = (("text", text), ("number", number), ("flag", flag))
    out = {f"{name}.{c}": ArraySpec(kind, (name,)) for kind, columns in kinds for c in columns.split()}
    return out | {f"{name}.{c}": ArraySpec("number", (name,), optional=True) for c in more.split()}


def _optional(specs: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    return {name: ArraySpec(spec.type, spec.axes, optional=True) for name, spec in specs.items()}


_CELL = ("lens", "layer", "position")
# Kept apart: every statistic of a cell, and what only some texts have.
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

KINDS: Final[Mapping[str, Kind]] = {
    "map": Kind(_MAP),
    "live": Kind({"layers": ArraySpec("number", ("layer",)), "lenses": ArraySpec("text", ("lens",))}),
    "choices": Kind(
        {
            "lenses": ArraySpec("text", ("lens",)),
            "layers": ArraySpec("number", ("layer",)),
            **_table("questions", text="id text outcome", number="page", flag="", more="interest entropy"),
            "questions.changed": ArraySpec("text", ("questions",), optional=True),
            **_optional(_table("accuracy", text="lens", number="layer n accuracy low high correct_share mass")),
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
            **_table("answers", text="id question"),
            "answers.text": ArraySpec("text", ("answers", "decoder")),
            "answers.correct": ArraySpec("flag", ("answers", "decoder", "judge"), optional=True),
            "judges": ArraySpec("text", ("judge",), optional=True),
            **_optional(_table("scores", text="decoder metric", number="n mean low high")),
            **_table("scores", more="difference difference_low difference_high p"),
            **_optional(_table("layers", text="decoder", number="layer count")),
            **_optional(_table("steps", text="decoder token", number="answer position")),
            **_table("steps", more="chosen"),
            "candidates": ArraySpec("number", ("candidate",), optional=True),
            "steps.divergence": ArraySpec("number", ("steps", "candidate"), optional=True),
        }
    ),
    "entropy": Kind(
        {
            **_table(
                "layers", text="judge estimator", number="layer n_correct n_incorrect correct incorrect difference"
            ),
            **_table("layers", more="correct_low correct_high incorrect_low incorrect_high difference_low"),
            **_table("layers", more="difference_high auroc auroc_low auroc_high p p_holm p_bh cohens_d"),
            **_optional(_table("answers", text="id question answer", number="n_tokens")),
            "layer": ArraySpec("number", ("layer",), optional=True),
            "answers.entropy": ArraySpec("number", ("answers", "layer"), optional=True),
            "judges": ArraySpec("text", ("judge",), optional=True),
            "answers.correct": ArraySpec("flag", ("answers", "judge"), optional=True),
        }
    ),
    "probes": Kind(
        {
            **_optional(_table("layers", text="kind role protocol", number="layer n")),
            **_table("layers", more="accuracy accuracy_low accuracy_high auroc auroc_low auroc_high"),
            **_table("layers", more="brier brier_low brier_high ece ece_low ece_high"),
            **_optional(_table("original", text="setting method", number="layer n_test test_accuracy")),
            **_table("original", more="test_accuracy_low test_accuracy_high auroc"),
            **_optional(_table("calibration", text="kind", number="confidence observed n")),
            **_table("calibration", more="observed_low observed_high"),
            **_optional(_table("transfer", text="kind train_topic test_topic", number="layer n")),
            **_table("transfer", more="accuracy accuracy_low accuracy_high auroc auroc_low auroc_high"),
        }
    ),
    "exits": Kind(
        {
            **_table("policies", text="policy", number="threshold agreement layers_saved n"),
            **_table("policies", more="agreement_low agreement_high mean_exit exit_checks flops_saved"),
            **_optional(_table("exit_layers", text="policy", number="threshold layer count share")),
        }
    ),
    "attribution": Kind(
        {
            **_table("parts", text="part", number="layer contribution"),
            **_table("parts", more="head low high n"),
            "parts.example": ArraySpec("text", ("parts",), optional=True),
        }
    ),
    "lenses": Kind(
        {**_table("lenses", text="lens metric", number="layer value"), **_table("lenses", more="low high n")}
    ),
    "runs": Kind(
        {
            **_table("runs", text="run study metric", number="value"),
            **_table("runs", more="low high n layer difference difference_low difference_high p p_holm"),
            "runs.group": ArraySpec("text", ("runs",), optional=True),
        }
    ),
}


def schema() -> dict[str, object]:
    """The list as JSON, short because every page carries it: ``{"version": …, "kinds": {kind: [line, …]}}``.

    A line is type, axes and names, as in ``number lens layer position?: entropy kl`` (``?``: may be missing). The
    columns of a table are ``text policies.: policy``: arrays named ``policies.policy``. Pages stand as ``kind/page``.
    """
    kinds: dict[str, list[str]] = {}
    for name, kind in KINDS.items():
        kinds[name] = _lines(kind.arrays)
        if kind.pages:
            kinds[f"{name}/page"] = _lines(kind.pages)
    return {"version": VERSION, "kinds": kinds}


def _lines(specs: Mapping[str, ArraySpec]) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for name, spec in specs.items():
        table, _, column = name.partition(".")
        one_table = column and spec.axes == (table,)
        axes = f"{table}." if one_table else " ".join(spec.axes)
        grouped.setdefault(f"{spec.type} {axes}{'?' * spec.optional}", []).append(column if one_table else name)
    return [f"{head}: {' '.join(names)}" for head, names in grouped.items()]

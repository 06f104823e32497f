"""One question, layer by layer: the function behind ``exitlens look``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import pandas as pd

from exitlens.data.prompts import QA_PROMPT, qa_prompt
from exitlens.errors import InputError, LayerError
from exitlens.models.protocol import LayeredModel
from exitlens.study.atomic import write_parquet
from exitlens.study.choices import Rule
from exitlens.study.stage_layers import LayersStage, LookRecord

__all__ = ["Look", "check_lens", "check_rule", "look", "parse_layers", "question_record", "write_looks"]

_RULES = ("auto", "first-token", "sequence")
_LENSES = ("logit", "raw")


@dataclass(frozen=True, slots=True)
class Look:
    """What the layers said: ``layers`` (a row a layer and choice) and ``top`` (a row a layer and rank)."""

    record: LookRecord
    lens: str
    rule: str
    layers: pd.DataFrame
    top: pd.DataFrame


def look(
    lm: LayeredModel,
    record: LookRecord | str,
    choices: Sequence[str] = (),
    *,
    lens: str = "logit",
    layers: Sequence[int] | Literal["all"] = "all",
    rule: Rule = "auto",
    top_k: int = 5,
) -> Look:
    """Probability of each choice at each layer, and the likeliest next tokens.

    ``record``: a question (put under the six worked examples) or a record of one's own. Probabilities are those of the
    whole vocabulary (``probability``) and among the choices (``share``). Raises InputError for choices that collide,
    LayerError, ContextError.
    """
    if isinstance(record, str):
        record = question_record(record, choices, None)
    numbers: tuple[int, ...] | Literal["all"] = "all" if layers == "all" else tuple(layers)
    tables = LayersStage((lens,), numbers, rule, top_k).run(lm, [record])
    found = tables["layers"]
    used = str(found["rule"].iloc[0]) if len(found) else "next token"
    return Look(record, lens, used, found, tables["layers_top"])


def question_record(
    question: str, choices: Sequence[str], correct: str | None = None, *, plain: bool = False
) -> LookRecord:
    """A record for one question. Raises InputError for an empty question and for a ``correct`` that is no choice."""
    if not question.strip():
        raise InputError("the question is empty: give a text")
    if correct is not None and correct.strip() not in choices:
        raise InputError(f"the right answer '{correct}' is not among the choices: {', '.join(choices) or 'none given'}")
    prompt = question if plain else "".join(qa_prompt(question, QA_PROMPT))
    right = tuple(correct is not None and choice == correct.strip() for choice in choices)
    return LookRecord("question", question, prompt, tuple(choices), right)


def parse_layers(text: str, n_layers: int) -> tuple[int, ...] | Literal["all"]:
    """ "all", or numbers and ranges such as ``0,8,16-20``. Raises InputError, and LayerError for one out of range."""
    if text.strip() == "all":
        return "all"
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(
                f"'{part.strip()}' in --layers '{text}' is not a layer: write numbers and ranges, 0,8,16-20"
            )
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    for layer in found:
        if layer > n_layers:
            raise LayerError(f"layer {layer} is out of range: the model has layers 0 (embeddings) to {n_layers}")
    if not found:
        raise InputError(f"no layers in --layers '{text}': write numbers and ranges, 0,8,16-20")
    return tuple(sorted(set(found)))


def check_rule(text: str) -> Rule:
    """One of the rules; raises InputError."""
    if text not in _RULES:
        raise InputError(f"no rule '{text}': use {', '.join(_RULES)}")
    return cast(Rule, text)


def check_lens(text: str) -> str:
    """One of the built-in lenses; raises InputError."""
    if text not in _LENSES:
        raise InputError(f"no lens '{text}': use {', '.join(_LENSES)}")
    return text


def write_looks(found: Sequence[Look], folder: Path) -> list[Path]:
    """Tables and the original's six-panel figure of each question, in ``folder``; returns what was written."""
    from exitlens.views.figures_layers import choice_bars, top_grid
    from exitlens.views.style import save

    written: list[Path] = []
    for number, each in enumerate(found, start=1):
        stem = f"look-{number:03d}"
        for name, frame in (("layers", each.layers), ("top", each.top)):
            if len(frame):
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

"""One question, layer by layer: the function behind ``exitlens look``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from exitlens.data.prompts import QA_PROMPT, qa_prompt
from exitlens.errors import InputError
from exitlens.layer_range import Layers
from exitlens.lenses.lens import Lens, lens_name
from exitlens.lenses.read_texts import read_ids
from exitlens.models.forward import common_prefix
from exitlens.models.protocol import LayeredModel
from exitlens.storage.atomic import write_parquet
from exitlens.studies.layers.choices import Rule
from exitlens.studies.layers.stage import LayersStage, LookRecord, check_layers

__all__ = ["Look", "check_rule", "look", "map_of", "question_record", "write_looks"]

_RULES = ("auto", "first-token", "sequence")


@dataclass(frozen=True, slots=True)
class Look:
    """What the layers said: ``layers`` (a row a layer and choice), ``top`` (a row a layer and rank), and where it was
    asked for ``map`` (:func:`map_of`).
    """

    record: LookRecord
    lens: str
    rule: str
    layers: pd.DataFrame
    top: pd.DataFrame
    map: pd.DataFrame | None = None

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
) -> Look:
    """Probability of each choice at each layer, and the top next tokens.

    Args:
        lm: The model.
        record: A question, put under the six few-shot examples, or a record of one's own.
        choices: The answers to compare, where ``record`` is a question.
        lens: How a layer is read.
        layers: Which layers, in the grammar of :mod:`exitlens.layer_range` or as numbers.
        rule: What stands for a choice: see :func:`~exitlens.studies.layers.choices.plan_choices`. Under
            ``first-token`` the spellings of a choice are summed: see
            :func:`~exitlens.studies.layers.choices.spellings`.
        top_k: How many top tokens a layer are kept.

    Returns:
        Tables in which ``probability`` and ``mass`` are of the whole vocabulary, ``share`` among the choices.

    Raises:
        InputError: Choices that collide, an empty question.
        LayerError: A layer that the model does not have.
        ContextError: A prompt that does not fit the model's context.
    """
    if isinstance(record, str):
        record = question_record(record, choices, None)
    numbers = tuple(check_layers(lm, layers))
    tables = LayersStage((lens,), numbers, rule, top_k).run(lm, [record])
    found = tables["layers"]
    used = str(found["rule"].iloc[0]) if len(found) else "next token"
    return Look(record, lens_name(lens), used, found, tables["layers_top"])


def question_record(
    question: str, choices: Sequence[str], correct: str | None = None, *, plain: bool = False
) -> LookRecord:
    """A record for one question. Raises InputError for an empty question and for a ``correct`` that is no choice."""
    if not question.strip():
        raise InputError("the question is empty: give a text")
    if correct is not None and correct.strip() not in choices:
        raise InputError(
            f"the correct answer '{correct}' is not among the choices: {', '.join(choices) or 'none given'}"
        )
    prompt = question if plain else "".join(qa_prompt(question, QA_PROMPT))
    is_correct = tuple(correct is not None and choice == correct.strip() for choice in choices)
    return LookRecord("question", question, prompt, tuple(choices), is_correct)


def check_rule(text: str) -> Rule:
    """One of the rules; raises InputError."""
    if text not in _RULES:
        raise InputError(f"no rule '{text}': use {', '.join(_RULES)}")
    return cast(Rule, text)


def map_of(lm: LayeredModel, record: LookRecord, *, lens: str | Lens = "logit", layers: Layers = "all") -> pd.DataFrame:
    """Token × layer: what each layer expects after each token of the text, and with what probability.

    Columns: question_id, lens, layer, position, context (the token read there), token_id, token, probability. Few-shot
    examples before the question are read but not listed. Raises ContextError, LayerError.
    """
    ids = list(lm.encode(record.prompt))
    if not ids:
        raise InputError(f"prompt '{record.id}' is empty: give a text")
    numbers = check_layers(lm, layers)
    before = record.prompt.rfind(record.question) if record.question else 0
    first = common_prefix([lm.encode(record.prompt[:before]), ids]) if before > 0 else 0
    trace = read_ids(lm, [ids], layers=numbers, lens=lens, stats=("top_k",), top_k=1)
    top, probability = trace["top_ids"][0, :, :, 0], np.exp(trace["top_logprobs"][0, :, :, 0].astype(np.float64))
    rows = [
        {
            "question_id": record.id,
            "lens": trace.lens,
            "layer": layer,
            "position": place,
            "context": trace.tokens[0][place],
            "token_id": int(top[k, place]),
            "token": lm.token(int(top[k, place])) or f"<{int(top[k, place])}>",
            "probability": float(probability[k, place]),
        }
        for k, layer in enumerate(numbers)
        for place in range(first, len(ids))
    ]
    return pd.DataFrame(rows)


def write_looks(found: Sequence[Look], folder: Path) -> list[Path]:
    """Tables and the original's six-panel figure of each question, in ``folder``; returns what was written."""
    from exitlens.report.figure_style import save
    from exitlens.studies.layers.figures import choice_bars, top_grid

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

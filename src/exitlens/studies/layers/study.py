"""The layer study of a run: choices at every layer, accuracy by layer, and the answers worth looking at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from exitlens.data.records import Question, as_records
from exitlens.errors import InputError, UnsupportedModel
from exitlens.layer_range import Layers
from exitlens.lenses.attribution import parts_of
from exitlens.lenses.lens import Lens, lens_name
from exitlens.lenses.lens_names import open_lens
from exitlens.lenses.lens_words import check_lens_word
from exitlens.models.protocol import LayeredModel
from exitlens.report.words import counted
from exitlens.studies.base import Study
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Context
from exitlens.studies.inputs import Inputs, look_records, prompt_records
from exitlens.studies.layers.attribution import AttributionStage, attribution_means, one_token_records
from exitlens.studies.layers.chapter import LayersChapter
from exitlens.studies.layers.choices import Rule
from exitlens.studies.layers.columns import LAYERS_TABLES
from exitlens.studies.layers.records import LookRecord
from exitlens.studies.layers.stage import LayersStage, accuracy_by_layer, check_layers, pick_interesting
from exitlens.studies.result import StudyResult

__all__ = ["STUDY", "ChoicesByLayer", "LayersStudy", "layers_study"]

BATCH = 16  # questions to a unit of work
ATTRIBUTED = 64  # of attribution: the few-shot prompt that all share is most of the work, and runs once a unit


@dataclass(frozen=True, slots=True, repr=False)
class ChoicesByLayer(StudyResult):
    """What the layers would have answered: the tables ``layers``, ``layers_top`` and ``layers_accuracy`` of a run."""

    layers: pd.DataFrame
    top: pd.DataFrame
    accuracy: pd.DataFrame
    notes: tuple[str, ...]
    model: str

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables by their names in a run directory."""
        return {"layers": self.layers, "layers_top": self.top, "layers_accuracy": self.accuracy}


def layers_study(
    lm: LayeredModel,
    questions: Sequence[Question],
    *,
    lens: str | Lens = "logit",
    layers: Layers = "all",
    rule: Rule = "auto",
    top_k: int = 5,
    seed: int = 0,
) -> ChoicesByLayer:
    """Probability of every choice of every question at each layer, and the accuracy of each layer.

    Args:
        lm: The model.
        questions: With choices of their own, or with correct and incorrect answers.
        lens: How a layer is read.
        layers: Which layers, in the grammar of :mod:`exitlens.layer_range` or as numbers.
        rule: What stands for a choice: see :func:`~exitlens.studies.layers.choices.plan_choices`.
        top_k: How many top tokens a layer are kept.
        seed: Of the intervals' resamples.

    Returns:
        The tables, and notes on the questions that were left out.

    Raises:
        InputError: No question has choices to compare.
        LayerError: A layer that the model does not have.
        ContextError: A question that does not fit the model's context.
    """
    questions = as_records(questions, Question)
    records, notes = look_records(lm, questions, rule=rule)
    if not records:
        raise InputError(
            f"none of {counted(len(questions), 'question')} has choices to compare: give correct and incorrect answers"
        )
    tables = LayersStage((lens,), tuple(check_layers(lm, layers)), rule, top_k).run(lm, records)
    accuracy = accuracy_by_layer(tables["layers"], seed=seed)
    return ChoicesByLayer(tables["layers"], tables["layers_top"], accuracy, tuple(notes), lm.name)


class LayersStudy(Study):
    """See :class:`exitlens.studies.base.Study`."""

    name = "layers"
    tables = LAYERS_TABLES
    chapter = LayersChapter()

    def check_settings(self, config: RunConfig, inputs: Inputs) -> None:
        """A lens that does not exist, a file of prompts that cannot be read."""
        for lens in config.lens:
            check_lens_word(lens)
        if config.prompts is not None:
            prompt_records(config.prompts)

    def check(self, ctx: Context) -> None:
        """Layers that the model does not have, a lens of another model."""
        check_layers(ctx.engine.lm, ctx.config.layers)
        for lens in ctx.config.lens:
            open_lens(lens, ctx.engine.lm)

    def run(self, ctx: Context) -> None:
        """Tables ``layers``, ``layers_top``, ``layers_picks``, ``layers_accuracy``, and those of attribution."""
        config, lm = ctx.config, ctx.engine.lm
        records, notes = look_records(lm, ctx.inputs.questions, rule=config.rule, most=config.look_limit or None)
        if config.prompts is not None:
            records += prompt_records(config.prompts)
        for note in notes:
            ctx.say(note)
        if not records:
            ctx.say("layers: no question has choices to compare, so this study is left out")
            return
        lenses = tuple(open_lens(lens, lm) for lens in config.lens)
        stage = LayersStage(lenses, config.layers, config.rule, config.top_k)
        tables = ctx.engine.map(stage, records, batch_size=BATCH).tables
        layers = tables["layers"]
        ctx.write("layers", layers)
        ctx.write("layers_top", tables["layers_top"])
        if len(layers) and bool(layers["correct"].any()):
            ctx.write("layers_picks", pick_interesting(layers, lens=lens_name(lenses[0]), most=config.picks))
            ctx.write("layers_accuracy", accuracy_by_layer(layers, seed=config.seed))
        _attribute(ctx, records)


def _attribute(ctx: Context, records: Sequence[LookRecord]) -> None:
    """Tables ``attribution``, ``attribution_heads``, ``attribution_means``, where logits and choices can be split."""
    lm = ctx.engine.lm
    known = [record for record in records if any(record.correct) and not all(record.correct)]
    usable = one_token_records(lm, known)
    if len(usable) < len(known):
        ctx.say(
            f"layers: {counted(len(known) - len(usable), 'question')} left out of attribution, no first token tells "
            "their choices apart"
        )
    if not usable:
        return
    try:
        parts_of(lm)
        tables = ctx.engine.map(AttributionStage(), usable, batch_size=ATTRIBUTED).tables
    except UnsupportedModel as error:
        ctx.say(f"layers: no attribution: {error}")
        return
    table, heads = tables["attribution"], tables["attribution_heads"]
    ctx.write("attribution", table)
    if len(heads):
        ctx.write("attribution_heads", heads)
    ctx.write("attribution_means", attribution_means(table, seed=ctx.config.seed))


STUDY = LayersStudy()

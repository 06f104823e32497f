"""The layer study of a run: choices at every layer, accuracy by layer, and the answers worth looking at."""

from __future__ import annotations

from exitlens.lenses.lens import lens_name
from exitlens.lenses.lens_names import check_lens_word, open_lens
from exitlens.studies.base import Study
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Context
from exitlens.studies.inputs import Inputs, look_records, prompt_records
from exitlens.studies.layers.chapter import LayersChapter
from exitlens.studies.layers.columns import LAYERS_TABLES
from exitlens.studies.layers.stage import LayersStage, accuracy_by_layer, check_layers, pick_interesting

__all__ = ["STUDY", "LayersStudy"]

BATCH = 16  # questions to a unit of work


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
        """Tables ``layers``, ``layers_top``, ``layers_picks``, ``layers_accuracy``."""
        config, lm = ctx.config, ctx.engine.lm
        records, notes = look_records(lm, ctx.inputs.questions, rule=config.rule, most=config.look_limit)
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


STUDY = LayersStudy()

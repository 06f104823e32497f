"""The layer study of a run: choices at every layer, accuracy by layer, and the answers worth looking at."""

from __future__ import annotations

from exitlens.lenses.lens import lens_name
from exitlens.lenses.lens_names import check_lens_word, open_lens
from exitlens.studies.context import Context
from exitlens.studies.inputs import look_records, prompt_records
from exitlens.studies.layers.stage import LayersStage, accuracy_by_layer, check_layers, pick_interesting

__all__ = ["run"]

BATCH = 16


def check(ctx: Context) -> None:
    """Raise what would stop this study before it begins."""
    check_layers(ctx.engine.lm, ctx.config.layers)
    for lens in ctx.config.lens:
        open_lens(check_lens_word(lens), ctx.engine.lm)
    if ctx.config.prompts is not None:
        prompt_records(ctx.config.prompts)


def run(ctx: Context) -> None:
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

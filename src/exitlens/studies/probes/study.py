"""The probe study of a run: the original protocol on hidden states that are extracted once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exitlens.data import groups
from exitlens.data.prompts import Setting
from exitlens.data.records import Statement
from exitlens.errors import ProbeError
from exitlens.layer_range import Layers
from exitlens.models.protocol import LayeredModel
from exitlens.runs.engine import LocalEngine, Report
from exitlens.runs.hidden_states import StateStore
from exitlens.studies.answers.columns import ANSWERS, JUDGEMENTS
from exitlens.studies.base import Need, Study
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Context
from exitlens.studies.inputs import Inputs
from exitlens.studies.layers.stage import check_layers
from exitlens.studies.probes.answer_columns import ANSWER_TABLES
from exitlens.studies.probes.answers import check_answer_settings, is_answer_position, run_answers
from exitlens.studies.probes.chapter import ProbesChapter
from exitlens.studies.probes.columns import PROBES_TABLES
from exitlens.studies.probes.extraction import extract, label_tokens
from exitlens.studies.probes.model_answers import PROBED_LAYERS, model_answers, pick_probed_layers
from exitlens.studies.probes.truth import check_kinds, check_protocol, run_kinds

if TYPE_CHECKING:
    from exitlens.probes.original import OriginalStudy

__all__ = ["STUDY", "ProbesStudy", "original_probes", "original_table", "pick_test_topic"]

ORIGINAL_TEST = "cities"


def original_probes(
    lm: LayeredModel,
    statements: Sequence[Statement],
    folder: str | Path,
    *,
    settings: Sequence[Setting] = ("few-shot", "zero-shot"),
    probed_layers: Layers = PROBED_LAYERS,
    test_topic: str | None = None,
    epochs: int = 5,
    seed: int = 0,
    report: Report | None = None,
) -> OriginalStudy:
    """Extract the states of ``statements`` into ``folder`` (kept, and extended when called again), then the original
    study: tables ``probes`` and ``probe_curves``.

    Raises ProbeError (one class, one topic, states of another model), LayerError, ContextError.
    """
    engine = LocalEngine(lm, report=report)
    stores = {setting: extract(engine, statements, Path(folder) / setting, setting=setting) for setting in settings}
    return original_table(
        lm, statements, stores, probed_layers=probed_layers, test_topic=test_topic, epochs=epochs, seed=seed
    )


def original_table(
    lm: LayeredModel,
    statements: Sequence[Statement],
    stores: Mapping[Setting, StateStore],
    *,
    probed_layers: Layers = PROBED_LAYERS,
    test_topic: str | None = None,
    epochs: int = 5,
    seed: int = 0,
) -> OriginalStudy:
    """The original study on stored states; what the model itself said was stored beside them."""
    from exitlens.probes.original import original_study

    layers = pick_probed_layers(lm, probed_layers)
    ids = [statement.id for statement in statements]
    labels = np.array([statement.label for statement in statements])
    next_token, probability = {}, {}
    if "few-shot" in stores:
        next_token["few-shot"], probability["few-shot"] = model_answers(lm, stores["few-shot"], ids, labels)
    return original_study(
        {setting: store.states(layers, ids) for setting, store in stores.items()},
        labels,
        [statement.topic for statement in statements],
        next_token,
        probability,
        layers=layers,
        probed_layers=layers,
        test_topic=pick_test_topic(statements, test_topic),
        groups=groups(statements),
        seed=seed,
        epochs=epochs,
    )


def pick_test_topic(statements: Sequence[Statement], wanted: str | None = None) -> str:
    """The topic held out: the one asked for, the original's (cities), or the last. Raises ProbeError."""
    topics = list(dict.fromkeys(statement.topic for statement in statements))
    if wanted is not None and wanted not in topics:
        raise ProbeError(f"no topic '{wanted}' among the statements: they have {', '.join(topics)}")
    if len(topics) < 2:
        raise ProbeError(f"all statements are of one topic ('{topics[0]}'): give two or more, one is held out")
    return wanted or (ORIGINAL_TEST if ORIGINAL_TEST in topics else topics[-1])


class ProbesStudy(Study):
    """See :class:`exitlens.studies.base.Study`."""

    name = "probes"
    tables = (*PROBES_TABLES, ANSWERS, JUDGEMENTS, *ANSWER_TABLES)
    chapter = ProbesChapter()
    needs = ("statements",)

    def needs_of(self, config: RunConfig) -> tuple[Need, ...]:
        """Questions where the probes read generated answers, else statements."""
        return ("questions",) if is_answer_position(config) else self.needs

    def check_settings(self, config: RunConfig, inputs: Inputs) -> None:
        """A kind, protocol or topic that does not exist, or that the statements do not allow."""
        if is_answer_position(config):
            check_answer_settings(config)
            return
        if config.original:
            pick_test_topic(inputs.statements, config.test_topic)
        if config.kinds:
            check_protocol(config.kinds, config.protocol, bool(inputs.test_statements))
            if "kinds" in config.model_fields_set:  # before another study has answered questions for an hour
                check_kinds(config, inputs)

    def check(self, ctx: Context) -> None:
        """Layers that the model does not have, a tokenizer that cannot write the label words."""
        if is_answer_position(ctx.config):
            ctx.check_questions()
            ctx.judges()
            label_tokens(ctx.engine.lm)
            check_layers(ctx.engine.lm, ctx.config.probe_layers)
            return
        pick_probed_layers(ctx.engine.lm, ctx.config.probed_layers)
        label_tokens(ctx.engine.lm)
        if ctx.config.kinds:
            check_layers(ctx.engine.lm, ctx.config.probe_layers)

    def run(self, ctx: Context) -> None:
        """Tables ``probes`` and ``probe_curves``, or those of answers; hidden states in ``states/``."""
        if is_answer_position(ctx.config):
            run_answers(ctx)
            return
        config, lm, directory = ctx.config, ctx.engine.lm, ctx.engine.directory
        statements = ctx.inputs.statements
        if directory is None:
            raise ProbeError("the probe study of a run keeps its states in the run directory: give one")
        run_kinds(ctx)
        if not config.original:
            return
        settings: list[Setting] = ["few-shot", "zero-shot"] if config.zero_shot else ["few-shot"]
        stores: dict[Setting, StateStore] = {}
        for setting in settings:
            folder = Path(config.states or directory.path / "states") / setting
            stores[setting] = extract(ctx.engine, statements, folder, setting=setting)
        ctx.say("training probes")
        # Training is short: it is kept whole or done again.
        done = original_table(
            lm,
            statements,
            stores,
            probed_layers=config.probed_layers,
            test_topic=config.test_topic,
            epochs=config.epochs,
            seed=config.seed,
        )
        ctx.write("probes", done.probes)
        ctx.write("probe_curves", done.curves)


STUDY = ProbesStudy()

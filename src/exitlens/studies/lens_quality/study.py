"""The lens study of a run: which lens reads known concepts, beside controls that must not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import pandas as pd

from exitlens.data.records import ConceptPrompt, as_records
from exitlens.errors import InputError
from exitlens.layer_range import Layers, parse_layers
from exitlens.lenses.concepts import chance_pass, inner_layers, plan_reads, with_rule
from exitlens.lenses.controls import RotationLens
from exitlens.lenses.lens import BUILT_IN, Lens, as_lens, lens_name
from exitlens.lenses.lens_names import open_lens, own_path
from exitlens.lenses.lens_words import FITTED, check_lens_word
from exitlens.models.protocol import LayeredModel
from exitlens.runs.engine import Engine, LocalEngine, Report
from exitlens.studies.base import Need, Study
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Context
from exitlens.studies.inputs import Inputs
from exitlens.studies.lens_quality.analysis import (
    layers_table,
    pairs_table,
    pass_table,
    sets_table,
    shares,
    summary_table,
)
from exitlens.studies.lens_quality.chapter import LensesChapter
from exitlens.studies.lens_quality.columns import LENSES_TABLES
from exitlens.studies.lens_quality.stage import RANKS, READS, LensStage, with_decoys
from exitlens.studies.lens_quality.timing import reading_costs
from exitlens.studies.result import StudyResult

__all__ = ["STUDY", "LensQuality", "LensesStudy", "headline_k", "lens_study"]

BATCH = 32  # prompts to a unit of work
PASS_AT = (1, 5, 10, 50)
_HEADLINE = 10


@dataclass(frozen=True, slots=True, repr=False)
class LensQuality(StudyResult):
    """The tables of the same names of a run, without ``lenses_`` where they have it (``passed`` is ``lenses``)."""

    passed: pd.DataFrame
    pairs: pd.DataFrame
    layers: pd.DataFrame
    summary: pd.DataFrame
    sets: pd.DataFrame
    ranks: pd.DataFrame
    reads: pd.DataFrame
    model: str

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables by their names in a run directory."""
        return {
            "lenses" if field.name == "passed" else f"lenses_{field.name}": getattr(self, field.name)
            for field in fields(self)
            if field.name != "model"
        }


def lens_study(
    lm: LayeredModel,
    prompts: Sequence[ConceptPrompt],
    *,
    lenses: Sequence[str | Lens] = ("raw", "logit"),
    layers: Layers = "all",
    pass_at: Sequence[int] = PASS_AT,
    seed: int = 0,
    report: Report | None = None,
) -> LensQuality:
    """How well each lens reads known concepts, beside a random rotation and the concepts of other prompts.

    Nothing is written to disk.

    Args:
        lm: The model.
        prompts: With a rule for the token that is read: ``exitlens.read_data(folder).concepts``.
        lenses: Built-in names, or lenses of this model.
        layers: Inner layers over which a concept's best rank is taken; all: 1 to N − 1.
        pass_at: How far down a concept may rank, the k of pass@k.
        seed: Of the controls and of the intervals' resamples.
        report: Called with progress.

    Returns:
        The tables of the study.

    Raises:
        InputError: No prompt has a single-token concept, a lens that cannot read this model, a k over the vocabulary.
        LayerError: A layer that is no inner layer of this model.
        ContextError: A prompt that does not fit the model's context.
    """
    prompts = as_records(prompts, ConceptPrompt)
    named = [(lens_name(lens), as_lens(lens, lm)) for lens in lenses]
    return analyse(LocalEngine(lm, None, report), prompts, named, layers=layers, pass_at=pass_at, seed=seed)


def analyse(
    engine: Engine,
    prompts: Sequence[ConceptPrompt],
    lenses: Sequence[tuple[str, Lens]],
    *,
    layers: Layers = "all",
    pass_at: Sequence[int] = PASS_AT,
    seed: int = 0,
) -> LensQuality:
    """The same through an engine, with lenses by the names that tables shall call them."""
    lm = engine.lm
    inner = inner_layers(lm.n_layers, layers, owner=lm.name)
    ks = tuple(sorted(set(pass_at)))
    _check_ks(lm, ks)
    reads = plan_reads(lm, prompts)
    rotation = RotationLens(lm.d_model, seed)
    stage = LensStage((*lenses, (rotation.name, rotation)), inner, headline_k(ks))
    tables = engine.map(stage, with_decoys(reads, seed), batch_size=BATCH).tables
    ranks, by_layer = tables[RANKS], tables[READS]
    share = shares(ranks, ks)
    expected = chance_pass(lm, reads, ks, layers=len(inner), seed=seed)
    chance = pd.DataFrame(expected, columns=list(ks), index=[read.id for read in reads])
    return LensQuality(
        passed=pass_table(share, chance, ks, controls=(rotation.name,), seed=seed),
        pairs=pairs_table(share, [name for name, _ in lenses], ks, seed=seed),
        layers=layers_table(by_layer, headline_k(ks), seed=seed),
        summary=summary_table(by_layer, seed=seed),
        sets=sets_table(prompts, reads),
        ranks=ranks,
        reads=by_layer,
        model=lm.name,
    )


def headline_k(ks: Sequence[int]) -> int:
    """The k of which findings and curves speak: 10, else the largest below it, else the smallest."""
    return max((k for k in ks if k <= _HEADLINE), default=min(ks))


class LensesStudy(Study):
    """See :class:`exitlens.studies.base.Study`."""

    name = "lenses"
    tables = LENSES_TABLES
    chapter = LensesChapter()
    needs: tuple[Need, ...] = ("concepts",)

    def check_settings(self, config: RunConfig, inputs: Inputs) -> None:
        """A lens that does not exist, a set without a rule for the token that is read."""
        for lens in config.compared_lenses:
            check_lens_word(lens)
        parse_layers(config.layers)
        with_rule(inputs.concepts, config.read_at)

    def check(self, ctx: Context) -> None:
        """A lens of another model, layers it cannot read, prompts that do not fit."""
        lm, config = ctx.engine.lm, ctx.config
        inner = inner_layers(lm.n_layers, config.layers, owner=lm.name)
        _check_ks(lm, config.pass_at)
        for _, lens in _lenses(ctx):
            needed = getattr(lens, "check_layers", None)
            if needed is not None:
                needed(inner)
        plan_reads(lm, with_rule(ctx.inputs.concepts, config.read_at))

    def run(self, ctx: Context) -> None:
        """Tables ``lenses``, ``lenses_pairs``, ``lenses_layers`` and others; times go into the manifest."""
        config, lm = ctx.config, ctx.engine.lm
        prompts = with_rule(ctx.inputs.concepts, config.read_at)
        lenses = _lenses(ctx)
        for kind in FITTED if not config.compared_lenses else ():
            if kind not in dict(lenses):
                ctx.say(f"no {FITTED[kind]} for {lm.name} yet, so none is compared: exitlens lens train makes one")
        made = analyse(ctx.engine, prompts, lenses, layers=config.layers, pass_at=config.pass_at, seed=config.seed)
        for table, frame in made.frames().items():
            ctx.write(table, frame)
        directory = ctx.engine.directory
        if directory is not None:
            # Times are this machine's at this moment: two runs have the same tables, never the same seconds.
            ids = max((read.ids for read in plan_reads(lm, prompts)), key=len)
            inner = inner_layers(lm.n_layers, config.layers)
            directory.note(lens_costs=reading_costs(lm, lenses, inner, ids))


def _lenses(ctx: Context) -> list[tuple[str, Lens]]:
    """The lenses asked for; without any, raw, logit and those of this model's own that there are."""
    lm = ctx.engine.lm
    words = ctx.config.compared_lenses
    if not words:
        raw = ["raw"] if lm.weight.shape[1] == lm.d_model else []
        words = (*raw, "logit", *(kind for kind in FITTED if own_path(lm, kind).exists()))
    opened = [(word, open_lens(word, lm)) for word in words]
    short = [word if word in (*BUILT_IN, *FITTED) else lens_name(lens) for word, lens in opened]
    # A file's own name is shorter than its path, where it tells it from the others.
    plain = len(set(short)) == len(short) and RotationLens.name not in short
    return [(name if plain else word, lens) for name, (word, lens) in zip(short, opened, strict=True)]


def _check_ks(lm: LayeredModel, ks: Sequence[int]) -> None:
    over = next((k for k in ks if not 1 <= k < lm.vocab_size), None)
    if over is not None:
        raise InputError(
            f"pass@{over} is out of range: {lm.name} has a vocabulary of {lm.vocab_size} tokens; name others with "
            "--pass-at, such as 1,5"
        )


STUDY = LensesStudy()

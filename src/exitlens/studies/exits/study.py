"""The exit study of a run: what exiting early would save and cost, from one full pass over the answers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exitlens.data.records import Question, as_records
from exitlens.errors import InputError, UnsupportedModel
from exitlens.exits.heads import ExitHeads
from exitlens.exits.policies import ExitPolicy
from exitlens.exits.replay_policies import Cost
from exitlens.exits.risk_control import Control, check_levels, require_units
from exitlens.exits.shortlist import ExitReader
from exitlens.exits.timing import TimeModel, measure_times
from exitlens.layer_range import parse_layers
from exitlens.lenses.lens import Lens
from exitlens.lenses.lens_names import open_lens
from exitlens.models.protocol import LayeredModel
from exitlens.runs.engine import Engine, LocalEngine, Report
from exitlens.studies.answers.decoder_spec import DecoderSpec
from exitlens.studies.answers.judging import check_judges, judge_answers
from exitlens.studies.answers.stage import ask
from exitlens.studies.base import Study
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Context, answer_all
from exitlens.studies.exits.calibration import bound_of, calibration_table
from exitlens.studies.exits.chapter import ExitsChapter
from exitlens.studies.exits.columns import EXITS_TABLES
from exitlens.studies.exits.files import load_heads
from exitlens.studies.exits.stage import AnswerRecord, ExitStage, signals_from
from exitlens.studies.exits.tables import kinds_table, layers_table, policy_table
from exitlens.studies.inputs import Inputs
from exitlens.studies.result import StudyResult

__all__ = ["STUDY", "ExitResult", "ExitsStudy", "analyse", "exit_layers", "exits_study"]

DELTAS = (0.02, 0.05, 0.1)  # risks that a guarantee is looked for at, where none is asked for


@dataclass(frozen=True, slots=True, repr=False)
class ExitResult(StudyResult):
    """Tables ``exits``, ``exits_layers``, ``exits_kinds``, ``exits_calibration``; the time model where there is one."""

    exits: pd.DataFrame
    exits_layers: pd.DataFrame
    exits_kinds: pd.DataFrame
    exits_calibration: pd.DataFrame
    times: TimeModel | None
    model: str


def exits_study(
    lm: LayeredModel,
    questions: Sequence[Question],
    *,
    layers: Sequence[int] | None = None,
    heads: ExitHeads | None = None,
    lens: str | Lens = "logit",
    deltas: Sequence[float] = DELTAS,
    epsilon: float = 0.05,
    control: Control = "ltt",
    max_new_tokens: int = 50,
    batch_size: int = 16,
    strict: bool = False,
    seed: int = 0,
    report: Report | None = None,
) -> ExitResult:
    """Answer the questions, run every answer through the model once more, and hold each policy against it.

    Nothing is written to disk.

    Args:
        lm: The model.
        questions: Asked under the few-shot prompt.
        layers: The exits; None: those of ``heads``, else every layer of the upper half.
        heads: Trained exit heads, read in place of the unembedding.
        lens: How exits without heads are read.
        deltas: Shares of differing tokens for which a threshold with a guarantee is looked for.
        epsilon: How often a guarantee may fail.
        control: ``ltt`` tests once on half of the answers (Learn then Test); ``anytime`` by betting, valid whenever one
            stops.
        max_new_tokens: Longest answer [tokens].
        batch_size: Prompts generated together.
        strict: Raise where the answers are too few for ``deltas`` and ``epsilon``, instead of saying so in the table.
        seed: Of resamples and of the calibration half.
        report: Called with the progress of every stage.

    Returns:
        The tables of the study, and the time model that predicted times come from.

    Raises:
        InputError: No questions, or (``strict``) too few.
        LayerError: A layer that the model does not have.
        ProbeError: Heads of another model.
        ContextError: A question that does not fit the model's context.
    """
    questions = as_records(questions, Question)
    for delta in deltas if strict else ():  # now, not after the answers were written
        require_units(len(questions) // 2, delta, epsilon, bound_of(control))
    engine = LocalEngine(lm, None, report)
    spec = DecoderSpec.parse("vanilla")
    answers = answer_all(engine, questions, spec, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return analyse(
        engine,
        questions,
        answers.token_ids,
        layers=layers,
        heads=heads,
        lens=lens,
        deltas=deltas,
        epsilon=epsilon,
        control=control,
        strict=strict,
        seed=seed,
    )


def analyse(
    engine: Engine,
    questions: Sequence[Question],
    token_ids: Mapping[str, Sequence[int]],
    *,
    layers: Sequence[int] | None = None,
    heads: ExitHeads | None = None,
    lens: str | Lens = "logit",
    deltas: Sequence[float] = DELTAS,
    epsilon: float = 0.05,
    control: Control = "ltt",
    judgements: pd.DataFrame | None = None,
    strict: bool = False,
    seed: int = 0,
) -> ExitResult:
    """The same for answers that were generated: their token ids by question (none: an empty answer)."""
    lm: LayeredModel = engine.lm
    exits = exit_layers(lm, layers, heads, lens)
    records = [AnswerRecord(r.id, r.prompt, tuple(token_ids.get(r.id, ()))) for r in ask(questions)]
    table = engine.map(ExitStage(exits, heads, lens), records, batch_size=16).tables["exit_signals"]
    if not len(table):
        raise InputError("no answer has a token beyond the first: there is nothing to exit from")
    signals, confidence, ids = signals_from(table, lm.n_layers)
    cost = Cost.of(lm, heads, lens=lens)
    times = None
    with contextlib.suppress(UnsupportedModel):  # the analysis works without; only the predicted time is left out
        times = measure_times(lm, reader=ExitReader(lm, heads, lens=lens))
    shown = [ExitPolicy("probability", t, exits) for t in (0.95, 0.8, 0.5)]
    if heads is not None:
        shown += [ExitPolicy("classifier", t, exits) for t in (0.95, 0.8)]
    correct = _verdicts(judgements, ids, signals.question)
    return ExitResult(
        exits=policy_table(signals, cost, times, seed=seed),
        exits_layers=layers_table(signals, cost, shown),
        exits_kinds=kinds_table(signals, cost, shown, final_probability=confidence, correct=correct, seed=seed),
        exits_calibration=calibration_table(
            signals, cost, deltas=deltas, epsilon=epsilon, control=control, strict=strict, seed=seed
        ),
        times=times,
        model=lm.name,
    )


def exit_layers(
    lm: LayeredModel, layers: Sequence[int] | None, heads: ExitHeads | None, lens: str | Lens = "logit"
) -> tuple[int, ...]:
    """The exits asked for, checked. Raises LayerError, InputError for a layer without a head or matrix, ProbeError."""
    reader = ExitReader(lm, heads, lens=lens)
    policy = reader.resolve(ExitPolicy("probability", 1.0, tuple(layers or ())))
    return policy.exits(lm.n_layers, last=reader.last)


class ExitsStudy(Study):
    """See :class:`exitlens.studies.base.Study`."""

    name = "exits"
    tables = EXITS_TABLES
    chapter = ExitsChapter()

    def check_settings(self, config: RunConfig, inputs: Inputs) -> None:
        """A judge that does not exist, a risk that is no share, too few questions for the guarantee asked for."""
        if config.generation_config is not None:
            raise InputError(
                "the exits study holds exits against the model's own greedy answers, so --generation-config cannot go "
                "with it: leave it out, or name other studies with --only"
            )
        check_judges(config.judges, config.bertscore_model)
        if config.exit_layers is not None:
            parse_layers(config.exit_layers)
        for delta in _deltas(config):
            check_levels(delta, config.exit_epsilon)
        if config.exit_delta is not None:
            needs = bound_of(config.exit_test)
            require_units(len(inputs.questions) // 2, config.exit_delta, config.exit_epsilon, needs)
        if config.exit_heads is not None:
            load_heads(config.exit_heads)
            if config.exit_lens != "logit":
                raise InputError(
                    f"exit heads have translators of their own: leave out exit lens '{config.exit_lens[:80]}' or the "
                    "heads"
                )

    def check(self, ctx: Context) -> None:
        """Exits that the model does not have, heads of another model, questions that do not fit the context."""
        exit_layers(ctx.engine.lm, _exits(ctx), _heads(ctx), _lens(ctx))
        ctx.check_questions()
        ctx.judges()

    def run(self, ctx: Context) -> None:
        """Tables ``exits``, ``exits_layers``, ``exits_kinds``, ``exits_calibration``, ``answers``, ``judgements``."""
        spec, questions, config = ctx.vanilla(), ctx.inputs.questions, ctx.config
        found = ctx.answers(spec)
        by_id = dict(zip(found.answers["question_id"], found.answers["answer"], strict=True))
        judges = ctx.judges()
        judged = None
        if judges:
            judged = judge_answers(judges, spec.text, questions, [str(by_id[q.id]) for q in questions])
            ctx.merge("judgements", judged)
        made = analyse(
            ctx.engine,
            questions,
            found.token_ids,
            layers=_exits(ctx),
            heads=_heads(ctx),
            lens=_lens(ctx),
            deltas=_deltas(config),
            epsilon=config.exit_epsilon,
            control=config.exit_test,
            judgements=judged,
            strict=config.exit_delta is not None,
            seed=config.seed,
        )
        ctx.merge("answers", found.answers)
        # Times are this machine's at this moment: two runs have the same tables, never the same seconds.
        ctx.write("exits", made.exits.drop(columns="predicted_time"))
        ctx.write("exits_layers", made.exits_layers)
        ctx.write("exits_kinds", made.exits_kinds)
        ctx.write("exits_calibration", made.exits_calibration)
        directory = ctx.engine.directory
        if directory is not None:
            times = made.exits[["policy", "threshold", "predicted_time"]]
            directory.note(exit_times=times.astype(object).where(times.notna(), None).to_dict("records"))


def _exits(ctx: Context) -> tuple[int, ...] | None:
    layers = ctx.config.exit_layers
    return None if layers is None else parse_layers(layers).resolve(ctx.engine.lm.n_layers, first=1, what="exit layer")


def _heads(ctx: Context) -> ExitHeads | None:
    return None if ctx.config.exit_heads is None else load_heads(ctx.config.exit_heads, ctx.engine.lm)


def _lens(ctx: Context) -> Lens:
    return open_lens(ctx.config.exit_lens, ctx.engine.lm)


def _deltas(config: RunConfig) -> tuple[float, ...]:
    return DELTAS if config.exit_delta is None else (config.exit_delta,)


def _verdicts(judgements: pd.DataFrame | None, ids: Sequence[str], question: NDArray[Any]) -> dict[str, NDArray[Any]]:
    out = {}
    if judgements is not None and len(judgements):
        for judge, rows in judgements.groupby("judge", sort=False):
            known = (
                rows.set_index("question_id")["correct"]
                .astype("Float64")
                .reindex(list(ids))
                .to_numpy(np.float64, na_value=np.nan)
            )
            out[str(judge)] = known[question]
    return out


STUDY = ExitsStudy()

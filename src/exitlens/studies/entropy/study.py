"""The entropy study of a run: how confident each layer is when the answer is correct, and when it is incorrect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from exitlens.data.records import Question, as_records
from exitlens.errors import ConfigError, InputError
from exitlens.models.protocol import LayeredModel
from exitlens.runs.engine import LocalEngine, Report
from exitlens.scoring import Judge
from exitlens.studies.answers.decoder_spec import DecoderSpec
from exitlens.studies.answers.judging import check_judges, judge_answers
from exitlens.studies.base import Study
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Answers, Context, answer_all
from exitlens.studies.entropy.analysis import entropy_by_layer
from exitlens.studies.entropy.chapter import EntropyChapter
from exitlens.studies.entropy.columns import ENTROPY_TABLES
from exitlens.studies.inputs import Inputs
from exitlens.studies.result import StudyResult

__all__ = ["STUDY", "EntropyResult", "EntropyStudy", "analyse", "entropy_study"]


@dataclass(frozen=True, slots=True, repr=False)
class EntropyResult(StudyResult):
    """Tables ``answers``, ``entropy_tokens``, ``judgements`` and ``entropy_layers``."""

    answers: pd.DataFrame
    entropy_tokens: pd.DataFrame
    judgements: pd.DataFrame
    entropy_layers: pd.DataFrame
    model: str


def entropy_study(
    lm: LayeredModel,
    questions: Sequence[Question],
    judges: Sequence[Judge],
    *,
    max_new_tokens: int = 50,
    batch_size: int = 32,
    repetition_penalty: float = 1.0,
    estimators: Sequence[str] = ("per-group",),
    seed: int = 0,
    report: Report | None = None,
) -> EntropyResult:
    """Answer the questions, read the entropy of every layer at every answer token, compare incorrect with correct.

    Nothing is written to disk.

    Args:
        lm: The model.
        questions: Asked under the few-shot prompt.
        judges: How answers are judged (:mod:`exitlens.scoring`); each gives rows of its own.
        max_new_tokens: Longest answer [tokens].
        batch_size: Prompts generated together.
        repetition_penalty: Of the greedy decoding; 1 is none.
        estimators: ``per-group``; ``pooled-weights`` reproduces an artefact and supports no conclusion.
        seed: Of resamples and permutations.
        report: Called with the progress of every stage.

    Returns:
        The tables of the study; entropies are in nats.

    Raises:
        InputError: No questions or judges.
        ContextError: A question that does not fit the model's context.
    """
    questions = as_records(questions, Question)
    spec = DecoderSpec.parse("vanilla", repetition_penalty)
    answers = answer_all(
        LocalEngine(lm, None, report),
        questions,
        spec,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        entropy=True,
    )
    return analyse(answers, questions, judges, model=lm.name, estimators=estimators, seed=seed)


def analyse(
    answers: Answers,
    questions: Sequence[Question],
    judges: Sequence[Judge],
    *,
    model: str,
    estimators: Sequence[str] = ("per-group",),
    seed: int = 0,
) -> EntropyResult:
    """Judge answers that were generated with entropies, and compare."""
    if not judges:
        raise InputError("no judges: name at least one, for example margin:rouge")
    tokens = answers.entropy_tokens
    if tokens is None:
        raise InputError("these answers were generated without entropies: generate them again with entropy=True")
    by_id = dict(zip(answers.answers["question_id"], answers.answers["answer"], strict=True))
    judgements = judge_answers(judges, answers.spec.text, questions, [by_id[q.id] for q in questions])
    frames = []
    for judge, rows in judgements.groupby("judge", sort=False):
        decided = rows[rows["correct"].notna()]
        correct = dict(zip(decided["question_id"], decided["correct"].astype(bool), strict=True))
        if len(tokens):
            frames.append(entropy_by_layer(tokens, str(judge), correct, estimators=estimators, seed=seed))
    layers = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return EntropyResult(answers.answers, tokens, judgements, layers, model)


class EntropyStudy(Study):
    """See :class:`exitlens.studies.base.Study`."""

    name = "entropy"
    tables = ENTROPY_TABLES
    chapter = EntropyChapter()
    needs = ("questions", "entropies")

    def check_settings(self, config: RunConfig, inputs: Inputs) -> None:
        """A judge that does not exist, or none."""
        check_judges(config.judges, config.bertscore_model)
        if not config.judges:
            raise ConfigError("the entropy study needs a judge: name one with --judges, for example margin:rouge")

    def check(self, ctx: Context) -> None:
        """Questions that do not fit the context, an encoder that cannot be loaded."""
        ctx.check_questions()
        ctx.judges()

    def run(self, ctx: Context) -> None:
        """Tables ``entropy_tokens``, ``judgements``, ``entropy_layers`` (and ``answers``)."""
        config = ctx.config
        judges = ctx.judges()
        answers = ctx.answers(ctx.vanilla())
        found = analyse(
            answers, ctx.inputs.questions, judges,
            model=ctx.engine.lm.name, estimators=config.entropy_estimators, seed=config.seed,
        )  # fmt: skip
        ctx.write("entropy_tokens", found.entropy_tokens)
        ctx.write("entropy_layers", found.entropy_layers)
        ctx.merge("answers", found.answers)
        ctx.merge("judgements", found.judgements)


STUDY = EntropyStudy()

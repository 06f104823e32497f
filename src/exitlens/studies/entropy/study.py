"""The entropy study of a run: how sure each layer is when the answer is right, and when it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from exitlens.data.records import Question
from exitlens.errors import ConfigError, InputError
from exitlens.models.protocol import LayeredModel
from exitlens.runs.engine import LocalEngine, Report
from exitlens.scoring import Judge
from exitlens.studies.answers.judging import judge_answers
from exitlens.studies.answers.stage import DecoderSpec
from exitlens.studies.context import Answers, Context, answer_all
from exitlens.studies.entropy.by_layer import entropy_by_layer

__all__ = ["EntropyStudy", "entropy_study", "run"]


@dataclass(frozen=True, slots=True)
class EntropyStudy:
    """Tables ``answers``, ``entropy_tokens``, ``judgements`` and ``entropy_layers``."""

    answers: pd.DataFrame
    entropy_tokens: pd.DataFrame
    judgements: pd.DataFrame
    entropy_layers: pd.DataFrame


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
) -> EntropyStudy:
    """Answer the questions, read the entropy of every layer at every answer token, compare right with wrong answers.

    ``judges`` decide which answers are right (:mod:`exitlens.scoring`); each gives rows of its own. Nothing is written
    to disk. Raises InputError without questions or judges, ContextError for a question that does not fit.
    """
    if not questions:
        raise InputError("no questions: give a data set of questions")
    spec = DecoderSpec.parse("vanilla", repetition_penalty)
    answers = answer_all(
        LocalEngine(lm, None, report),
        questions,
        spec,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        entropy=True,
    )
    return analyse(answers, questions, judges, estimators=estimators, seed=seed)


def analyse(
    answers: Answers,
    questions: Sequence[Question],
    judges: Sequence[Judge],
    *,
    estimators: Sequence[str] = ("per-group",),
    seed: int = 0,
) -> EntropyStudy:
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
        decided = rows[rows["right"].notna()]
        right = dict(zip(decided["question_id"], decided["right"].astype(bool), strict=True))
        if len(tokens):
            frames.append(entropy_by_layer(tokens, str(judge), right, estimators=estimators, seed=seed))
    layers = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return EntropyStudy(answers.answers, tokens, judgements, layers)


def check(ctx: Context) -> None:
    """Raise what would stop this study before it begins."""
    ctx.check_questions()
    if not ctx.check_judges():
        raise ConfigError("the entropy study needs a judge: name one with --judges, for example margin:rouge")


def run(ctx: Context) -> None:
    """Tables ``entropy_tokens``, ``judgements``, ``entropy_layers`` (and ``answers``)."""
    config = ctx.config
    judges = ctx.check_judges()
    answers = ctx.answers(ctx.vanilla())
    found = analyse(answers, ctx.inputs.questions, judges, estimators=config.entropy_estimators, seed=config.seed)
    ctx.write("entropy_tokens", found.entropy_tokens)
    ctx.write("entropy_layers", found.entropy_layers)
    ctx.merge("answers", found.answers)
    ctx.merge("judgements", found.judgements)

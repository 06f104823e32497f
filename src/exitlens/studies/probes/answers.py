"""Does the state at the answer know that the answer is wrong? Probes on the model's own, judged answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exitlens.data.prompts import ANSWER_POSITIONS, answer_prompt_name, qa_prompt
from exitlens.data.records import Statement
from exitlens.errors import ConfigError, ProbeError
from exitlens.layer_range import Layers
from exitlens.probes import (
    Baseline,
    ProbeData,
    ProbeStudy,
    Provenance,
    Split,
    auroc_gaps,
    calibrated,
    evaluate,
    kind_named,
    make_data,
    make_split,
    save_probe,
)
from exitlens.runs.engine import Clock, Engine
from exitlens.runs.hidden_states import Origin, StateStore
from exitlens.studies.answers.judging import check_judges, judge_answers
from exitlens.studies.answers.stage import ask
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Context
from exitlens.studies.layers.stage import check_layers
from exitlens.studies.probes.answer_scores import AnsweredQuestion, ScoreAnswersStage
from exitlens.studies.probes.exact_answer import Span, answer_span
from exitlens.studies.probes.extraction import Item, extract_items
from exitlens.studies.probes.probe_kinds import view_tables
from exitlens.studies.probes.truth import TruthStudy

__all__ = [
    "AnswerProbes",
    "answer_probes",
    "check_answer_settings",
    "is_answer_position",
    "run_answers",
]

_GROUPED = "grouped-k-fold"
BATCH = 32  # answers to a unit of work


@dataclass
class AnswerProbes:
    """Tables of :mod:`exitlens.studies.probes.answer_columns`, and by judge what was fitted."""

    tables: dict[str, pd.DataFrame]
    fitted: dict[str, TruthStudy] = field(default_factory=dict)


def check_answer_settings(config: RunConfig) -> None:
    """Raise ConfigError or ProbeError for settings that answers cannot have."""
    check_judges(config.judges, config.bertscore_model)
    if not config.judges:
        raise ConfigError(f"--position {config.position} needs a judge of the answers: name one with --judges")
    if not config.kinds:
        raise ConfigError(f"--position {config.position} needs a kind of probe: name one with --kinds")
    for kind in config.kinds:
        if kind_named(kind).both_polarities:
            raise ProbeError(f"kind '{kind}' is fitted on negated statements, and answers have none: name another kind")
    if config.test_data:
        raise ProbeError(f"--test-data is for statements, not for --position {config.position}: leave it out")
    if config.setting != "few-shot":
        raise ProbeError(
            f"--position {config.position} reads answers under the question prompt, not statements in the setting "
            f"'{config.setting}': leave it out"
        )
    _protocol(config)


def _protocol(config: RunConfig) -> str:
    """Whole questions in folds, unless another protocol was asked for."""
    if "protocol" not in config.model_fields_set:
        return _GROUPED
    if config.protocol not in (_GROUPED, "leave-one-topic-out"):
        raise ProbeError(
            f"protocol '{config.protocol}' is for statements: answers take {_GROUPED} or leave-one-topic-out (topics "
            "are the questions' categories)"
        )
    return config.protocol


def answer_probes(
    engine: Engine,
    records: Sequence[AnsweredQuestion],
    verdicts: Mapping[str, Mapping[str, bool]],
    folder: str | Path,
    *,
    position: str = "exact-answer",
    kinds: Sequence[str] = ("logistic",),
    protocol: str = _GROUPED,
    layers: Layers = "all",
    seeds: int = 5,
    seed: int = 0,
    resamples: int = 1000,
) -> AnswerProbes:
    """Read the states of answers, fit probes of "this answer is correct", and hold them against what costs less.

    Args:
        engine: The model, and where finished work is kept.
        records: Questions with the answers that were generated to them.
        verdicts: By judge, whether the answer to a question id is correct; a question that is not there is undecided.
        folder: Where the states are kept; those that it holds are not extracted again.
        position: ``exact-answer``: the last token of the exact answer, see
            :func:`~exitlens.studies.probes.exact_answer.answer_span`; ``every-answer-token``: each token is a row.
        kinds: Kinds of probe, see :data:`exitlens.probes.KINDS`.
        protocol: ``grouped-k-fold`` (whole questions) or ``leave-one-topic-out``.
        layers: Which layers; "all" is 1..N.
        seeds: Fits of kinds that start at random.
        seed: Of splits, fits and resamples.
        resamples: Of the intervals.

    Returns:
        The tables. Entropy, log-probability and p(true) are fitted and tested on the same folds as the probes.

    Raises:
        ProbeError: States of another model or prompt.
        LayerError: A layer that the model does not have.
        ContextError: An answer that does not fit the model's context.
    """
    lm = engine.lm
    numbers = check_layers(lm, range(1, lm.n_layers + 1) if layers == "all" else layers)
    spans = {record.id: answer_span(lm, record.question, record.ids) for record in records}
    done = AnswerProbes({})
    scores = _Scores.read(engine, records) if records else _Scores()
    done.tables["answer_probe_spans"] = _spans(records, spans, scores)
    store = _states(engine, records, spans, position, folder) if records else None
    facts, parts = [], []
    for judge, correct in verdicts.items():
        mine = [record for record in records if record.id in correct]
        n_correct = sum(correct[record.id] for record in mine)
        fact = {"judge": judge, "position": position, "n_correct": n_correct, "n_incorrect": len(mine) - n_correct}
        fact |= {"n_undecided": len(records) - len(mine), "reason": ""}
        facts.append(fact)
        if store is None or not 0 < n_correct < len(mine):
            fact["reason"] = "no answers" if not mine else f"all {len(mine)} answers are judged alike"
            continue
        try:
            data, split, baselines = _rows(store, mine, spans, scores, correct, position, numbers, protocol, seed)
            clock = Clock("answer-probes", 1000, engine.report)
            study = evaluate(data, split, kinds, seeds=tuple(range(seed, seed + seeds)), baselines=baselines,
                             resamples=resamples, progress=partial(_tick, clock))  # fmt: skip
        except ProbeError as error:  # too few of one class for the folds: the other judges may do
            fact["reason"] = str(error)
            continue
        found = {"answer_" + name: frame for name, frame in view_tables(study).items() if name != "probe_comparisons"}
        gaps = auroc_gaps(study, resamples=resamples, seed=seed)
        found["answer_probe_gaps"] = pd.DataFrame(
            [{"probe": g.probe, "rival": g.rival, "difference": g.difference, "low": g.low, "high": g.high}
             for g in gaps]
        )  # fmt: skip
        parts.append((judge, found))
        done.fitted[judge] = _fitted(engine, study, data, position)
    done.tables["answer_probe_judges"] = pd.DataFrame(facts)
    for name in ("answer_probe_layers", "answer_probe_best", "answer_probe_gaps"):
        frames = [_first(found[name], judge=judge, position=position) for judge, found in parts]
        if frames:
            done.tables[name] = pd.concat(frames, ignore_index=True)
    return done


def _tick(clock: Clock, done: int, _total: int) -> None:
    clock.worked(max(0, done - clock.done))


def _first(frame: pd.DataFrame, **columns: str) -> pd.DataFrame:
    """The frame with columns of one value put before its own."""
    return frame.assign(**columns)[[*columns, *frame.columns]]


@dataclass
class _Scores:
    """By question: entropy and log-probability ``[tokens]`` of its answer, and p(true)."""

    entropy: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    log_probability: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    p_true: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, engine: Engine, records: Sequence[AnsweredQuestion]) -> _Scores:
        tables = engine.map(ScoreAnswersStage(), list(records), batch_size=BATCH).tables
        out = cls(p_true=dict(zip(tables["asked"]["question_id"], tables["asked"]["p_true"], strict=True)))
        for name, rows in tables["tokens"].groupby("question_id", sort=False):
            out.entropy[str(name)] = rows["entropy"].to_numpy(dtype=np.float64)
            out.log_probability[str(name)] = rows["log_probability"].to_numpy(dtype=np.float64)
        return out


def _spans(records: Sequence[AnsweredQuestion], spans: Mapping[str, Span], scores: _Scores) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "question_id": record.id,
                "answer": record.answer,
                "exact_answer": spans[record.id].text,
                "found_by": spans[record.id].found_by,
                "first": spans[record.id].first,
                "end": spans[record.id].end,
                "entropy": float(scores.entropy[record.id].mean()),
                "log_probability": float(scores.log_probability[record.id].mean()),
                "p_true": scores.p_true[record.id],
            }
            for record in records
        ]
    )


def _states(
    engine: Engine, records: Sequence[AnsweredQuestion], spans: Mapping[str, Span], position: str, folder: str | Path
) -> StateStore:
    lm = engine.lm
    by_id = {record.id: record for record in records}

    def items_of(statement: Statement) -> list[Item]:
        record = by_id[statement.id]
        prompt = list(lm.encode(record.prompt))
        ids = [*prompt, *record.ids]
        # Named by its tokens: text that is tokenised again may come back as others.
        text = " ".join(map(str, ids))
        ends = [spans[record.id].end] if position == "exact-answer" else range(1, len(record.ids) + 1)
        return [
            Item(Statement(_row(record.id, end - 1, position), text, 0, record.topic, pair=record.id), text, ids,
                 len(prompt) + end - 1, len(prompt) + end)
            for end in ends
        ]  # fmt: skip

    origin = Origin(
        model=lm.name,
        fingerprint=lm.fingerprint,
        dtype=str(lm.dtype).removeprefix("torch."),
        d_model=lm.d_model,
        layers=tuple(range(lm.n_layers + 1)),
        position=position,
        setting="answers",
        prompt="".join(qa_prompt("{}")),
    )
    # The label differs from judge to judge and stands in no store.
    texts = [Statement(r.id, r.question, 0, r.topic, pair=r.id) for r in records]
    return extract_items(engine, texts, folder, origin, items_of, f"states-{position}")


def _row(question_id: str, token: int, position: str) -> str:
    return question_id if position == "exact-answer" else f"{question_id}@{token}"


def _rows(
    store: StateStore,
    records: Sequence[AnsweredQuestion],
    spans: Mapping[str, Span],
    scores: _Scores,
    correct: Mapping[str, bool],
    position: str,
    layers: Sequence[int],
    protocol: str,
    seed: int,
) -> tuple[ProbeData, Split, list[Baseline]]:
    """States with the judge's labels, the folds, and what the model tells of its answers, under the same folds."""
    exact = position == "exact-answer"
    rows = [
        (record, token)
        for record in records
        for token in ([spans[record.id].end - 1] if exact else range(len(record.ids)))
    ]
    labels = [int(correct[record.id]) for record, _ in rows]
    data = make_data(
        store.states(layers, [_row(record.id, token, position) for record, token in rows]),
        labels,
        [record.id for record, _ in rows],
        [record.topic for record, _ in rows],
        layers=layers,
        texts=[f"{record.question} {record.answer}" for record, _ in rows],
    )
    split = make_split(data, protocol, seed=seed)
    told: dict[str, list[float]] = {"p(true)": [scores.p_true[record.id] for record, _ in rows]}
    for name, values in (("entropy", scores.entropy), ("log-probability", scores.log_probability)):
        told[f"{name}, whole answer"] = [float(values[record.id].mean()) for record, _ in rows]
        here = [
            values[record.id][spans[record.id].first : spans[record.id].end] if exact else values[record.id][[token]]
            for record, token in rows
        ]
        told[f"{name}, {'exact answer' if exact else 'this token'}"] = [float(each.mean()) for each in here]
    return data, split, [calibrated(name, values, data.labels, split) for name, values in told.items()]


def _fitted(engine: Engine, study: ProbeStudy, data: ProbeData, position: str) -> TruthStudy:
    lm = engine.lm
    where = Provenance(model=lm.fingerprint, lens="raw", prompt=answer_prompt_name(), position=position)
    about = {"model": lm.name, "setting": "answers", "position": position}
    return TruthStudy(study, data, {}, where, about)


def run_answers(ctx: Context) -> None:
    """The probe study of a run at an answer's tokens: answers, verdicts, tables, and the best probe as a file."""
    config, directory = ctx.config, ctx.engine.directory
    if directory is None:
        raise ProbeError("the probe study of a run keeps its states in the run directory: give one")
    answers = ctx.answers(ctx.vanilla())
    questions = ctx.inputs.questions
    texts = dict(zip(answers.answers["question_id"], answers.answers["answer"], strict=True))
    judgements = judge_answers(ctx.judges(), answers.spec.text, questions, [texts[q.id] for q in questions])
    ctx.merge("answers", answers.answers)
    ctx.merge("judgements", judgements)
    topics = {question.id: question.category or "questions" for question in questions}
    records = [
        AnsweredQuestion(r.id, r.question, r.prompt, answers.token_ids[r.id], str(texts[r.id]), topics[r.id])
        for r in ask(questions)
        if answers.token_ids.get(r.id)
    ]
    decided = judgements[judgements["correct"].notna()]
    verdicts = {
        str(judge): {
            str(row["question_id"]): bool(row["correct"])
            for row in decided[decided["judge"] == judge].to_dict("records")
        }
        for judge in judgements["judge"].unique()
    }
    done = answer_probes(
        ctx.engine,
        records,
        verdicts,
        Path(config.states or directory.path / "states") / f"answers-{config.position}",
        position=config.position,
        kinds=config.kinds,
        protocol=_protocol(config),
        layers=config.probe_layers,
        seeds=config.probe_seeds,
        seed=config.seed,
    )
    # Whatever the rows are, answers or their tokens, intervals rest on the answers of the smaller verdict.
    sides = done.tables["answer_probe_judges"].set_index("judge")[["n_correct", "n_incorrect"]].min(axis=1)
    for name, frame in done.tables.items():
        ctx.write(name, frame, n=frame["judge"].map(sides).tolist() if "judge" in frame else None)
    for fact in done.tables["answer_probe_judges"].to_dict("records"):
        if fact["reason"]:
            ctx.say(f"probes: nothing to fit by {fact['judge']}: {fact['reason']}")
    first: TruthStudy | None = next(iter(done.fitted.values()), None)
    if first is not None:
        save_probe(directory.path / "probe.safetensors", *first.refit(config.seed))


def is_answer_position(config: RunConfig) -> bool:
    """Whether a run's probes read generated answers rather than statements."""
    return config.position in ANSWER_POSITIONS

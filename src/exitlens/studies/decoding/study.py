"""The decoding study of a run: every decoder answers the same questions, scored and compared in pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from exitlens.data.records import Question, as_records
from exitlens.decoding import parse_decoder
from exitlens.errors import InputError
from exitlens.models.protocol import LayeredModel
from exitlens.runs.engine import Engine, LocalEngine, Report
from exitlens.scoring import TextMetric
from exitlens.studies.answers.decoder_spec import DecoderSpec
from exitlens.studies.answers.judging import check_judges, judge_answers
from exitlens.studies.base import Study
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Answers, Context, answer_all, slug
from exitlens.studies.decoding.analysis import compare, cost_table, partings, score
from exitlens.studies.decoding.chapter import DecodingChapter
from exitlens.studies.decoding.columns import DECODING_TABLES
from exitlens.studies.decoding.multiple_choice import ChooseStage
from exitlens.studies.decoding.speed import writing_speed
from exitlens.studies.inputs import Inputs
from exitlens.studies.result import StudyResult

__all__ = ["STUDY", "DecodingResult", "DecodingStudy", "analyse", "decoding_study"]


@dataclass(frozen=True, slots=True, repr=False)
class DecodingResult(StudyResult):
    """Tables ``answers``, ``scores`` (per question), ``decoding``, ``decoding_layers`` and ``decoding_partings``."""

    answers: pd.DataFrame
    scores: pd.DataFrame
    decoding: pd.DataFrame
    decoding_layers: pd.DataFrame
    decoding_partings: pd.DataFrame
    model: str


def decoding_study(
    lm: LayeredModel,
    questions: Sequence[Question],
    decoders: Sequence[str] = ("vanilla", "dola:high", "dola:low"),
    *,
    metrics: Sequence[TextMetric],
    max_new_tokens: int = 50,
    batch_size: int = 32,
    repetition_penalty: float = 1.0,
    mc: str = "none",
    protocol: str = "truthfulqa",
    seed: int = 0,
    report: Report | None = None,
) -> DecodingResult:
    """Answer the questions with every decoder, score the answers, compare each decoder with the first by question.

    Nothing is written to disk.

    Args:
        lm: The model.
        questions: Asked under the few-shot prompt.
        decoders: The first is the one compared with; ``dola:high@1.2`` has a repetition penalty of its own.
        metrics: How answers meet references.
        max_new_tokens: Longest answer [tokens].
        batch_size: Prompts generated together.
        repetition_penalty: Of decoders that name none; 1 is none.
        mc: MC1-3 too, by each decoder's ``softmax`` or its ``scores``; the penalty has no part in them.
        protocol: How references are prepared (:mod:`exitlens.scoring.truthfulqa`).
        seed: Of resamples and sign flips.
        report: Called with the progress of every stage.

    Returns:
        The tables of the study.

    Raises:
        InputError: No questions or decoders, an unknown decoder.
        ContextError: A question that does not fit the model's context.
    """
    questions = as_records(questions, Question)
    if not decoders:
        raise InputError("no decoders: name at least one")
    engine = LocalEngine(lm, None, report)
    made = [
        answer_all(
            engine,
            questions,
            DecoderSpec.parse(text, repetition_penalty),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
        for text in decoders
    ]
    chosen = choose_all(engine, questions, [a.spec for a in made], mc, batch_size=batch_size)
    return analyse(made, questions, metrics, chosen, token=lm.token, model=lm.name, protocol=protocol, seed=seed)


def choose_all(
    engine: Engine, questions: Sequence[Question], specs: Sequence[DecoderSpec], mc: str, *, batch_size: int
) -> list[pd.DataFrame]:
    """Rows of ``scores`` with MC1–3 of every decoder, of the questions that have both kinds of answers."""
    both = [question for question in questions if question.correct and question.incorrect]
    if mc == "none" or not both:
        return []
    found = []
    for spec in specs:
        stage = ChooseStage(spec.decoder, mc == "softmax")
        # Two decoders that differ in their penalty only choose alike, and the second finds the first one's units.
        table = engine.map(stage, both, batch_size=batch_size, label=f"choose-{slug(spec.decoder)}").tables["choices"]
        found.append(table.assign(decoder=spec.text)[["decoder", "question_id", "metric", "value"]])
    return found


def analyse(
    made: Sequence[Answers],
    questions: Sequence[Question],
    metrics: Sequence[TextMetric],
    chosen: Sequence[pd.DataFrame] = (),
    *,
    token: Callable[[int], str],
    model: str,
    protocol: str = "truthfulqa",
    seed: int = 0,
) -> DecodingResult:
    """Score and compare answers that were generated; ``chosen``: further rows of ``scores``; ``token`` names an id."""
    answers = pd.concat([a.answers.assign(decoder=a.spec.text) for a in made], ignore_index=True)
    written = [score(a.spec.text, _texts(a, questions), questions, metrics, protocol) for a in made]
    scores = pd.concat([*written, *chosen], ignore_index=True)
    contrasted = [a.decoding_layers for a in made if a.decoding_layers is not None and len(a.decoding_layers)]
    layers = (
        pd.concat(contrasted, ignore_index=True) if contrasted else pd.DataFrame(columns=["decoder", "layer", "count"])
    )
    table = compare(scores, {a.spec.text: a.spec.penalty for a in made}, protocol=protocol, seed=seed)
    return DecodingResult(answers, scores, table, layers, partings(made, token), model)


class DecodingStudy(Study):
    """See :class:`exitlens.studies.base.Study`."""

    name = "decoding"
    tables = DECODING_TABLES
    chapter = DecodingChapter()

    def check_settings(self, config: RunConfig, inputs: Inputs) -> None:
        """A decoder, an option of one, or a judge that does not exist."""
        for text in config.decoders:
            DecoderSpec.parse(text, config.repetition_penalty)
        check_judges(config.judges, config.bertscore_model)

    def check(self, ctx: Context) -> None:
        """Layers of a decoder that the model does not have, questions that do not fit, an encoder that is missing."""
        for spec in ctx.specs():
            # Tied embeddings only leave candidates out; a layer that does not exist is refused either way.
            parse_decoder(spec.decoder).layers(ctx.engine.lm.n_layers, False)
        ctx.check_questions()
        ctx.judges()

    def run(self, ctx: Context) -> None:
        """The tables of :data:`~exitlens.studies.decoding.columns.DECODING_TABLES`."""
        config, questions = ctx.config, ctx.inputs.questions
        specs = ctx.specs()
        judges = ctx.judges()
        made = []
        for spec in specs:
            found = ctx.answers(spec)
            # The same answers under the name that this study gives the decoder.
            made.append(replace(found, spec=spec, answers=found.answers.assign(decoder=spec.text)))
        chosen = choose_all(ctx.engine, questions, specs, config.mc, batch_size=config.batch_size)
        ctx.say("scoring answers")
        metrics = ctx.scorers().metrics()
        token = ctx.engine.lm.token
        study = analyse(
            made, questions, metrics, chosen,
            token=token, model=ctx.engine.lm.name, protocol=config.scoring, seed=config.seed,
        )  # fmt: skip
        judged = [judge_answers(judges, a.spec.text, questions, _texts(a, questions)) for a in made] if judges else []
        ctx.merge("answers", study.answers)
        if judged:
            ctx.merge("judgements", pd.concat(judged, ignore_index=True))
        ctx.write("scores", study.scores)
        ctx.write("decoding", study.decoding)
        ctx.write("decoding_layers", study.decoding_layers, ["decoder", "layer"])
        ctx.write("decoding_partings", study.decoding_partings)
        ctx.write("decoding_cost", cost_table(ctx.engine.lm, made))
        directory = ctx.engine.directory
        if directory is not None and set(directory.manifest.get("tokens_per_second") or ()) != {s.text for s in specs}:
            # Speed is no result: two runs with the same seed have the same tables, never the same seconds.
            ctx.say("timing decoders")
            speed = writing_speed(ctx.engine.lm, specs, questions, batch_size=config.batch_size)
            directory.note(tokens_per_second=speed)


def _texts(made: Answers, questions: Sequence[Question]) -> list[str]:
    by_id = dict(zip(made.answers["question_id"], made.answers["answer"], strict=True))
    return [str(by_id[question.id]) for question in questions]


STUDY = DecodingStudy()

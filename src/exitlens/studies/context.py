"""What the studies of one run share: settings, engine, inputs, and answers that are generated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from exitlens.data.records import Question
from exitlens.decoding.token_rules import rules_of
from exitlens.errors import RunError
from exitlens.models.forward import check_context
from exitlens.runs.engine import Engine
from exitlens.scoring import Judge
from exitlens.studies.answers.decoder_spec import DecoderSpec
from exitlens.studies.answers.judging import Scorers
from exitlens.studies.answers.stage import GenerateStage, ask
from exitlens.studies.config import RunConfig
from exitlens.studies.inputs import Inputs
from exitlens.studies.tables import TableSpec

__all__ = ["Answers", "Context", "answer_all", "slug"]


@dataclass(frozen=True, slots=True)
class Answers:
    """One decoder's answers to all questions (``answers``, and their token ids by question), what its layers said."""

    spec: DecoderSpec
    answers: pd.DataFrame
    entropy_tokens: pd.DataFrame | None
    decoding_layers: pd.DataFrame | None
    token_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    steps: pd.DataFrame | None = None  # candidate layers at every token, of a decoder that chooses among them


def answer_all(
    engine: Engine,
    questions: Sequence[Question],
    spec: DecoderSpec,
    *,
    max_new_tokens: int = 50,
    batch_size: int = 32,
    entropy: bool = False,
    style: str = "six-shot",
    generation_config: str | None = None,
) -> Answers:
    """Answers of one decoder to every question, in the questions' order; finished batches are kept."""
    stage = GenerateStage(spec, max_new_tokens=max_new_tokens, batch_size=batch_size, entropy=entropy,
                          generation_config=generation_config)  # fmt: skip
    # One generation batch is a unit of work: the shared prompt is run once a unit, and a kill costs a unit.
    done = engine.map(stage, ask(questions, style), batch_size=batch_size, label=f"generate-{slug(spec.text)}")
    chosen = done.tables.get("decoding_layers")
    if chosen is not None and len(chosen):
        chosen = chosen.groupby(["decoder", "layer"], sort=True)["count"].sum().reset_index()
    written = done.tables["answer_ids"].groupby("question_id", sort=False)["token_id"]
    ids = {str(question): tuple(int(token) for token in tokens) for question, tokens in written}
    return Answers(
        spec, done.tables["answers"], done.tables.get("entropy_tokens"), chosen, ids, done.tables.get("decoding_steps")
    )


@dataclass
class Context:
    """One run in progress.

    ``tables``: records of the tables that its studies write. ``entropies``: a study reads the entropies of every layer
    at every answer token, so that the model's own answers are generated with them.
    """

    config: RunConfig
    engine: Engine
    inputs: Inputs
    tables: Mapping[str, TableSpec]
    entropies: bool = False
    say: Callable[[str], None] = lambda _line: None
    _answers: dict[tuple[str, float], Answers] = field(default_factory=dict)
    _scorers: Scorers | None = None

    def scorers(self) -> Scorers:
        """The text metrics, loaded once."""
        if self._scorers is None:
            config = self.config
            self._scorers = Scorers(config.bertscore_model, config.bertscore_layer, config.device, config.scoring)
        return self._scorers

    def specs(self) -> list[DecoderSpec]:
        """The decoders of the decoding study."""
        return [DecoderSpec.parse(text, self._penalty) for text in self.config.decoders]

    def vanilla(self) -> DecoderSpec:
        """The model's own greedy decoding: the one of the decoding study where it has one at the run's penalty."""
        return DecoderSpec.parse("vanilla", self._penalty)

    @cached_property
    def _penalty(self) -> float:
        """The penalty of decoders that name none: the run's, else the checkpoint's where its settings are applied."""
        config = self.config
        rules = rules_of(self.engine.lm, config.generation_config)
        return rules.penalty if rules is not None and config.repetition_penalty == 1.0 else config.repetition_penalty

    def answers(self, spec: DecoderSpec) -> Answers:
        """Answers of one decoder; asked for again, or by another study at equal settings, they are not made again."""
        key = (spec.decoder, spec.penalty)
        if key not in self._answers:
            own = self.vanilla()
            entropy = self.entropies and key == (own.decoder, own.penalty)
            directory = self.engine.directory
            if not entropy and key == (own.decoder, own.penalty) and directory is not None:
                # An earlier call of this run may have read entropies already: those units are the ones to use.
                entropy = "entropy_tokens" in directory.manifest.get("made", [])
            self._answers[key] = answer_all(
                self.engine,
                self.inputs.questions,
                spec,
                max_new_tokens=self.config.max_new_tokens,
                batch_size=self.config.batch_size,
                entropy=entropy,
                generation_config=self.config.generation_config,
            )
        return self._answers[key]

    def check_questions(self) -> None:
        """Every question must fit the context, with room for its answer; raises ContextError."""
        lm = self.engine.lm
        for record in ask(self.inputs.questions):
            check_context(lm, [lm.encode(record.prompt)], self.config.max_new_tokens)

    def judges(self) -> list[Judge]:
        """The run's judges, with what they need loaded; raises ConfigError, DataError."""
        return [self.scorers().judge(name) for name in self.config.judges]

    def write(
        self, name: str, frame: pd.DataFrame, order: Sequence[str] = (), *, n: Sequence[float] | int | None = None
    ) -> None:
        """Write a result table of the run, its rows in the order of the columns ``order`` (none: as they are).

        ``n``: the units behind each row's intervals, where no column of the table tells them.

        Raises RunError for a table or columns that no study of this run declares.
        """
        if name not in self.tables:
            raise RunError(f"table '{name}' is declared by no study of this run: add it to the study's tables")
        frame = self.tables[name].marked(frame, n)
        self.tables[name].check(frame)
        directory = self.engine.directory
        if directory is not None:
            directory.write_table(name, frame, order)
            made = set(directory.manifest.get("made", []))
            directory.note(made=sorted(made | {name}))

    def merge(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table with a column ``decoder``; rows of decoders that ``frame`` does not have are kept.

        Entropy and decoding both answer questions, in one call or in two: the table ends the same. Rows are in the
        order of the run's decoders, then of the questions.
        """
        directory = self.engine.directory
        if directory is None:
            return
        earlier = directory.table(name)
        if earlier is not None and len(earlier):
            others = earlier[~earlier["decoder"].isin(set(frame["decoder"]))]
            frame = pd.concat([others, frame], ignore_index=True) if len(others) else frame
        texts = [self.vanilla().text, *(spec.text for spec in self.specs())]
        place = {text: i for i, text in reversed(list(enumerate(texts)))}
        order = frame["decoder"].map(lambda text: place.get(text, len(texts)))
        self.write(name, frame.loc[order.sort_values(kind="stable").index].reset_index(drop=True))


def slug(text: str) -> str:
    """A decoder's text as part of a file name."""
    return "".join(c if c.isalnum() else "-" for c in text).strip("-") or "decoder"

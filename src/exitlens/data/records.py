"""What every reader returns: questions, statements and concept prompts, frozen, with the data set they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar, overload

from exitlens.arguments import wrong_kind
from exitlens.display import Shown
from exitlens.errors import DataError, InputError
from exitlens.parsing import cut

__all__ = ["ConceptPrompt", "Dataset", "Question", "ReadAt", "Statement", "as_records", "check_read_at"]

ReadAt = Literal["before-target", "last-newline", "last"]
"""The token at which a concept prompt is read."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its reference answers.

    ``choices`` are the options of a multiple-choice task, in their order (empty when the source has none);
    ``correct`` holds ``best``. ``category`` and ``kind`` (for example "Adversarial") are the source's own words.
    """

    id: str
    question: str
    best: str
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    choices: tuple[str, ...] = ()
    category: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement with its truth label (1 true, 0 false).

    ``entity`` is what the statement is about and ``pair`` joins a statement with its twins (true/false, negated):
    rows that share either must stay on one side of a split. ``negated`` marks the negated form.
    """

    id: str
    statement: str
    label: int
    topic: str
    entity: str | None = None
    pair: str | None = None
    negated: bool = False


@dataclass(frozen=True, slots=True)
class ConceptPrompt:
    """A prompt with the concepts that a model should pass through on the way to its answer: its intermediates.

    ``forms[i]``: the texts that stand for ``intermediates[i]``, itself first; the best of them counts. ``target``: the
    answer, which follows ``prompt`` and is not scored. ``read_at``: None where the set has no rule.
    """

    id: str
    set_name: str
    prompt: str
    intermediates: tuple[str, ...]
    forms: tuple[tuple[str, ...], ...]
    target: str | None = None
    read_at: ReadAt | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Dataset(Shown):
    """Records of one kind with their provenance; ``len``, iteration and indexing are those of its records.

    Attributes:
        name: What tables and reports call it.
        source: Where it was read from.
        sha256: Over the source's bytes.
        kind: Which of the next three fields has the records.
        questions: Questions with their answers.
        statements: Statements with their labels.
        concepts: Prompts with known intermediate concepts.
        notes: What was left out, in lines ("18 duplicates, 12 with conflicting labels: dropped").
    """

    name: str
    source: str
    sha256: str
    kind: Literal["questions", "statements", "concepts"]
    questions: tuple[Question, ...] = ()
    statements: tuple[Statement, ...] = ()
    notes: tuple[str, ...] = ()
    concepts: tuple[ConceptPrompt, ...] = ()

    def __repr__(self) -> str:
        first = cut(next((_text_of(record) for record in self), ""))
        notes = f"\n  {cut('; '.join(self.notes), 200)}" if self.notes else ""
        return f"Dataset {self.name}: {self.counted}, from {cut(self.source)}\n  first: {first!r}{notes}"

    @property
    def counted(self) -> str:
        """How many records of which kind, in words."""
        kind = "concept prompts" if self.kind == "concepts" else self.kind
        return f"{len(self):,} {kind if len(self) != 1 else kind.removesuffix('s')}"

    @property
    def records(self) -> tuple[Question, ...] | tuple[Statement, ...] | tuple[ConceptPrompt, ...]:
        """The questions, the statements or the concept prompts: those of its kind."""
        if self.kind == "concepts":
            return self.concepts
        return self.questions if self.kind == "questions" else self.statements

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Question | Statement | ConceptPrompt]:
        return iter(self.records)

    @overload
    def __getitem__(self, at: int) -> Question | Statement | ConceptPrompt: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Question, ...] | tuple[Statement, ...] | tuple[ConceptPrompt, ...]: ...
    def __getitem__(
        self, at: int | slice
    ) -> (
        Question | Statement | ConceptPrompt | tuple[Question, ...] | tuple[Statement, ...] | tuple[ConceptPrompt, ...]
    ):
        return self.records[at]


_HOMES = {Question: "question", Statement: "statement", ConceptPrompt: "concept prompt"}
Record = TypeVar("Record", Question, Statement, ConceptPrompt)


def as_records(given: Iterable[Record], kind: type[Record]) -> tuple[Record, ...]:
    """Questions, statements or concept prompts from Python: of a data set, or in whatever can be looked through.

    Raises :class:`InputError` for anything else, with the way to read a file, and where there is none at all.
    """
    noun = _HOMES[kind]
    remedy = f"give {noun}s, such as exitlens.read_data('FILE')"
    if isinstance(given, str | dict) or not isinstance(given, Iterable):
        raise wrong_kind(f"the {noun}s", given, remedy)
    records = tuple(given)
    for i, record in enumerate(records):
        if not isinstance(record, kind):
            raise wrong_kind(f"{noun} {i}", record, remedy)
    if not records:
        raise InputError(f"no {noun}s: {remedy}")
    return records


def _text_of(record: Question | Statement | ConceptPrompt) -> str:
    if isinstance(record, Question):
        return record.question
    return record.statement if isinstance(record, Statement) else record.prompt


def check_read_at(prompt: ConceptPrompt, where: str) -> None:
    """Raise DataError where the prompt has not what its rule asks for: a target, or a newline."""
    if prompt.read_at == "before-target" and not (prompt.target or "").strip():
        raise DataError(f"{where} has no 'target', before which set {prompt.set_name[:80]!r} is read: add one")
    if prompt.read_at == "last-newline" and "\n" not in prompt.prompt:
        raise DataError(
            f"{where}: prompt {cut(repr(prompt.prompt))} has no newline, at which set {prompt.set_name[:80]!r} is read"
        )

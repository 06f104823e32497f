"""The questions and statements of a run: read, sorted by kind, made ready for the stages, with what was left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exitlens.data import BUILTIN, limited, read_data
from exitlens.data.answers_as_statements import as_statements
from exitlens.data.columns import ColumnMap, columns_of_kind, parse_columns
from exitlens.data.prompts import qa_prompt, read_prompts
from exitlens.data.records import ConceptPrompt, Dataset, Question, Statement
from exitlens.errors import DataError, InputError
from exitlens.models.protocol import LayeredModel
from exitlens.parsing import cut
from exitlens.report.words import counted
from exitlens.studies.config import RunConfig
from exitlens.studies.layers.choices import Rule, plan_choices
from exitlens.studies.layers.records import LookRecord

__all__ = ["Inputs", "load_inputs", "look_records", "prompt_records"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run works on. ``notes`` are lines for the user: what readers dropped, what stood in for what."""

    questions: tuple[Question, ...]
    statements: tuple[Statement, ...]
    datasets: tuple[Dataset, ...]
    notes: tuple[str, ...]
    test_statements: tuple[Statement, ...] = ()
    concepts: tuple[ConceptPrompt, ...] = ()

    def provenance(self) -> list[dict[str, Any]]:
        """Name, source, hash and size of each data set, for the manifest."""
        return [
            {
                "name": d.name,
                "source": d.source,
                "sha256": d.sha256,
                "kind": d.kind,
                "n": len(d),
                "notes": list(d.notes),
            }
            for d in self.datasets
        ]

    def identity(self) -> dict[str, Any]:
        """What makes the data these and no others, by kind; a kind that was not read is left out."""
        found: dict[str, Any] = {}
        for d in self.datasets:
            found.setdefault(f"{d.kind}_read", []).append([d.name, d.sha256, len(d)])
        return found


def load_inputs(config: RunConfig, needs: Collection[str]) -> Inputs:
    """Read the kinds of data that ``needs`` names (questions, statements, concepts).

    Raises DataError for what cannot be read or has no usable rows, and for data of which nothing would be used.

    ``--data`` takes both kinds: statements found there take the place of the default statements, and where it holds no
    questions a run of both kinds asks the default ones, which is said.
    """
    wants_questions = "questions" in needs
    wants_statements = "statements" in needs
    columns = _Columns(config)
    given = [_limited(spec, config, columns.of_data(spec)) for spec in config.data]
    concepts = [d for d in given if d.kind == "concepts"]
    _check_concepts(config, given, concepts, needs)
    questions = [d for d in given if d.kind == "questions"]
    statements = [d for d in given if d.kind == "statements"]
    notes: list[str] = []
    if wants_questions and not questions:
        if not wants_statements:  # a run of both kinds may bring one of them; here nothing given would be used
            raise DataError(
                f"'{', '.join(config.data)[:80]}' holds statements, not questions: give questions with --data, or "
                "leave it out for the built-in ones"
            )
        default = RunConfig.model_fields["data"].default
        questions = [_limited(spec, config, {}) for spec in default]
        notes.append(f"no questions in {', '.join(config.data)}: {', '.join(default)} is asked instead")
    if wants_statements and (not statements or config.statements != RunConfig.model_fields["statements"].default):
        for spec in config.statements:
            found = _limited(spec, config, columns.of_statements(spec))
            if found.kind != "statements":
                raise DataError(f"'{spec}' holds {found.kind}, not statements: give it with --data, statements here")
            statements.append(found)
    tested = [_limited(spec, config, columns.of_test(spec)) for spec in config.test_data] if wants_statements else []
    columns.check_used()
    used = ([*questions] if wants_questions else []) + ([*statements] if wants_statements else []) + concepts
    used += tested
    notes += [f"{d.name}: {note}" for d in used for note in d.notes]
    return Inputs(
        _unique([q for d in questions for q in d.questions]) if wants_questions else (),
        _unique([s for d in statements for s in d.statements]) if wants_statements else (),
        tuple(used),
        tuple(notes),
        _unique([s for d in tested for s in (d.statements or as_statements(d.questions, d.name))]),
        _unique([c for d in concepts for c in d.concepts]),
    )


def look_records(
    lm: LayeredModel, questions: Sequence[Question], *, rule: Rule = "auto", most: int | None = None
) -> tuple[list[LookRecord], list[str]]:
    """Questions with the choices that a layer can be asked about, and notes on those left out.

    Choices are the source's own, or the best and the incorrect answers where it has none. A question is left out when
    none or all of its choices are correct, or when two of them collide.
    """
    records: list[LookRecord] = []
    unfit: list[str] = []
    collide: list[str] = []
    for question in questions:
        if most is not None and len(records) == most:
            break
        choices = _distinct(question.choices or (question.best, *question.incorrect))
        truths = {_fold(answer) for answer in (question.best, *question.correct)}
        correct = tuple(_fold(choice) in truths for choice in choices)
        if len(choices) < 2 or not any(correct) or all(correct):
            unfit.append(question.id)
            continue
        record = LookRecord(question.id, question.question, "".join(qa_prompt(question)), choices, correct)
        try:
            plan_choices(lm, record.prompt, record.choices, rule)
        except InputError:
            collide.append(question.id)
            continue
        records.append(record)
    notes = []
    if unfit:
        notes.append(
            f"layers: {counted(len(unfit), 'question')} left out, without both a correct and an incorrect choice"
        )
    if collide:
        notes.append(f"layers: {counted(len(collide), 'question')} left out, their choices collide")
    return records, notes


def prompt_records(path: str) -> list[LookRecord]:
    """Prompts of a JSON lines file, used as they are; which choice is correct is not known."""
    return [
        LookRecord(f"prompt-{number}", prompt.prompt, prompt.prompt, prompt.choices, (False,) * len(prompt.choices))
        for number, prompt in enumerate(read_prompts(path), start=1)
    ]


class _Columns:
    """Which part of ``--column`` is for which file: questions' roles for --data, statements' for --statements."""

    def __init__(self, config: RunConfig) -> None:
        self._whole = parse_columns(config.column)
        self._asked = columns_of_kind(self._whole, "questions")
        self._told = columns_of_kind(self._whole, "statements")
        self._own_statements = any(spec not in BUILTIN for spec in config.statements)
        self._left = {role for role in self._whole if role != "id"}

    def of_data(self, spec: str) -> ColumnMap:
        # Statements may be given with --data too, where no file of statements is given beside it.
        return self._for(spec, self._asked if self._own_statements else self._whole)

    def of_statements(self, spec: str) -> ColumnMap:
        return self._for(spec, self._told)

    def of_test(self, spec: str) -> ColumnMap:
        return self._for(spec, self._whole)

    def check_used(self) -> None:
        """A mapping that no file was read by is a mistake: what it should have named would be read otherwise."""
        if self._left:
            unused = ",".join(f"{role}={name}" for role, name in self._whole.items() if role in self._left)
            raise DataError(f"--column {cut(unused)!r} maps columns of no file that is read: give the file with --data")

    def _for(self, spec: str, part: ColumnMap) -> ColumnMap:
        if spec in BUILTIN or not part:
            return {}
        self._left -= set(part)
        return part


def _check_concepts(
    config: RunConfig, given: Sequence[Dataset], concepts: Sequence[Dataset], needs: Collection[str]
) -> None:
    """Concept prompts are read by a study that was asked for, and by that one nothing else."""
    if concepts and "concepts" not in needs:
        raise DataError(
            f"'{concepts[0].source[:80]}' holds concept prompts, which none of the studies asked for reads: use "
            "exitlens lens compare, or --only lenses"
        )
    if "concepts" not in needs:
        return
    other = next((d for d in given if d.kind != "concepts"), None)
    if other is not None and not concepts:
        raise DataError(
            f"'{', '.join(config.data)[:80]}' holds {other.kind}, not concept prompts: give sets of them with --data "
            "(docs/data.md has the layout)"
        )
    if other is not None and not {"questions", "statements"} & set(needs):
        raise DataError(f"'{other.source[:80]}' holds {other.kind}, which lens compare does not read: leave it out")


def _limited(spec: str, config: RunConfig, columns: ColumnMap) -> Dataset:
    found = read_data(spec, columns=columns)
    return limited(found, config.limit_statements if found.kind == "statements" else config.limit)


def _unique(records: Sequence[Any]) -> tuple[Any, ...]:
    """Ids made different where two data sets use the same ones."""
    seen: dict[str, int] = {}
    out = []
    for record in records:
        count = seen.get(record.id, 0)
        seen[record.id] = count + 1
        out.append(record if count == 0 else replace(record, id=f"{record.id}~{count + 1}"))
    return tuple(out)


def _distinct(choices: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for choice in choices:
        if choice.strip():
            found.setdefault(_fold(choice), choice.strip())
    return tuple(found.values())


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".")

"""A table of the user's own (CSV, TSV, other delimiters, JSON, Parquet) whose columns are named, or name themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from exitlens.data.columns import QUESTION_ROLES, STATEMENT_ROLES, ColumnMap, column_of, columns_of_kind
from exitlens.data.readers import true_false
from exitlens.data.readers.json_lines import read_question, read_statement
from exitlens.data.readers.parquet import is_parquet, parquet_rows
from exitlens.data.readers.rows import Row, json_rows, read_label
from exitlens.data.readers.truthfulqa import contradictions
from exitlens.data.records import Dataset, Question, Statement
from exitlens.data.sources import Source, csv_header, csv_rows, delimiter_of, quote_columns, read_source
from exitlens.errors import DataError
from exitlens.parsing import cut, parse_json

__all__ = ["Table", "is_parquet", "names_itself", "read_mapped", "rows_by_role", "table_of"]

# The names under which a column is found that nobody mapped. Only those that decide what is asked and what is correct:
# a column `id` or `pair` of another meaning would do harm in silence.
_OWN_NAMES: Mapping[str, tuple[str, ...]] = {
    "question": ("question",),
    "best": ("best", "best answer", "best_answer", "answer"),
    "correct": ("correct", "correct answers", "correct_answers"),
    "incorrect": ("incorrect", "incorrect answers", "incorrect_answers"),
    "choices": ("choices",),
    "statement": ("statement",),
    "label": ("label",),
    "topic": ("topic",),
}
_LISTS = frozenset({"correct", "incorrect", "choices"})
_SEPARATORS = ("|", ";")
_WHOLE_ROW = frozenset({"id", "entity", "pair", "negated"})  # statements whose groups the file itself tells


@dataclass(frozen=True, slots=True)
class Table:
    """A file as rows: its path for messages, column names as written, rows with their places, and its hash."""

    path: str
    stem: str
    names: Sequence[str]
    rows: Sequence[Row]
    sha256: str
    form: str


def table_of(path: Path, wanted: Sequence[str] = ()) -> Table:
    """A file as rows, its kind told by its content.

    Args:
        path: CSV with any of the delimiters ``,`` tab ``;`` ``|``; a JSON list, one object or JSON lines; or Parquet.
        wanted: Columns that should be there; they decide which delimiter it is.

    Raises:
        DataError: The file cannot be read.
    """
    if is_parquet(path):
        names, rows, sha256 = parquet_rows(path)
        return Table(str(path), path.stem, names, rows, sha256, "Parquet")
    source = read_source(path)
    if source.text.lstrip()[:1] in {"{", "["}:
        rows = json_rows(source)
        names = list(dict.fromkeys(name for _, row in rows for name in row))
        return Table(str(path), path.stem, names, rows, source.sha256, "JSON")
    wanted = wanted or [name for own in _OWN_NAMES.values() for name in own]
    mark = delimiter_of(source, wanted)
    header = csv_header(source, mark)
    found = csv_rows(source, (), mark)
    rows = [(f"{str(path)!r} line {line}", cells) for line, cells in found]
    told = {",": "CSV", "\t": "tab-separated"}.get(mark, f"separated by {mark!r}")
    return Table(str(path), path.stem, header, rows, source.sha256, told)


def names_itself(source: Source) -> bool:
    """Whether the header of a CSV has a question and its answer under names of our own schema."""
    wanted = [name for own in _OWN_NAMES.values() for name in own]
    have = {name.casefold() for name in csv_header(source, delimiter_of(source, wanted))}
    answers = {*_OWN_NAMES["best"], *_OWN_NAMES["correct"]}
    return "question" in have and bool(have & answers)


def read_mapped(tables: Sequence[Table], columns: ColumnMap, where: str, name: str, sha256: str) -> Dataset:
    """The records of one or more tables.

    Args:
        tables: The files; each is a topic of statements where no column of topics is mapped.
        columns: Columns by role; roles that are not mapped are taken from columns of their own name.
        where: The data set's source.
        name: Its name.
        sha256: Its hash.

    Returns:
        The data set; its first note says what was understood.

    Raises:
        DataError: A column that is not there, or twice; no answer or label; a cell that cannot be read.
    """
    kind = _kind(tables[0], columns)
    mine = columns_of_kind(columns, kind)
    notes: list[str] = []
    questions: list[Question] = []
    statements: list[Statement] = []
    for table in tables:
        roles = _roles(table, mine, kind)
        if not table.rows:
            raise DataError(f"{table.path!r} has no {kind}: only a header or an empty list; add rows")
        notes.append(_understood(table, roles, alone=len(tables) == 1))
        if kind == "questions":
            questions += _questions(table, roles, len(questions))
        elif roles.keys() & _WHOLE_ROW:
            statements += _statements(table, roles, len(statements))
        else:
            found, dropped = _plain_statements(table, roles)
            statements += found
            notes += dropped
    if kind == "questions":
        notes += contradictions(questions)
        _check_ids(tables[0].path, [question.id for question in questions])
        return Dataset(name, where, sha256, "questions", questions=tuple(questions), notes=tuple(notes))
    _check_ids(tables[0].path, [statement.id for statement in statements])
    return Dataset(name, where, sha256, "statements", statements=tuple(statements), notes=tuple(notes))


def rows_by_role(table: Table, columns: ColumnMap) -> list[tuple[str, dict[str, str | None]]]:
    """Each row's place and its cells as texts, by the role of their columns; None where one is empty.

    Raises:
        DataError: A column that is not there, or twice; no rows; a cell that is no text.
    """
    exact = not _is_csv(table)
    roles = {role: column_of(table.names, name, role, repr(table.path), exact=exact) for role, name in columns.items()}
    if not table.rows:
        raise DataError(f"{table.path!r} has no texts: only a header or an empty list; add rows")
    return [
        (where, {role: _text(f"{where}: {role}", value) for role, value in _cells(table, roles, row).items()})
        for where, row in table.rows
    ]


def _kind(table: Table, columns: ColumnMap) -> Literal["questions", "statements"]:
    """What the mapping makes of the file; where it maps both kinds, what the file has."""
    asked, told = (columns_of_kind(columns, kind) for kind in ("questions", "statements"))
    if asked and told:
        have = {name.strip().casefold() for name in table.names}
        fits = [part.keys() & {"question", "statement"} and _all_in(part, have) for part in (asked, told)]
        if fits[0] == fits[1]:
            raise DataError(
                f"{table.path!r}: --column maps questions and statements, and the file has "
                f"{'both' if fits[0] else 'neither'}: it has {quote_columns(table.names)}"
            )
        return "questions" if fits[0] else "statements"
    if asked or told:
        return "questions" if asked else "statements"
    have = {name.strip().casefold() for name in table.names}
    return "statements" if "statement" in have and "question" not in have else "questions"


def _all_in(part: ColumnMap, have: set[str]) -> bool:
    return all(name.strip().casefold() in have for name in part.values())


def _roles(table: Table, columns: ColumnMap, kind: Literal["questions", "statements"]) -> dict[str, str]:
    """The column of each role: those mapped, then those that name themselves."""
    where = repr(table.path)
    # The rows of a CSV are keyed in lower case, so that there `A` and `a` are one name.
    exact = not _is_csv(table)
    roles = {role: column_of(table.names, name, role, where, exact=exact) for role, name in columns.items()}
    own = QUESTION_ROLES if kind == "questions" else STATEMENT_ROLES
    for role, names in _OWN_NAMES.items():
        free = [name for name in table.names if name not in roles.values() and name.strip().casefold() in names]
        if role in own and role not in roles and free:
            if len(free) > 1:
                raise DataError(
                    f"{where} has {quote_columns(free)}, of which each could be {role}: say which with --column {role}="
                )
            roles[role] = free[0]
    main, answers = ("question", ("best", "correct")) if kind == "questions" else ("statement", ("label",))
    for needed in ((main,), answers):
        if not any(role in roles for role in needed):
            raise DataError(
                f"{where}: no column for {' or '.join(needed)}: name one with --column {needed[0]}=NAME (it has "
                f"{quote_columns(table.names)})"
            )
    return roles


def _understood(table: Table, roles: Mapping[str, str], *, alone: bool) -> str:
    used = ", ".join(f"{role} from {cut(name, 40)!r}" for role, name in roles.items())
    left = [name for name in table.names if name not in roles.values()]
    rest = f"left out: {quote_columns(left)}" if left else "no column left out"
    rows = f"{len(table.rows)} row{'' if len(table.rows) == 1 else 's'}"
    return f"{'' if alone else f'{table.stem}: '}{rows} ({table.form}): {used}; {rest}"


def _is_csv(table: Table) -> bool:
    return table.form not in ("JSON", "Parquet")


def _cells(table: Table, roles: Mapping[str, str], row: Mapping[str, Any]) -> dict[str, Any]:
    """A row by role. The keys of a CSV's rows are in lower case."""
    lower = _is_csv(table)
    return {role: row.get(name.casefold() if lower else name) for role, name in roles.items()}


def _questions(table: Table, roles: Mapping[str, str], before: int) -> list[Question]:
    out = []
    for number, (where, row) in enumerate(table.rows, start=before + 1):
        found: dict[str, Any] = {}
        for role, value in _cells(table, roles, row).items():
            place = f"{where}: {role} ({cut(roles[role], 40)!r})"
            read = _list(place, value) if role in _LISTS else _text(place, value)
            if read:
                found[role] = read
        if "question" not in found:
            raise DataError(f"{where}: the question is empty; remove the row or fill it in")
        if "best" not in found and not found.get("correct"):
            raise DataError(f"{where}: no answer to {cut(found['question'])!r}; remove the row or fill it in")
        if found.get("choices") and len(found["choices"]) < 2:
            raise DataError(
                f"{where}: {cut(found['choices'][0])!r} is one choice: separate choices by ; or |, or give a JSON list"
            )
        out.append(read_question(where, f"q{number:04d}", found))
    return out


def _statements(table: Table, roles: Mapping[str, str], before: int) -> list[Statement]:
    out = []
    for number, (where, row) in enumerate(table.rows, start=before + 1):
        cells = _cells(table, roles, row)
        found: dict[str, Any] = {}
        for role in ("statement", "topic", "entity", "pair", "id"):
            text = _text(f"{where}: {role}", cells.get(role))
            if text:
                found[role] = text
        found["label"] = _label(where, cells["label"])
        found.setdefault("topic", true_false.topic_of(Path(table.path)))
        if "negated" in roles:
            negated = read_label(cells["negated"])
            if negated is None:
                raise DataError(f"{where}: negated {cut(repr(cells['negated']))} is neither true nor false")
            found["negated"] = bool(negated)
        out.append(read_statement(where, f"s{number:04d}", found))
    return out


def _plain_statements(table: Table, roles: Mapping[str, str]) -> tuple[list[Statement], list[str]]:
    """Statements of which only text, label and topic are known: copies are dropped and groups worked out."""
    topics: dict[str, list[true_false.Row]] = {}
    for number, (where, row) in enumerate(table.rows, start=1):
        cells = _cells(table, roles, row)
        text = _text(f"{where}: statement", cells["statement"])
        if not text:
            raise DataError(f"{where}: the statement is empty; remove the row or fill it in")
        topic = _text(f"{where}: topic", cells.get("topic")) or true_false.topic_of(Path(table.path))
        topics.setdefault(topic, []).append(true_false.Row(number, text, _label(where, cells["label"])))
    return true_false.from_rows(topics.items())


def _label(where: str, value: Any) -> int:
    label = read_label(value)
    if label is None:
        raise DataError(f"{where}: label {cut(repr(value))} is neither 0 nor 1 (nor true/false, yes/no)")
    return label


def _text(where: str, value: Any) -> str | None:
    """A cell as text; None where it is empty. A number is written as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where} is {cut(repr(value))}, not a text: write it as one")
    return str(value).strip() or None


def _list(where: str, value: Any) -> list[str]:
    """A cell as texts: a list, a JSON list, or a text separated by ``|`` or ``;``."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value.strip(), where, remedy="give a JSON list, or separate by ; or |")
    if isinstance(value, list | tuple):
        return [text for each in value if (text := _text(where, each))]
    text = _text(where, value)
    if text is None:
        return []
    marks = [mark for mark in _SEPARATORS if mark in text]
    if len(marks) > 1:
        raise DataError(f"{where} holds both ; and | ({cut(text)!r}): use one of them, or a JSON list")
    return [part.strip() for part in text.split(marks[0])] if marks else [text]


def _check_ids(path: str, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise DataError(f"{path!r}: id {cut(each)!r} stands twice; ids must differ")
        seen.add(each)

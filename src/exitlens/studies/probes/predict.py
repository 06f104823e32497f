"""A probe at work: P(true) of the statements or answers of a file, and of a text while it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exitlens.data import read_data
from exitlens.data.answers_as_statements import as_statements
from exitlens.data.columns import parse_columns
from exitlens.data.prompts import ANSWER_POSITIONS, answer_prompt_name, check_position, prompt_name
from exitlens.data.readers.mapped import Table, rows_by_role, table_of
from exitlens.data.readers.rows import Row, json_rows
from exitlens.data.records import Dataset
from exitlens.data.sources import read_source
from exitlens.errors import DataError, ProbeError
from exitlens.models.protocol import LayeredModel
from exitlens.parsing import cut
from exitlens.probes import SavedProbe
from exitlens.studies.probes.extraction import read_states

__all__ = ["Judged", "check_probe", "judge_texts", "read_texts"]

_UNLABELLED = frozenset({"statement", "question", "best", "id"})  # roles that say nothing of what is true


@dataclass(frozen=True, slots=True)
class Judged:
    """A text and, where it is known, whether it is true (1) or false (0); ``p_true`` once a probe has read it."""

    id: str
    text: str
    label: int | None = None
    p_true: float | None = None


def read_texts(path: str | Path, columns: str | Sequence[str] | Mapping[str, str] | None = None) -> list[Judged]:
    """What ``exitlens probe predict`` is given: any data set of ``--data``, answers of a system, or plain lines.

    Answers are JSON lines or a JSON list of ``{"question": ..., "answer": ...}`` (``model_completion``, ``completion``
    and the ``prompt`` and ``text`` of ``exitlens generate --json`` will do); a statement may lack its label. In a
    ``.txt`` file each line that is not blank is a statement. A table with a question and an answer a row, and nothing
    that says which answers are correct, holds answers too.

    Args:
        path: A file, or what ``--data`` takes.
        columns: What the columns of a table hold, as for ``read_data``; a statement's ``label`` may be left out.

    Raises:
        DataError: It cannot be read, or a row has no text.
        InputError: ``columns`` has a role that does not exist, or is given for a built-in data set.
    """
    mapped = parse_columns(columns)
    file = Path(path).expanduser()
    if not file.is_file() or (mapped and not _UNLABELLED.issuperset(mapped)):
        return _of_data(read_data(str(path), columns=mapped or None))
    if mapped:
        return _of_rows(table_of(file, list(mapped.values())), mapped)
    source = read_source(file)
    if file.suffix.casefold() == ".txt":
        lines = [line.strip() for line in source.text.split("\n") if line.strip()]
        if not lines:
            raise DataError(f"'{file}' has no statements: write one a line")
        return [Judged(str(n), line) for n, line in enumerate(lines, 1)]
    rows = json_rows(source) if source.text.lstrip()[:1] in {"{", "["} else []
    if not rows and (names := _answers_in(table := table_of(file))):
        return _of_rows(table, names)
    if not rows or {"label", "best", "correct", "examples"} & set(rows[0][1]):
        return _of_data(read_data(file))
    return [_row(where, n, row) for n, (where, row) in enumerate(_apart(rows), 1)]


def _answers_in(table: Table) -> dict[str, str]:
    """The columns of a table that holds a system's answers; none where it says which answers are correct."""
    have = {name.strip().casefold(): name for name in table.names}
    if have.keys() & {"label", "best", "correct", "incorrect", "choices", "best answer", "correct answers"}:
        return {}
    return {"question": have["question"], "best": have["answer"]} if {"question", "answer"} <= have.keys() else {}


def _of_rows(table: Table, names: Mapping[str, str]) -> list[Judged]:
    rows = rows_by_role(table, names)
    told = [(where, {"answer" if role == "best" else role: text for role, text in row.items()}) for where, row in rows]
    return [
        _row(where, n, {role: text for role, text in row.items() if text}) for n, (where, row) in enumerate(told, 1)
    ]


def _apart(rows: list[Row]) -> list[Row]:
    """Two lists in one object, as :func:`exitlens.scoring.parse_predictions` takes them, are one row a pair."""
    where, first = rows[0]
    name = next((k for k in ("model_completion", "answer", "completion") if isinstance(first.get(k), list)), None)
    if name is None or not isinstance(first.get("question"), list) or len(first[name]) != len(first["question"]):
        return rows
    pairs = zip(first["question"], first[name], strict=True)
    return [(f"{where} row {i}", {"question": q, "answer": a}) for i, (q, a) in enumerate(pairs)]


def _row(where: str, number: int, row: dict[str, Any]) -> Judged:
    name = str(row.get("id", number))
    label = row.get("label")
    if label is not None and label not in (0, 1):
        raise DataError(f"{where}: label {cut(repr(label))} is neither 0 nor 1")
    label = None if label is None else int(label)
    if isinstance(row.get("statement"), str) and row["statement"].strip():
        return Judged(name, row["statement"].strip(), label)
    asked = next((row[k] for k in ("question", "prompt") if isinstance(row.get(k), str)), None)
    keys = ("answer", "model_completion", "completion", "text")
    answer = next((row[k] for k in keys if isinstance(row.get(k), str)), None)
    if asked is None or answer is None:
        raise DataError(f"{where} has neither 'statement' nor 'question' and 'answer': {cut(row)}")
    return Judged(name, f"{asked.strip()} {answer.strip()}", label)


def _of_data(data: Dataset) -> list[Judged]:
    if data.kind == "concepts":
        raise DataError(f"'{data.source}' holds concept prompts, which are neither true nor false: give statements")
    statements = data.statements if data.kind == "statements" else as_statements(data.questions)
    return [Judged(s.id, s.statement, s.label) for s in statements]


def judge_texts(
    lm: LayeredModel, saved: SavedProbe, texts: Sequence[Judged], *, position: str | None = None
) -> list[Judged]:
    """``texts`` with P(true), read as the probe's own statements were.

    Raises ProbeError when the model or ``position`` is not the one that the probe was fitted on.
    """
    check_probe(saved, lm, position)
    if saved.position in ANSWER_POSITIONS:
        raise ProbeError(
            f"'{saved.path}' was fitted on the model's own answers (position '{saved.position}'): it watches them with "
            "exitlens generate --qa --watch, it does not judge a text"
        )
    if saved.position == "every":
        raise ProbeError(f"'{saved.path}' was fitted on every token: it watches a generation, it does not judge a text")
    where = check_position(saved.position)
    states = read_states(lm, [t.text for t in texts], saved.layers, setting=saved.setting, position=where)
    found = saved.p_true(states).double().tolist()
    return [Judged(t.id, t.text, t.label, p) for t, p in zip(texts, found, strict=True)]


def check_probe(saved: SavedProbe, lm: LayeredModel, position: str | None = None) -> None:
    """Raise ProbeError unless model, position and prompt are those that the probe was fitted on."""
    where = saved.probe.provenance
    if where.model and where.model != lm.fingerprint:
        raise ProbeError(
            f"'{saved.path}' was fitted on '{saved.model}' ({where.model[:12]}), not on '{lm.name}' "
            f"({lm.fingerprint[:12]}): use that model, or fit the probe again"
        )
    saved.probe.check(position=position)
    known = answer_prompt_name() if saved.position in ANSWER_POSITIONS else prompt_name(saved.setting)
    if where.prompt and where.prompt != known:
        raise ProbeError(f"'{saved.path}' was fitted under another prompt ({where.prompt}, now {known}): fit it again")

"""True-false statements: one CSV or a folder of them, columns ``statement`` and ``label``, one topic a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exitlens.data.grouping import with_groups
from exitlens.data.readers.rows import read_label
from exitlens.data.records import Statement
from exitlens.data.sources import Source, csv_rows, delimiter_of
from exitlens.errors import DataError
from exitlens.parsing import cut

__all__ = ["REQUIRED", "Row", "from_rows", "read_statements", "topic_of"]

REQUIRED = ("statement", "label")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as found: its number in the source (from 1), text and label."""

    number: int
    statement: str
    label: int


def topic_of(path: Path) -> str:
    """The topic a file's name gives: ``cities_true_false.csv`` -> ``cities``."""
    stem = path.stem.removesuffix("_true_false").removesuffix("-true-false")
    return stem or path.stem


def read_statements(sources: Sequence[Source]) -> tuple[list[Statement], list[str]]:
    """Statements of all ``sources`` with the lines to report.

    Raises DataError for a label that is not 0 or 1, an empty statement, or no statement at all.
    """
    return from_rows([(topic_of(source.path), _rows(source)) for source in sources])


def _rows(source: Source) -> Iterable[Row]:
    for number, (line, cells) in enumerate(csv_rows(source, REQUIRED, delimiter_of(source, REQUIRED)), start=1):
        text, label = cells["statement"].strip(), read_label(cells["label"])
        if label is None:
            raise DataError(
                f"{str(source.path)!r} line {line}: label {cut(cells['label'].strip())!r} is neither 0 nor 1; use 1 "
                "for true (true/false and yes/no do too)"
            )
        if not text:
            raise DataError(f"{str(source.path)!r} line {line}: the statement is empty; remove the row or fill it in")
        yield Row(number, cells["statement"], label)


def from_rows(topics: Iterable[tuple[str, Iterable[Row]]]) -> tuple[list[Statement], list[str]]:
    """Statements with entity and pair, without duplicates; notes name what was dropped, topic by topic.

    A statement that occurs again with the same label is kept once; one that occurs with both labels says nothing and
    is dropped with all its copies. Copies are counted first as written, then again by words (white space at the ends
    and between words, and letter case, set aside), also across topics.
    """
    kept: list[Statement] = []
    notes: list[str] = []
    for topic, found in topics:
        rows = list(found)
        exact = _distinct(rows, [row.statement for row in rows])
        if exact.duplicates:
            notes.append(
                f"{topic}: {_counted(exact.duplicates, '')}, {exact.conflicting} with conflicting labels: dropped"
                f" ({len(rows) - len(exact.rows)} of {len(rows)} rows)"
            )
        loose = _distinct(exact.rows, [_words(row.statement) for row in exact.rows])
        if loose.duplicates:
            notes.append(
                f"{topic}: {_counted(loose.duplicates, 'more ')} but for white space or letter case,"
                f" {loose.conflicting} with conflicting labels: dropped ({len(exact.rows) - len(loose.rows)} rows)"
            )
        kept.extend(Statement(f"{topic}-{r.number:04d}", r.statement.strip(), r.label, topic) for r in loose.rows)
    kept, across = _across_topics(kept)
    if across is not None:
        notes.append(across)
    if not kept:
        raise DataError("no statements: only a header, or every statement dropped; " + ("; ".join(notes) or "no rows"))
    return with_groups(kept), notes


def _counted(n: int, more: str) -> str:
    return f"{n} {more}duplicate" + ("" if n == 1 else "s")


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


@dataclass(frozen=True, slots=True)
class _Distinct:
    rows: list[Row]
    duplicates: int  # statements that occur more than once
    conflicting: int  # of these, the ones with both labels


def _distinct(rows: Sequence[Row], keys: Sequence[str]) -> _Distinct:
    labels: dict[str, list[int]] = {}
    for row, key in zip(rows, keys, strict=True):
        labels.setdefault(key, []).append(row.label)
    seen: set[str] = set()
    out = []
    for row, key in zip(rows, keys, strict=True):
        if key not in seen and len(set(labels[key])) == 1:
            out.append(row)
        seen.add(key)
    again = [found for found in labels.values() if len(found) > 1]
    return _Distinct(out, len(again), sum(1 for found in again if len(set(found)) > 1))


def _across_topics(statements: Sequence[Statement]) -> tuple[list[Statement], str | None]:
    labels: dict[str, set[int]] = {}
    for row in statements:
        labels.setdefault(_words(row.statement), set()).add(row.label)
    seen: set[str] = set()
    out = []
    for row in statements:
        key = _words(row.statement)
        if key not in seen and len(labels[key]) == 1:
            out.append(row)
        seen.add(key)
    if len(out) == len(statements):
        return out, None
    conflicting = sum(1 for found in labels.values() if len(found) > 1)
    return out, (
        f"{len(statements) - len(out)} rows occur in more than one topic ({conflicting} statements with conflicting"
        " labels): the first topic keeps each, conflicting ones dropped"
    )

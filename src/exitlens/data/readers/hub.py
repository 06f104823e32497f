"""Data sets by Hub id, through the optional package ``datasets``: TruthfulQA and true-false statements."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from exitlens.data.columns import ColumnMap
from exitlens.data.readers import mapped, true_false, truthfulqa
from exitlens.data.readers.rows import read_label
from exitlens.data.records import Dataset
from exitlens.data.sources import quote_columns
from exitlens.errors import DataError, MissingExtra
from exitlens.parsing import cut

__all__ = ["looks_like_hub_id", "read_hub"]

_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")
_FILE_ENDINGS = (".csv", ".json", ".jsonl", ".tsv", ".txt", ".gz", ".zip", ".parquet", ".xlsx")
# TruthfulQA has several configurations; only this one holds free answers.
_CONFIG = {"truthfulqa/truthful_qa": "generation", "truthful_qa": "generation"}
_QUESTION = ("question", "best_answer", "correct_answers", "incorrect_answers")

Split = tuple[str, list[Mapping[str, Any]]]


def looks_like_hub_id(spec: str) -> bool:
    """Whether ``spec`` has the form ``owner/name`` (with an optional ``@revision``) and no ending of a data file."""
    return _ID.match(spec) is not None and not spec.casefold().endswith(_FILE_ENDINGS)


def _load(spec: str) -> list[Split]:
    """All splits of ``spec`` as plain rows. Raises MissingExtra without ``datasets``, DataError when unreachable."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra(
            f"reading {spec!r} from the Hub needs the package 'datasets': pip install 'exitlens[hub]'"
        ) from None
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = spec.partition("@")
    try:
        found = datasets.load_dataset(name, _CONFIG.get(name), revision=revision or None)
    # The library turns some network failures into these, and lets its HTTP client's own through.
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, httpx.HTTPError) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(
            f"cannot fetch {spec!r} from the Hub ({type(error).__name__}: {why});"
            " check the id and the network, or give a file"
        ) from None
    return [(str(split), [dict(row) for row in rows]) for split, rows in found.items()]


def read_hub(spec: str, columns: ColumnMap | None = None) -> Dataset:
    """The data set ``owner/name[@revision]``; its splits are topics for statements and joined for questions.

    ``sha256`` is over the rows as JSON with sorted keys, split by split.
    """
    splits = _load(spec)
    rows = [row for _, found in splits for row in found]
    if not rows:
        raise DataError(f"{spec!r} on the Hub has no rows; choose another data set")
    digest = hashlib.sha256()
    for split, found in splits:
        digest.update(json.dumps([split, found], sort_keys=True, default=str).encode())
    source = f"https://huggingface.co/datasets/{spec.partition('@')[0]}"
    if columns:
        name = spec.partition("@")[0]
        tables = [
            mapped.Table(
                f"{spec} {split}", split, list(found[0]), [(f"{spec!r} {split} row {n}", dict(row)) for n, row in
                enumerate(found, start=1)], "", "JSON"
            )
            for split, found in splits
            if found
        ]  # fmt: skip
        return mapped.read_mapped(tables, columns, source, name, digest.hexdigest())
    names = list(rows[0])
    if all(name in names for name in _QUESTION):
        questions = [
            truthfulqa.build(
                number,
                str(row["question"]),
                str(row["best_answer"]),
                row["correct_answers"],
                row["incorrect_answers"],
                category=row.get("category"),
                kind=row.get("type"),
                where=f"{spec!r} row {number}",
            )
            for number, row in enumerate(rows, start=1)
        ]
        notes = tuple(truthfulqa.contradictions(questions))
        return Dataset(spec, source, digest.hexdigest(), "questions", questions=tuple(questions), notes=notes)
    if all(name in names for name in true_false.REQUIRED):
        topics = [(split, list(_statement_rows(spec, split, found))) for split, found in splits]
        statements, lines = true_false.from_rows(topics)
        return Dataset(spec, source, digest.hexdigest(), "statements", statements=tuple(statements), notes=tuple(lines))
    raise DataError(
        f"{spec!r} on the Hub has columns {quote_columns(names)}; needed: {', '.join(_QUESTION)}"
        f" or {', '.join(true_false.REQUIRED)}"
    )


def _statement_rows(spec: str, split: str, rows: Iterable[Mapping[str, Any]]) -> Iterable[true_false.Row]:
    for number, row in enumerate(rows, start=1):
        label = read_label(row["label"])
        if label is None:
            raise DataError(f"{spec!r} {split} row {number}: label {cut(repr(row['label']))} is neither 0 nor 1")
        yield true_false.Row(number, str(row["statement"]), label)

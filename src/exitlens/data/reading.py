"""Which reader takes what a data set's name means: formats are told apart by content, never by file name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from exitlens.arguments import as_path
from exitlens.data.columns import ColumnMap, columns_of_kind, parse_columns
from exitlens.data.readers import big_bench, concept_sets, hub, json_lines, mapped, true_false, truthfulqa
from exitlens.data.readers.rows import json_whole
from exitlens.data.records import Dataset, Question, Statement
from exitlens.data.sources import Source, csv_header, delimiter_of, folder_sha256, quote_columns, read_source
from exitlens.data.subset import limited
from exitlens.errors import DataError, InputError

__all__ = ["BUILTIN", "read_data"]

BUILTIN = ("facts-qa", "facts-tf")
"""Names that `read_data` takes for the data sets shipped with the package."""


def read_data(
    spec: str | Path, *, limit: int | None = None, columns: str | Sequence[str] | Mapping[str, str] | None = None
) -> Dataset:
    """The data set that ``spec`` names.

    Args:
        spec: A built-in name (:data:`BUILTIN`), a file or folder, or a Hub id ``owner/name[@revision]``; a file or
            folder of that name comes before the Hub. A file may be a TruthfulQA CSV, a true-false CSV, a BIG-bench task
            JSON, a set of concept prompts or JSON lines of our schema; a folder holds true-false CSVs or sets of
            concept prompts (or exactly one data file).
        limit: Keep the first so many questions, or so many statements spread evenly over topics and labels, with pairs
            kept together where they fit, or the first concept prompts of each set; always the same ones.
        columns: What the columns of a table of your own hold: ``{"question": "Prompt", "best": "Expected"}``, or
            ``"question=Prompt,best=Expected"``. The table is CSV (also with tabs, ``;`` or ``|``), JSON or Parquet.

    Returns:
        The records, with notes on what was left out.

    Raises:
        DataError: Missing, empty, not UTF-8, unknown columns, no usable records.
        InputError: ``limit`` is not positive; ``columns`` has a role that does not exist, or is given for a built-in
            name.
        MissingExtra: A Hub id without ``datasets``.
    """
    spec = as_path(spec, "the data", "give a built-in name, a file, a folder or a Hub id")
    return limited(_read(spec, parse_columns(columns)), limit)


def check_data(spec: str) -> None:
    """Raise DataError where ``spec`` names nothing to read: no built-in set, file or folder, nor a Hub id."""
    if spec in BUILTIN:
        return
    if not spec.strip() or "\0" in spec:
        raise DataError(f"{spec!r} names no data; built in are {', '.join(BUILTIN)}; or give a file, folder or Hub id")
    if not Path(spec).expanduser().exists() and not hub.looks_like_hub_id(spec):
        raise DataError(
            f"no such data: {spec!r} is no file or folder here; built in are {', '.join(BUILTIN)};"
            " a Hub id has the form owner/name"
        )


def _read(spec: str | Path, columns: ColumnMap) -> Dataset:
    if isinstance(spec, str):
        check_data(spec)
    if isinstance(spec, str) and spec in BUILTIN:
        if columns:
            raise InputError(f"{spec!r} is built in, and its columns are known: leave --column out, or give a file")
        with resources.as_file(resources.files("exitlens.data") / "builtin" / f"{spec}.jsonl") as path:
            return _from_file(path, source=f"built in: {spec}")
    path = Path(spec).expanduser()
    if path.is_dir():
        return _mapped(path, columns) if columns else _from_folder(path)
    if not path.exists() and isinstance(spec, str):
        return hub.read_hub(spec, columns)
    return _mapped(path, columns) if columns else _from_file(path)


def _mapped(path: Path, columns: ColumnMap) -> Dataset:
    """A file of the user's own, or a folder of statements with a topic a file."""
    if not path.is_dir():
        table = mapped.table_of(path, list(columns.values()))
        return mapped.read_mapped([table], columns, str(path), path.stem, table.sha256)
    files = sorted((p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")), key=lambda p: p.name)
    if not files:
        raise DataError(f"folder {str(path)!r} is empty; give a file with questions or statements")
    if len(files) > 1 and not columns_of_kind(columns, "statements"):
        raise DataError(
            f"folder {str(path)!r} holds {len(files)} files ({quote_columns([p.name for p in files])}); give one of "
            "them with --data, or repeat --data"
        )
    tables = [mapped.table_of(each, list(columns.values())) for each in files]
    return mapped.read_mapped(tables, columns, str(path), path.resolve().name, folder_sha256(files))


def _from_file(path: Path, source: str | None = None) -> Dataset:
    if mapped.is_parquet(path):  # without a mapping its columns must name themselves
        return _mapped(path, {})
    found = read_source(path)
    where = source or str(path)
    opening = found.text.lstrip()[:1]
    if opening in {"{", "["}:
        return _from_json(found, where)
    columns = csv_header(found, delimiter_of(found, (*truthfulqa.REQUIRED, *true_false.REQUIRED)))
    questions: list[Question] = []
    statements: list[Statement] = []
    if _has(columns, truthfulqa.REQUIRED):
        questions, notes = truthfulqa.read_questions(found)
    elif _has(columns, true_false.REQUIRED):
        try:
            statements, notes = true_false.read_statements([found])
        except DataError as error:
            raise error if repr(str(path)) in str(error) else DataError(f"{str(path)!r}: {error}") from None
    elif mapped.names_itself(found):
        return _mapped(path, {})
    else:
        raise _wrong_columns(found, columns)
    return _dataset(found, where, path.stem, questions, statements, notes)


def _wrong_columns(source: Source, columns: list[str]) -> DataError:
    return DataError(
        f"{str(source.path)!r} has columns {quote_columns(columns)}; needed for questions: "
        f"{', '.join(truthfulqa.REQUIRED)}; for true-false statements: {', '.join(true_false.REQUIRED)}; or say what "
        "they hold: --column question=NAME,best=NAME"
    )


def _has(columns: list[str], required: tuple[str, ...]) -> bool:
    return set(required) <= {column.casefold() for column in columns}


def _dataset(
    source: Source,
    where: str,
    name: str,
    questions: list[Question],
    statements: list[Statement],
    notes: list[str],
) -> Dataset:
    if not questions and not statements:
        raise DataError(f"{str(source.path)!r} has no questions: only a header or an empty list; add rows")
    if questions:
        return Dataset(name, where, source.sha256, "questions", questions=tuple(questions), notes=tuple(notes))
    return Dataset(name, where, source.sha256, "statements", statements=tuple(statements), notes=tuple(notes))


def _from_json(source: Source, where: str) -> Dataset:
    whole = json_whole(source)
    if isinstance(whole, list):
        raise DataError(f"{str(source.path)!r} is a JSON list; write one object a line, without the brackets")
    if concept_sets.is_set(whole):
        return concept_sets.read_sets([source], where, source.name)
    if isinstance(whole, dict) and not {"question", "statement"} & set(whole):
        name, questions, notes = big_bench.read_task(source, whole)
        return _dataset(source, where, name, questions, [], notes)
    questions, statements, notes = json_lines.read_records(source, whole)
    return _dataset(source, where, source.name, questions, statements, notes)


def _from_folder(folder: Path) -> Dataset:
    files = sorted((p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")), key=lambda p: p.name)
    tables = [p for p in files if p.suffix.casefold() == ".csv"]
    if not tables:
        readable = [p for p in files if p.suffix.casefold() in {".json", ".jsonl"}]
        if len(readable) == 1:
            return _from_file(readable[0])
        sources = [read_source(path) for path in readable if path.suffix.casefold() == ".json"]
        if any(concept_sets.is_set(json_whole(source)) for source in sources):
            return concept_sets.read_sets(sources, str(folder), folder.resolve().name)
        held = quote_columns([p.name for p in files]) or "nothing"
        raise DataError(
            f"folder {str(folder)!r} holds no .csv file (it holds {held}); give true-false CSVs, sets of concept "
            "prompts or a file"
        )
    sources = [read_source(path) for path in tables]
    for source in sources:
        columns = csv_header(source, delimiter_of(source, true_false.REQUIRED))
        if not _has(columns, true_false.REQUIRED):
            if len(tables) == 1:
                return _from_file(tables[0])
            raise _wrong_columns(source, columns)
    try:
        statements, notes = true_false.read_statements(sources)
    except DataError as error:
        raise error if str(folder) in str(error) else DataError(f"{str(folder)!r}: {error}") from None
    sha256 = folder_sha256(tables)
    name = folder.resolve().name
    return Dataset(name, str(folder), sha256, "statements", statements=tuple(statements), notes=tuple(notes))

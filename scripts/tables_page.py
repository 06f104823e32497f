"""Write docs/tables.md from the records by which tables are checked: ``python scripts/tables_page.py``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from exitlens.studies.compare.columns import COMPARE_TABLES
from exitlens.studies.corpus.columns import corpus_tables
from exitlens.studies.registry import STUDIES
from exitlens.studies.tables import TableSpec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tables.md"

_HEAD = """# Tables

Every table that exitlens writes, column by column. This page is generated from the records that check the tables when
they are written (`python scripts/tables_page.py`).

A run directory has each table as `tables/NAME.parquet`; `--json` prints those marked *printed* as lists of rows, at
full precision, with `null` where a value is missing. Layers count from 0 (the embeddings) to N (the model's output).
Intervals are 95% intervals over questions or groups of statements. Two runs with the same seed have the same
tables; measured times are in `manifest.json`.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    told: set[str] = set()
    for name, study in STUDIES.items():
        tables = [table for table in study.tables if table.name not in told]
        told |= {table.name for table in tables}
        parts += [f"## Study `{name}`: {study.chapter.title}\n", study.chapter.question + "\n", *map(_table, tables)]
    parts += ["## `exitlens compare`\n", "In the folder given with `--out`.\n", *map(_table, COMPARE_TABLES)]
    parts += ["## `exitlens read`\n", "In the folder given with `--out`; statistics are those that `--stats` names.\n"]
    return "\n".join([*parts, *map(_table, corpus_tables())])


def _table(table: TableSpec) -> str:
    notes = [note for note, told in (("printed", table.printed), ("written by several studies", table.shared)) if told]
    marks = f" *{', '.join(notes).capitalize()}.*" if notes else ""
    lines = [f"### `{table.name}`\n", f"A row: {table.row}.{marks}\n"]
    rows = [
        (f"`{field.name}`", field.meaning + (" (if requested)" if field.optional else ""), field.unit)
        for field in table.fields
    ]
    return "\n".join([*lines, *_markdown(("column", "meaning", "unit"), rows), ""])


def _markdown(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = ((cell.replace("|", "\\|") for cell in row) for row in (heads, ("---",) * len(heads), *rows))
    return ["| " + " | ".join(row) + " |" for row in cells]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")

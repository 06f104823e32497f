"""``exitlens compare``: two or more runs in one report, from their directories alone. No model is loaded."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from exitlens.display import Shown
from exitlens.errors import InputError
from exitlens.parsing import cut
from exitlens.report.frames import Results
from exitlens.report.notebook import Shape, register_drawing, table_html
from exitlens.runs.directory import COMPARED, RunDirectory, now
from exitlens.storage.mirror import named
from exitlens.studies.compare.analysis import change_table, common_numbers, curve_table, number_table
from exitlens.studies.compare.chapter import CHAPTERS
from exitlens.studies.compare.columns import COMPARE_TABLES
from exitlens.studies.compare.runs import Run, read_runs
from exitlens.studies.compare.settings import run_table, setting_table

if TYPE_CHECKING:
    from exitlens.report.figure_style import FigureWidth

__all__ = ["Comparison", "compare_runs"]


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Shown):
    """Runs side by side: the tables ``compare_…`` by name, and the report where a folder was given."""

    tables: Mapping[str, pd.DataFrame]
    notes: tuple[str, ...]
    report: Path | None
    manifest: Mapping[str, Any]

    def __repr__(self) -> str:
        names = ", ".join(map(str, self.tables["compare_runs"]["run"]))
        report = f", report {self.report.name}" if self.report is not None else ""
        return (
            f"Comparison of the runs {cut(names, 200)}{report}\n  tables {cut(', '.join(self.tables), 300)}\n"
            "  .show() draws it, .findings() are sentences, .tables pandas DataFrames"
        )

    @property
    def results(self) -> Results:
        """Tables and manifest as chapters read them."""
        return Results(self.tables, self.manifest)

    def findings(self) -> dict[str, list[str]]:
        """The findings in sentences, by section."""
        return {name: lines for name, chapter in CHAPTERS.items() if (lines := chapter.findings(self.results))}

    def printed(self) -> dict[str, list[dict[Hashable, Any]]]:
        """Rows of the tables, None where a value is missing."""
        return {
            name: frame.astype(object).where(frame.notna(), None).to_dict("records")
            for name, frame in self.tables.items()
        }


def compare_runs(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    figures: bool = True,
    width: FigureWidth = "page",
    command: str = "",
) -> Comparison:
    """Compare finished runs: settings, headline numbers with differences, curves, questions that changed sides.

    Args:
        runs: Two or more run directories; the others are compared with the first.
        out: A folder for ``report.html``, figures and tables; None: nothing is written.
        seed: Of resamples and sign flips.
        figures: Draw figures.
        width: Of every figure: a column (3.3 inches) or a page (7 inches).
        command: The command line, for the manifest.

    Returns:
        The tables, and where the report is.

    Raises:
        InputError: Fewer than two runs, a run given twice, ``out`` in a run or a run in it.
        RunError: A folder that holds no run of this format, a damaged table, no study that all runs have, or ``out``
            holds something else.
    """
    found = read_runs(runs)
    if out is not None:
        _check_out(Path(out), found)
    matched = common_numbers(found)
    tables = {
        "compare_runs": run_table(found),
        "compare_settings": setting_table(found),
        "compare_numbers": number_table(found, matched, seed=seed),
        "compare_curves": curve_table(found),
        "compare_changes": change_table(found, matched),
    }
    for spec in COMPARE_TABLES:
        spec.check(tables[spec.name])
    notes = tuple(f"{run.name}: {note}" for run in found for note in run.notes)
    manifest = {"title": "Runs side by side", "seed": seed, "notes": list(notes), "command": command}
    if out is None:
        return Comparison(tables, notes, None, manifest)
    return _publish(Path(out), found, tables, manifest, width if figures else None)


def _check_out(out: Path, runs: Sequence[Run]) -> None:
    place = out.expanduser().resolve()
    for run in runs:
        mine = run.path.resolve()
        if place == mine or mine in place.parents or place in mine.parents:
            raise InputError(
                f"--out '{cut(str(out))}' and the run '{cut(str(run.path))}' lie in each other: choose another folder"
            )


def _publish(
    out: Path,
    runs: Sequence[Run],
    tables: Mapping[str, pd.DataFrame],
    manifest: Mapping[str, Any],
    width: FigureWidth | None,
) -> Comparison:
    """The report, with figures of the ``width`` where one is given."""
    from exitlens.report.gallery import draw_all
    from exitlens.report.page import write_report

    # `data` is a setting of every run: neither a run goes on in this folder, nor a comparison in a run's.
    identity = {"data": "none, it compares runs", COMPARED: [named(run.path) for run in runs]}
    with RunDirectory.open(out, identity, command=str(manifest["command"])) as directory:
        for name, frame in tables.items():
            directory.write_table(name, frame)
        directory.note(**{name: value for name, value in manifest.items() if name != "command"}, finished=now())
        results = Results(tables, directory.manifest)
        drawn = draw_all(results, CHAPTERS, directory.path / "figures", width) if width else {}
        path = write_report(results, CHAPTERS, drawn, directory.path / "report.html")
        return Comparison(tables, tuple(manifest["notes"]), path, directory.manifest)


def _shape(found: Comparison) -> Shape:
    views = [view for chapter in CHAPTERS.values() for view in chapter.views(found.results)]
    rows = [[name, line.split("\n")[0]] for name, lines in found.findings().items() for line in lines]
    return Shape(views, table_html(["of", "finding"], rows, "Runs side by side"))


register_drawing(Comparison, _shape)

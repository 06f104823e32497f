"""`exitlens compare RUN RUN`: two or more finished runs in one report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from exitlens.cli.console import echo, print_findings, print_json, print_parts, say
from exitlens.cli.help import add_command
from exitlens.cli.options import JsonOption, QuietOption, SeedOption, option

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(
        app, "compare", compare_command, "Two or more finished runs side by side",
        "exitlens compare run-a run-b",
        "exitlens compare run-a run-b run-c --out side-by-side",
    )  # fmt: skip


def compare_command(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories of `exitlens run --out`; the first is compared with.")
    ],
    out: Annotated[Path | None, option("out", help="Write report.html, figures and tables to this folder.")] = None,
    figures: Annotated[bool, option("figures", "--figures/--no-figures")] = True,
    figure_width: Annotated[Literal["column", "page"], option("figure_width")] = "page",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Runs side by side: models, decoders, lenses, seeds or data, whatever two runs differ in.

    Settings that differ; every headline number with its interval, and the difference to the first run, paired by
    question where the questions are the same; curves on one axis; questions that changed sides, with both answers.
    --json prints findings (sentences), notes, report and the tables compare_runs, compare_settings, compare_numbers,
    compare_curves and compare_changes, which docs/tables.md describes.
    """
    from exitlens.storage.mirror import named
    from exitlens.studies.compare.chapter import CHAPTERS
    from exitlens.studies.compare.comparison import compare_runs

    if len(runs) > 1:
        say(f"comparing {len(runs)} runs" + ("" if out is None else ", then writing the report"), quiet)
    command = shlex.join(["exitlens", *sys.argv[1:]])
    found = compare_runs(runs, out, seed=seed, figures=figures, width=figure_width, command=command)
    if as_json:
        report = None if found.report is None else named(found.report)
        print_json({"report": report, "notes": found.notes, "findings": found.findings(), "tables": found.printed()})
        return
    results = found.results
    for chapter in CHAPTERS.values():
        parts, findings = chapter.terminal(results, False), chapter.findings(results)
        print_parts(chapter.title, parts)
        print_findings(findings)
        if parts or findings:
            echo()
    if found.report is not None:
        echo(f"report: {named(found.report)}")

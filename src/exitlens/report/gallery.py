"""Which figures a run has, and all of them as files."""

from __future__ import annotations

import os
from collections.abc import Mapping

from exitlens.report import figure_style as style
from exitlens.report.chapter import Chapter, Plate
from exitlens.report.frames import Results

__all__ = ["draw_all", "plates"]


def plates(results: Results, chapters: Mapping[str, Chapter]) -> list[Plate]:
    """The figures that these tables allow, in the order of the report."""
    return [plate for chapter in chapters.values() for plate in chapter.figures(results)]


def draw_all(
    results: Results,
    chapters: Mapping[str, Chapter],
    folder: str | os.PathLike[str],
    width: style.FigureWidth = "page",
) -> dict[str, str]:
    """Draw every figure of every chapter.

    Args:
        results: Tables and manifest of a run.
        chapters: The chapters by study.
        folder: Each figure is saved there as SVG, PDF and PNG.
        width: Of every figure: a column (3.3 inches) or a page (7 inches).

    Returns:
        SVG text by file name.

    Raises:
        RunError: The folder cannot be written.
    """
    out: dict[str, str] = {}
    with style.figure_width(width):
        for plate in plates(results, chapters):
            paths = style.save(plate.draw(), folder, plate.name)
            out[plate.name] = paths["svg"].read_text(encoding="utf-8")
    return out

"""A chapter: all that a study tells its reader, on the terminal, in ``--json``, in figures and in the report.

A chapter reads tables and computes no statistic. The smallest one names its tables and draws nothing::

    class LengthChapter(Chapter):
        title = "Length of the questions"
        question = "How many words has a question?"
        how = "Words are counted at white space."
        own = ("lengths",)

That is enough for a section with the whole table ``lengths``. The methods below are overridden where there is more to
say: the answer to the question, findings in sentences, chosen columns, figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from matplotlib.figure import Figure
from pandas import DataFrame

from exitlens.report.comparable import Curve, Number, table_curves, table_numbers
from exitlens.report.frames import Results, rows
from exitlens.report.text import Column
from exitlens.report.view_data import View
from exitlens.report.words import units

__all__ = ["Chapter", "Part", "Plate", "Sheet", "plain_rows"]


@dataclass(frozen=True, slots=True)
class Part:
    """A table for the terminal: what it is of, its columns, its rows (None where a value is missing), a line below.

    ``n``: the units that each row's intervals rest on (None: not known); from them too narrow intervals are marked.
    """

    title: str
    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Any]]
    note: str | None = None
    n: Sequence[int | None] = ()


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table for the report: caption, headings, rows, and the name of the Parquet table that has all of it.

    Numbers are shortened and texts escaped by the page; ``collapsed`` sheets open on a click. ``n``: see :class:`Part`.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    source: str
    collapsed: bool = False
    n: Sequence[int | None] = ()


@dataclass(frozen=True, slots=True)
class Plate:
    """A figure: file name, caption, alternative text, and how to draw it."""

    name: str
    caption: str
    alt: str
    draw: Callable[[], Figure]


class Chapter(Protocol):
    """What a study tells. Inherit from it; only the four attributes have no default."""

    title: str
    """Heading of the section."""
    question: str
    """What the study asks, in one sentence."""
    how: str
    """How the numbers were computed."""
    own: tuple[str, ...]
    """The tables whose presence makes the section appear."""
    stages: tuple[str, ...] = ()
    """First words of the stages whose trouble is told in this section, besides the study's own name."""

    def answer(self, results: Results) -> str:
        """The answer to ``question`` in one sentence: a number with its interval, and what to do; details after a line
        break. Empty where nothing was measured.
        """
        return ""

    def headline(self, results: Results) -> list[str]:
        """The other findings, a text each: a sentence, and after a line break its details."""
        return []

    def findings(self, results: Results) -> list[str]:
        """All that is said in sentences: the answer first, then the other findings."""
        return [text for text in (self.answer(results), *self.headline(results)) if text]

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """The tables that a reader wants first; ``whole``: every row instead of a few. Default: the own tables."""
        frames = [(name, results.frame(name)) for name in self.own]
        return [
            Part(name, *_columns_and_rows(frame), n=[units(row) for row in rows(frame)])
            for name, frame in ((name, frame if whole or frame is None else frame.head(20)) for name, frame in frames)
            if frame is not None
        ]

    def tables(self, results: Results) -> list[Sheet]:
        """The tables of the section. Default: the own tables as they are."""
        frames = [(name, results.frame(name)) for name in self.own]
        return [
            Sheet(
                name,
                *_columns_and_rows(frame),
                name,
                len(frame) > 12,
                [units(row) for row in rows(frame)],
            )
            for name, frame in frames
            if frame is not None
        ]

    def figures(self, results: Results) -> list[Plate]:
        """The figures that these tables allow, in the order of the section."""
        return []

    def views(self, results: Results) -> list[View]:
        """The interactive views of the section; figures stand in for them on paper and where no script runs."""
        return []

    def numbers(self, results: Results) -> list[Number]:
        """What two runs are compared by. Default: values with intervals of the own tables."""
        return [number for name in self.own for number in table_numbers(results.frame(name))]

    def curves(self, results: Results) -> list[Curve]:
        """Lines that two runs are compared by. Default: values with intervals of the own tables that have layers."""
        return [line for name in self.own for line in table_curves(results.frame(name))]


def _columns_and_rows(frame: DataFrame) -> tuple[list[Any], list[list[Any]]]:
    """A table as it is shown: `†` says in the cells what the column ``too_narrow`` says in the file."""
    shown = frame.drop(columns="too_narrow", errors="ignore")
    return [str(column) for column in shown], plain_rows(shown)


def plain_rows(frame: DataFrame) -> list[list[Any]]:
    """Rows of a frame, None where a value is missing."""
    found: list[list[Any]] = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return found

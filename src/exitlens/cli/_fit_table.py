"""How does a table fit a terminal: an interval in one column, headings wrapped, what has no room left out and named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from exitlens.cli._wrap import atoms
from exitlens.report.text import TOO_NARROW, interval_ends

__all__ = ["Fitted", "Piece", "fit"]

GAP = 3  # cells between two columns
LABEL = 28  # cells up to which a label column is never narrowed
WORDS = 14  # cells down to which other columns of words may be, where no word of theirs is longer

# A number as text, with its interval and the mark behind it, or what stands for a missing one.
_NUMBER = re.compile(rf"(?:[<≥] ?)?[+−-]?(?:\d[\d.,]*|∞)(?:e[+−-]?\d+)?%?(?: \[[^\[\]]*\])?{TOO_NARROW}? *|–")


@dataclass(slots=True, eq=False)
class Piece:
    """A column as text.

    ``shrink``: its cells are cut rather than wrapped. ``main``: kept before all others but the labels.
    """

    name: str
    cells: list[str]
    numeric: bool
    shrink: bool = False
    main: bool = False
    label: bool = False
    width: int = 0

    def __post_init__(self) -> None:
        if not self.numeric and not self.shrink and any(cell != "–" for cell in self.cells):
            self.numeric = all(_NUMBER.fullmatch(cell) for cell in self.cells)

    @property
    def natural(self) -> int:
        """Cells that the column would like."""
        return max(cell_len(self.name), _widest(self.cells))

    @property
    def least(self) -> int:
        """Cells below which it would say something else: numbers are never cut, headings wrap between words."""
        heading = _widest(atoms(self.name))
        inside = _widest(self.cells)
        if self.numeric:
            return max(heading, inside)
        if self.label:
            return max(heading, min(inside, LABEL))
        longest = 0 if self.shrink else max((_widest(atoms(cell)) for cell in self.cells), default=0)
        return max(heading, min(inside, max(WORDS, min(longest, LABEL))))

    @property
    def without_interval(self) -> Piece | None:
        """The column with its numbers alone; None where they have no interval."""
        if not self.numeric or not any("[" in cell for cell in self.cells):
            return None
        name = self.name.removesuffix(" [95%]")
        return Piece(name, [cell.partition(" [")[0] for cell in self.cells], True, main=self.main, label=self.label)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Columns with their widths; what had no room: columns, and intervals of columns that are there."""

    columns: list[Piece]
    left_out: list[str]


def fit(columns: Sequence[Piece], width: int) -> Fitted:
    """Columns that fit ``width`` cells.

    The columns that name a row (up to two of words at the beginning, else the first column) stay, then the main number
    (the first, unless another is ``main``); of the rest, from the left, whatever has room. Where columns with an
    interval have none, all but the main one stand without it before they are left out.
    """
    every = _with_intervals(columns)
    for i, column in enumerate(every):
        column.label = i == 0 or (i == 1 and not column.numeric and not every[0].numeric)
    # Beside its names a row has a number, before further words.
    marked = [column for column in every if column.main]
    main = next((column for column in marked or every if column.numeric and not column.label), None)
    taken = _chosen(every, main, width, {})
    short = {column: alone for column in every if column is not main and (alone := column.without_interval) is not None}
    if any(column not in taken for column in short):
        others = _chosen(every, main, width, short)
        if len(others) > len(taken):
            taken = others
    kept = [taken[column] for column in every if column in taken]
    for column in kept:
        column.width = column.least
    room = width - _total(column.width for column in kept)
    for column in sorted(kept, key=lambda column: (not column.label, column.numeric)):
        more = max(min(column.natural - column.width, room), 0)
        column.width += more
        room -= more
    bare = [f"the interval of {taken[column].name}" for column in every if taken.get(column, column) is not column]
    return Fitted(kept, [column.name for column in every if column not in taken] + bare)


def _chosen(every: Sequence[Piece], main: Piece | None, width: int, short: dict[Piece, Piece]) -> dict[Piece, Piece]:
    """The columns that have room, each as it is or as ``short`` has it; where room is left, with their interval."""
    taken: dict[Piece, Piece] = {}
    order = sorted(every, key=lambda column: (not column.label, column is not main))
    for column in order:
        form = short.get(column, column)
        if column.label or _total([*(other.least for other in taken.values()), form.least]) <= width:
            taken[column] = form
    for column in order:
        if taken.get(column, column) is not column:
            others = [form.least for each, form in taken.items() if each is not column]
            if _total([*others, column.least]) <= width:
                taken[column] = column
    return taken


def _widest(texts: Sequence[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _total(widths: Iterable[int]) -> int:
    listed = list(widths)
    return sum(listed) + GAP * (len(listed) - 1)


def _with_intervals(columns: Sequence[Piece]) -> list[Piece]:
    """A number and the ends of its interval, ``x``, ``… low``, ``… high``, as one column ``x [95%]``."""
    ends = [i for i in interval_ends([column.name for column in columns]) if _numbers(columns[i - 2 : i + 1])]
    within = {place for end in ends for place in (end - 2, end - 1)}
    out: list[Piece] = []
    for i, column in enumerate(columns):
        if i in ends:
            three = columns[i - 2 : i + 1]
            both = zip(*(each.cells for each in three), strict=True)
            cells = [_interval(*cells) for cells in both]
            out.append(Piece(f"{three[0].name} [95%]", cells, True, main=three[0].main))
        elif i not in within:
            out.append(Piece(column.name, column.cells, column.numeric, column.shrink, column.main))
    return out


def _numbers(columns: Sequence[Piece]) -> bool:
    """Whether these are a number and its ends; where no row has an interval, the ends are missing in all."""
    return columns[0].numeric and all(each.numeric or set(each.cells) <= {"–"} for each in columns[1:])


def _interval(value: str, low: str, high: str) -> str:
    """Of three cells one; the mark behind the upper end goes behind the interval, and so does the room kept for it."""
    end = high.rstrip(f"{TOO_NARROW} ")
    inside = value if "–" in (low, end) else f"{value} [{low}, {end}]"
    return inside + high[len(end) :]

"""How does a table fit a terminal: an interval in one column, headings wrapped, what has no room left out and named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from exitlens.report.text import TOO_NARROW, interval_ends

__all__ = ["Fitted", "Piece", "fit"]

GAP = 3  # cells between two columns
EDGES = 2  # cells before the first and after the last
LABEL = 28  # cells up to which a label column is never narrowed
WORDS = 14  # cells down to which other columns of words may be


@dataclass(slots=True, eq=False)
class Piece:
    """A column as text. ``shrink``: its cells are cut rather than wrapped."""

    name: str
    cells: list[str]
    numeric: bool
    shrink: bool = False
    label: bool = False
    width: int = 0

    @property
    def natural(self) -> int:
        """Cells that the column would like."""
        return max(cell_len(self.name), self._widest(self.cells))

    @property
    def least(self) -> int:
        """Cells below which it would say something else: numbers are never cut, headings wrap between words."""
        heading = self._widest(self.name.split(" "))
        inside = self._widest(self.cells)
        if self.numeric:
            return max(heading, inside)
        return max(heading, min(inside, LABEL if self.label else WORDS))

    @staticmethod
    def _widest(texts: Sequence[str]) -> int:
        return max(map(cell_len, texts), default=0)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Columns with their widths, and the names of those that had no room."""

    columns: list[Piece]
    left_out: list[str]


def fit(columns: Sequence[Piece], width: int) -> Fitted:
    """Columns that fit ``width`` cells.

    The columns that name a row (up to two of words at the beginning, else the first column) and the first number stay;
    of the rest, from the left, whatever has room.
    """
    every = _with_intervals(columns)
    for i, column in enumerate(every):
        column.label = i == 0 or (i == 1 and not column.numeric and not every[0].numeric)
    # Beside its names a row has a number, before further words.
    main = next((column for column in every if column.numeric and not column.label), None)
    taken: list[Piece] = []
    for column in sorted(every, key=lambda column: (not column.label, column is not main)):
        if column.label or _total([*(other.least for other in taken), column.least]) <= width:
            taken.append(column)
    kept = [column for column in every if column in taken]
    left_out = [column.name for column in every if column not in taken]
    for column in kept:
        column.width = column.least
    room = width - _total(column.width for column in kept)
    for column in sorted(kept, key=lambda column: (not column.label, column.numeric)):
        more = max(min(column.natural - column.width, room), 0)
        column.width += more
        room -= more
    return Fitted(kept, left_out)


def _total(widths: Iterable[int]) -> int:
    listed = list(widths)
    return sum(listed) + GAP * (len(listed) - 1) + EDGES


def _with_intervals(columns: Sequence[Piece]) -> list[Piece]:
    """A number and the ends of its interval, ``x``, ``… low``, ``… high``, as one column ``x [95%]``."""
    ends = [i for i in interval_ends([column.name for column in columns]) if _numbers(columns[i - 2 : i + 1])]
    within = {place for end in ends for place in (end - 2, end - 1)}
    out: list[Piece] = []
    for i, column in enumerate(columns):
        if i in ends:
            three = columns[i - 2 : i + 1]
            both = zip(*(each.cells for each in three), strict=True)
            out.append(Piece(f"{three[0].name} [95%]", [_interval(*cells) for cells in both], True))
        elif i not in within:
            out.append(Piece(column.name, column.cells, column.numeric, column.shrink))
    return out


def _numbers(columns: Sequence[Piece]) -> bool:
    return all(column.numeric for column in columns)


def _interval(value: str, low: str, high: str) -> str:
    """Of three cells one; the mark behind the upper end goes behind the interval, and so does the room kept for it."""
    end = high.rstrip(f"{TOO_NARROW} ")
    inside = value if "–" in (low, end) else f"{value} [{low}, {end}]"
    return inside + high[len(end) :]

"""Records of tables: what a row is, and each column's meaning and unit; tables are checked and documented by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exitlens.errors import RunError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["NARROW", "Field", "TableSpec", "with_interval"]


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its name, its meaning in one line, its unit (empty: text, a number without unit, or yes and no).

    ``optional``: it is there only with some settings.
    """

    name: str
    meaning: str
    unit: str = ""
    optional: bool = False


NARROW = Field(
    "too_narrow",
    "whether an interval of the row has so few units that it is too narrow (3 to 14; `†` where tables "
    "are shown); missing: not known",
)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table of a run directory: its name, what a row is, its columns in order.

    ``printed``: ``--json`` holds it. ``shared``: other studies write rows of it too. ``rests_on``: the columns that
    count the units of the row's intervals; none: found by their names.
    """

    name: str
    row: str
    fields: tuple[Field, ...]
    printed: bool = False
    shared: bool = False
    rests_on: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The names of its columns, but for the mark that :meth:`marked` adds."""
        return [field.name for field in self.fields if field is not NARROW]

    def marked(self, frame: DataFrame, n: Sequence[float] | int | None = None) -> DataFrame:
        """The frame with its column ``too_narrow``, where it is declared and not there yet.

        Args:
            frame: The table.
            n: Units behind each row's intervals [rows], or behind all of them; None: they stand in the frame.
        """
        if NARROW not in self.fields or NARROW.name in frame.columns or not len(frame.columns):
            return frame
        from exitlens.report.frames import rows
        from exitlens.report.text import is_number
        from exitlens.report.words import mark, units

        known = [n] * len(frame) if isinstance(n, int) else n
        marks: list[bool | None] = []
        for i, row in enumerate(rows(frame)):
            count = units(row, self.rests_on) if known is None else int(known[i]) if is_number(known[i]) else None
            ends = [name for name in row if name == "low" or name.endswith("_low")]
            held = any(is_number(row[name]) for name in ends)  # where there is no interval, none is too narrow
            marks.append(False if not held else None if count is None else bool(mark(count)))
        import pandas as pd

        told = pd.Series(marks, index=frame.index, dtype="bool" if None not in marks else "object")
        return frame.assign(too_narrow=told)

    def fits(self, frame: DataFrame) -> bool:
        """Whether the frame's columns are those declared. A frame without columns holds nothing, and fits."""
        return not any(self._amiss(frame))

    def _amiss(self, frame: DataFrame) -> tuple[list[str], list[str]]:
        """Columns that are missing, and columns that nobody declared."""
        have = [str(name) for name in frame.columns]
        if not have:
            return [], []
        known = [field.name for field in self.fields]
        # Tables of earlier versions have no marks.
        needed = [field.name for field in self.fields if not field.optional and field is not NARROW]
        missing = [name for name in needed if name not in have]
        return missing, [name for name in have if name not in known]

    def check(self, frame: DataFrame) -> None:
        """Raise RunError when the frame's columns are not those declared. A frame without columns holds nothing."""
        missing, unknown = self._amiss(frame)
        if missing or unknown:
            found = "; ".join(
                f"{what} {', '.join(names)}" for what, names in (("without", missing), ("undeclared", unknown)) if names
            )
            raise RunError(f"table '{self.name}' is not as its study declares it ({found}): mend the study's tables")


def with_interval(name: str, meaning: str, unit: str = "", *, optional: bool = False) -> tuple[Field, Field, Field]:
    """A value and the two ends of its 95% interval: ``name``, ``name_low``, ``name_high``."""
    return (
        Field(name, meaning, unit, optional),
        Field(f"{name}_low", f"lower end of the 95% interval of `{name}`", unit, optional),
        Field(f"{name}_high", f"upper end of the 95% interval of `{name}`", unit, optional),
    )

"""Records of tables: what a row is, and each column's meaning and unit; tables are checked and documented by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exitlens.errors import RunError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Field", "TableSpec", "with_interval"]


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its name, its meaning in one line, its unit (empty: text, a number without unit, or yes and no).

    ``optional``: it is there only with some settings.
    """

    name: str
    meaning: str
    unit: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table of a run directory: its name, what a row is, its columns in order.

    ``printed``: ``--json`` holds it. ``shared``: other studies write rows of it too.
    """

    name: str
    row: str
    fields: tuple[Field, ...]
    printed: bool = False
    shared: bool = False

    def fits(self, frame: DataFrame) -> bool:
        """Whether the frame's columns are those declared. A frame without columns holds nothing, and fits."""
        return not any(self._amiss(frame))

    def _amiss(self, frame: DataFrame) -> tuple[list[str], list[str]]:
        """Columns that are missing, and columns that nobody declared."""
        have = [str(name) for name in frame.columns]
        if not have:
            return [], []
        known = [field.name for field in self.fields]
        missing = [field.name for field in self.fields if field.name not in have and not field.optional]
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

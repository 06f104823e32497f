"""Reading tables for drawing: a run's results, rows as plain dictionaries, groups in the order in which they appear."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from exitlens.report.text import to_float, visible

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Results", "Row", "column", "distinct", "errors", "evenly", "groups", "layers_of", "rows", "spread"]

Row: TypeAlias = Mapping[str, Any]
T = TypeVar("T")


class Results:
    """What a run made and a chapter may look at: its tables that have rows, and its manifest.

    Measured times stand in the manifest: two runs with one seed have the same tables and never the same seconds.
    """

    def __init__(self, tables: Mapping[str, DataFrame], manifest: Mapping[str, Any] | None = None) -> None:
        self.tables = {name: frame for name, frame in tables.items() if len(frame)}
        self.manifest: Mapping[str, Any] = {} if manifest is None else manifest

    def __contains__(self, name: str) -> bool:
        return name in self.tables

    def frame(self, name: str) -> DataFrame | None:
        """The table, or None where the run has none."""
        return self.tables.get(name)

    def rows(self, name: str, **equal: object) -> list[Row]:
        """The table's rows as dictionaries, see :func:`rows`."""
        return rows(self.tables.get(name), **equal)

    @property
    def model(self) -> str:
        """The model's name, safe to show."""
        model = self.manifest.get("model")
        name = visible(model.get("name")) if isinstance(model, Mapping) else ""
        return name or "model not recorded"


def rows(frame: DataFrame | None, **equal: object) -> list[Row]:
    """The frame's rows as dictionaries, those only whose columns equal the given values; no frame: no rows.

    A column that the frame does not have matches nothing.
    """
    if frame is None:
        return []
    for name, value in equal.items():
        if name not in frame.columns:
            return []
        frame = frame[frame[name] == value]
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def distinct(items: Iterable[Row], name: str) -> list[Any]:
    """The different values of a column, in order of appearance."""
    return list(dict.fromkeys(row.get(name) for row in items))


def groups(items: Iterable[Row], name: str) -> dict[Any, list[Row]]:
    """Rows by the value of a column, in order of appearance."""
    out: dict[Hashable, list[Row]] = {}
    for row in items:
        out.setdefault(row.get(name), []).append(row)
    return out


def column(items: Iterable[Row], name: str) -> list[float]:
    """A column as floats, NaN where missing."""
    return [to_float(row.get(name)) for row in items]


def layers_of(items: Iterable[Row]) -> list[int]:
    """The different layers, sorted."""
    return sorted({int(row["layer"]) for row in items if to_float(row.get("layer")) == to_float(row.get("layer"))})


def evenly(values: list[int], count: int) -> list[int]:
    """``count`` of the sorted values, evenly spaced and ending with the last; all of them when there are fewer."""
    if len(values) <= count:
        return values
    step = len(values) / count
    return [values[round((i + 1) * step) - 1] for i in range(count)]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of the items, evenly spread, first and last included."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in sorted({round(i * (len(items) - 1) / (most - 1)) for i in range(most)})]


def errors(items: Iterable[Row], value: str) -> tuple[list[float], list[float]]:
    """Distances from ``value`` down to ``{value}_low`` and up to ``{value}_high``; 0 where no interval is known.

    matplotlib wants distances that are not negative; rounding may put a bound slightly on the wrong side.
    """
    down: list[float] = []
    up: list[float] = []
    for row in items:
        middle, low, high = (to_float(row.get(name)) for name in (value, f"{value}_low", f"{value}_high"))
        down.append(max(middle - low, 0.0) if middle - low == middle - low else 0.0)
        up.append(max(high - middle, 0.0) if high - middle == high - middle else 0.0)
    return down, up

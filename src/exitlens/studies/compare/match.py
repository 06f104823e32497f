"""Which numbers, and which curves, of several runs answer to each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

__all__ = ["Matched", "capital", "match", "of_text", "short_name"]


class _Item(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def of(self) -> Mapping[str, str]: ...
    @property
    def main(self) -> bool: ...


T = TypeVar("T", bound=_Item)


@dataclass(slots=True)
class Matched(Generic[T]):
    """One item of each run that has it, by the run's place; ``study``: which offers it."""

    study: str
    name: str
    items: dict[int, T] = field(default_factory=dict)

    @property
    def first(self) -> T:
        """The item of the first run that has one."""
        return self.items[min(self.items)]


def match(runs: Sequence[Mapping[str, Sequence[T]]]) -> list[Matched[T]]:
    """Items of several runs (by study) put beside each other.

    Equal names and equal ``of`` belong together, whichever study offers them. Of what is then left of a name, the main
    items belong together (the first decoder of each run), and so do two that are alone on both sides (a logit and a
    tuned lens). Everything else stands alone: to pair by order would compare what nobody meant to compare.
    """
    rows: list[Matched[T]] = []
    for place, offered in enumerate(runs):
        mine: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[str, T]] = {}
        for study, items in offered.items():
            for item in items:  # two studies may offer the same number: the first one's stands
                mine.setdefault((item.name, tuple(sorted(item.of.items()))), (study, item))
        left: list[tuple[str, T]] = []
        for study, item in mine.values():
            row = next((r for r in rows if r.name == item.name and r.first.of == item.of), None)
            if row is None:
                left.append((study, item))
            else:
                row.items[place] = item
        for study, item in left:
            row = _partner(rows, place, item, [other for _, other in left]) if place else None
            if row is None:
                rows.append(Matched(study, item.name, {place: item}))
            else:
                row.items[place] = item
    order = {name: i for i, name in enumerate(dict.fromkeys(study for offered in runs for study in offered))}
    names = {name: i for i, name in enumerate(dict.fromkeys(row.name for row in rows))}
    return sorted(rows, key=lambda row: (order[row.study], names[row.name]))


def _partner(rows: Sequence[Matched[T]], place: int, item: T, left: Sequence[T]) -> Matched[T] | None:
    """The row that an item without its equal belongs to."""
    free = [row for row in rows if row.name == item.name and place not in row.items and 0 in row.items]
    if item.main:
        leading = next((row for row in free if row.first.main), None)
        if leading is not None:
            return leading
    same = [other for other in left if other.name == item.name]
    return free[0] if len(free) == 1 and len(same) == 1 and free[0].first.of.keys() == item.of.keys() else None


def of_text(of: Mapping[str, str], beside: Mapping[str, str] | None = None) -> str:
    """``judge similarity, decoder vanilla``; of what differs from ``beside`` only where that is given."""
    return ", ".join(f"{name} {value}" for name, value in of.items() if beside is None or beside.get(name) != value)


def short_name(text: str) -> str:
    """What something is of, short enough for a table: without the words that its value makes plain.

    A judge goes without the details of how its metric is computed; the Parquet tables have the names in full.
    """
    plain = re.sub(r" \([^()]*\)|, TruthfulQA's published protocol", "", text)
    plain = re.sub(r" ([<>≤≥]) ", "\u00a0\\1\u00a0", plain)  # a threshold stays on one line
    return re.sub(r"(^|, )(?:judge|decoder|setting|method|kind|policy|role) ", r"\1", plain)


def capital(text: str) -> str:
    """The text with a capital at its beginning, and AUROC as it is."""
    return text[:1].upper() + text[1:]

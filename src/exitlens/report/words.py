"""The grammar of a headline: ranges, lists, values with intervals, and what an interval allows to be said.

A finding is one text: the headline, then its details after a line break (text from data never holds one). Sentences
read numbers off the tables; none is computed. Where the largest of many layers is named, the sentence says that it was
chosen after looking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exitlens.report.frames import Results, Row
from exitlens.report.text import TOO_NARROW, interval_text, is_number, number_text, p_text, to_float, visible

__all__ = [
    "LEVEL",
    "apart",
    "cell",
    "count",
    "counted",
    "excludes",
    "interval_reservation",
    "join",
    "layer_list",
    "layers_text",
    "mark",
    "narrow_tables",
    "p_equals",
    "ranges",
    "reservation",
    "set_text",
    "share_text",
    "shown",
    "sizes",
    "units",
]

LEVEL = 0.05  # of every test


def ranges(numbers: Iterable[int]) -> str:
    """``1–3, 7`` for 1, 2, 3, 7."""
    out: list[list[int]] = []
    for n in sorted(set(numbers)):
        if out and n == out[-1][-1] + 1:
            out[-1].append(n)
        else:
            out.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in out)


def layers_text(numbers: Sequence[int]) -> str:
    """``layer 3``, ``layers 3–5``."""
    return f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {ranges(numbers)}"


def layer_list(value: object) -> str:
    """The layers that folds chose, a table's ``12,14,12``, as ``layers 12, 14``; empty where none is told."""
    told = sorted({int(text) for text in visible(value).split(",") if text.strip().isdigit()})
    return layers_text(told) if told else ""


def counted(number: int | str, noun: str) -> str:
    """``1 layer``, ``30 layers``, ``40 and 38 questions``: the noun agrees with the number before it."""
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"


def set_text(value: object) -> str:
    """A number as somebody set it: ``3`` for 3.0, ``0.999`` with every digit that it has, ``–`` when missing."""
    return f"{to_float(value):.6g}" if is_number(value) else "–"


def join(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def shown(row: Row, name: str, digits: int = 3) -> str:
    """The row's value of ``name`` with its interval, for a sentence."""
    return interval_text(row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high"), digits)


def cell(row: Row, name: str, digits: int = 3, n: Sequence[str] = ()) -> str:
    """:func:`shown` for a table: a too narrow interval is marked, and where there is none for want of units, why.

    ``n``: the columns that the interval rests on; none: those of :func:`units`.
    """
    text, rests_on = shown(row, name, digits), units(row, n)
    if rests_on is None or not is_number(row.get(name)):
        return text
    return text + (mark(rests_on) if "[" in text else _none(rests_on))


def mark(n: int | None) -> str:
    """The mark behind an interval over ``n`` units: ``†`` when they are too few, else ''; None: not known."""
    if n is None:
        return ""
    from exitlens.stats import too_narrow

    return TOO_NARROW if too_narrow(n) else ""


def _none(n: int) -> str:
    """Why a value over ``n`` units has no interval, where they are so few that none has."""
    return "" if mark(n) else interval_reservation(n)


def units(row: Row, n: Sequence[str] = ()) -> int | None:
    """How many independent units the row's intervals rest on: the least of the columns ``n``; None: not known.

    Without ``n`` they are found by name, see ``_UNITS``.
    """
    names = n or next((set_ for set_ in _UNITS if all(name in row for name in set_)), ())
    known = [int(to_float(row[name])) for name in names if is_number(row.get(name))]
    return min(known) if known else None


def share_text(value: object, low: object = None, high: object = None, digits: int = 0) -> str:
    """A share in per cent, with its interval where there is one: ``55% [40, 70]``."""
    if not is_number(value):
        return "–"
    numbers = [number_text(100 * to_float(each), digits) for each in (value, low, high)]
    return f"{numbers[0]}%" + (f" [{numbers[1]}, {numbers[2]}]" if is_number(low) and is_number(high) else "")


def reservation(row: Row, n: Sequence[str]) -> str:
    """`` (no interval: n = 2)`` or that it is too narrow; '' when the least of the columns ``n`` is large enough."""
    rests_on = units(row, n) if n else None
    return "" if rests_on is None else interval_reservation(rests_on)


def interval_reservation(n: int) -> str:
    """What to say behind an interval over ``n`` units: `` (interval too narrow: n = 8)``, '' where they are enough."""
    from exitlens.stats import interval_note  # scipy stands behind it, and most sentences do without

    note = interval_note(n)
    return f" ({note})" if note else ""


# What an interval of a table is over: the first of these sets of columns that the table has.
_UNITS = (("n_test",), ("n_correct", "n_incorrect"), ("n_answers",), ("n",))


def narrow_tables(results: Results, names: Iterable[str]) -> str:
    """A sentence on the tables ``names`` whose intervals rest on too few units; '' where all rest on enough."""
    least: dict[str, int] = {}
    for name in names:
        frame = results.frame(name)
        if frame is None or not any(str(column).rpartition("_")[2] == "low" for column in frame.columns):
            continue
        units = next((set_ for set_ in _UNITS if set(set_) <= set(frame.columns)), ())
        known = [int(value) for unit in units for value in frame[unit].dropna()]
        if known and interval_reservation(min(known)):
            least[name] = min(known)
    if not least:
        return ""
    told = join([f"{n} in {name}" for name, n in least.items()])
    return (
        f"Some intervals rest on so few cases (the fewest: {told}) that they are too narrow: they are marked †; over "
        "one or two cases none is given."
    )


def count(row: Row, name: str) -> str:
    """A whole number of the row, ``?`` where it is missing."""
    return str(int(to_float(row.get(name)))) if is_number(row.get(name)) else "?"


def sizes(items: Iterable[Row], name: str) -> str:
    """The different whole numbers of a column, joined."""
    return join(list(dict.fromkeys(str(int(to_float(row[name]))) for row in items if is_number(row.get(name)))))


def p_equals(value: object) -> str:
    """``= 0.031`` or ``< 0.001``, to stand after "p"."""
    text = p_text(value)
    return text if text.startswith("<") else f"= {text}"


def excludes(row: Row, name: str, value: float) -> bool:
    """True when the row has an interval of ``name`` and it excludes ``value``."""
    low, high = to_float(row.get(f"{name}_low")), to_float(row.get(f"{name}_high"))
    return low > value or high < value


def apart(one: Row, other: Row, name: str, better: str, worse: str) -> str:
    """Which of two rows is ahead, where their intervals do not overlap.

    A cautious rule: two intervals that overlap may still belong to different values.
    """
    if to_float(one.get(f"{name}_low")) > to_float(other.get(f"{name}_high")):
        return f"{better}, and the two intervals do not overlap."
    if to_float(one.get(f"{name}_high")) < to_float(other.get(f"{name}_low")):
        return f"{worse}, and the two intervals do not overlap."
    return "the intervals overlap, so this table shows no significant difference."

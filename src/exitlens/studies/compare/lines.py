"""A number of several runs as a line of a table: its name, its value in each run, each difference to the first."""

from __future__ import annotations

import re
from collections.abc import Sequence

from exitlens.report.frames import Row
from exitlens.report.text import interval_text, is_number, number_text, p_text, to_float, visible
from exitlens.report.words import mark
from exitlens.studies.compare.match import short_name

__all__ = ["heads", "label", "line", "signed", "terminal_line"]


def label(row: Row) -> str:
    """``answers judged correct (judge similarity, decoder vanilla)``; the tables have the names in full."""
    of, own = (short_name(visible(row.get(name))) for name in ("of", "own"))
    told = "; ".join(filter(None, (of, f"{visible(row['run'])}: {own}" if own else "")))
    return visible(row["number"]) + (f" ({told})" if told else "")


def heads(names: Sequence[str]) -> list[str]:
    """The columns of a line."""
    head = ["number", *names]
    for name in names[1:]:
        head += [f"{name} − {names[0]}" if len(names) > 2 else "difference", "p Holm", "pairing"]
    return head


def line(lines: Sequence[Row], names: Sequence[str]) -> list[object]:
    """A number as a line: its value in each run, then each difference to the first."""
    by_run = {row["run"]: row for row in lines}
    out: list[object] = [label({**lines[0], "own": ""})]  # each run's own stands with its value
    for name in names:
        row = by_run.get(name)
        out.append("–" if row is None else _value(row))
    for name in names[1:]:
        row = by_run.get(name, {})
        out += [_difference(row, by_run.get(names[0], {})), p_text(row.get("p_holm")), _pairing(row)]
    return out


def terminal_line(lines: Sequence[Row], names: Sequence[str]) -> list[object]:
    """:func:`line` where columns are narrow: units and remarks stand with the name, sizes in a column of their own."""
    by_run = {row["run"]: row for row in lines}
    unit = visible(lines[0].get("unit") or "")
    told = [
        f"{visible(name)}: {short_name(visible(by_run[name][key]))}"
        for name in names
        for key in ("own", "remark")
        if name in by_run and by_run[name].get(key)
    ]
    number = ", ".join(filter(None, (label({**lines[0], "own": ""}), unit)))
    out: list[object] = ["; ".join([number, *told])]
    out += [_number(by_run[name]) if name in by_run else "–" for name in names]
    for name in names[1:]:
        row = by_run.get(name, {})
        pairing = _pairing(row)
        brief = pairing.split(":")[0] if pairing.startswith("unpaired") else re.sub(r" \(.*", "", pairing)
        out += [_difference(row, by_run.get(names[0], {})), p_text(row.get("p_holm")), brief]
    sizes = [number_text(by_run.get(name, {}).get("n"), 0) for name in names]
    return [*out, sizes[0] if len(set(sizes)) == 1 else " / ".join(sizes)]


def _difference(row: Row, first: Row) -> str:
    return signed(row) + _few(row, first) if is_number(row.get("difference")) else "–"


def _number(row: Row) -> str:
    """A run's value with its interval, marked where that is too narrow."""
    text = interval_text(row.get("value"), row.get("value_low"), row.get("value_high"))
    n = to_float(row.get("n"))
    return text + (mark(int(n)) if n > 0 and "[" in text else "")


def _value(row: Row) -> str:
    text, n = _number(row), to_float(row.get("n"))
    text += f" {row['unit']}" if row.get("unit") else ""
    more = [f"n\u00a0=\u00a0{n:.0f}"] if n > 0 else []
    more += [short_name(visible(row[name])) for name in ("own", "remark") if row.get(name)]
    return f"{text} ({'; '.join(more)})" if more else text


def signed(row: Row) -> str:
    """The difference to the first run, with its sign and interval."""
    text = interval_text(row.get("difference"), row.get("difference_low"), row.get("difference_high"))
    return ("+" if to_float(row.get("difference")) > 0 else "") + text


def _few(row: Row, first: Row) -> str:
    """The mark of a difference: its interval rests on the questions that both runs share, else on the smaller run."""
    if not is_number(row.get("difference_low")):
        return ""
    shared = to_float(row.get("n_paired"))
    known = [n for n in ([shared] if shared > 0 else [to_float(run.get("n")) for run in (row, first)]) if n > 0]
    return mark(int(min(known))) if known else ""


def _pairing(row: Row) -> str:
    text = visible(row.get("pairing"))
    n = to_float(row.get("n_paired"))
    return text.replace("paired by question", f"paired, n\u00a0=\u00a0{n:.0f}", 1) if n > 0 else text or "–"

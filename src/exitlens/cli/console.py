"""How is a result printed: tables, JSON, and text of models and data made safe for a terminal."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exitlens.cli._streams import as_measured
from exitlens.cli._wrap import Stream, cut, terminal_width, wrap
from exitlens.errors import InputError
from exitlens.report.text import Column, interval_ends, narrow_legend

if TYPE_CHECKING:
    from rich.text import Text

    from exitlens.cli._fit_table import Piece
    from exitlens.report.chapter import Part

__all__ = [
    "Column",
    "echo",
    "given_text",
    "in_lines",
    "plain",
    "print_findings",
    "print_json",
    "print_parts",
    "print_table",
    "safe",
    "say",
]


# Control characters, and the marks that reorder a whole line of text (right-to-left letters themselves are fine).
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def safe(text: str) -> str:
    """Text with control characters written out (``\\x1b``, ``\\n``): it cannot move a cursor or clear a screen."""
    return _UNSAFE.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def echo(text: str = "") -> None:
    """A line of results on the output stream; control characters are written out. A terminal's lines end in words."""
    sys.stdout.write(in_lines(safe(text), sys.stdout) + "\n")


def given_text(text: str) -> str:
    """``text``; for ``-`` what standard input holds, without the line break at its end. Raises InputError."""
    if text != "-":
        return text
    try:
        found = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 (byte 0x{error.object[error.start]:02x}): send UTF-8") from None
    except (AttributeError, OSError, ValueError):
        raise InputError("standard input cannot be read, and the text is '-': give a text, or send one") from None
    return found.removesuffix("\n").removesuffix("\r")


def say(text: str, quiet: bool = False) -> None:
    """A remark on the error stream, unless ``quiet``."""
    if not quiet:
        sys.stderr.write(in_lines(safe(text), sys.stderr) + "\n")
        sys.stderr.flush()


def in_lines(text: str, stream: Stream) -> str:
    """``text`` as it is, or in a terminal, where it is longer than a line, broken between words."""
    if not stream.isatty():
        return text
    from rich.cells import cell_len

    width = terminal_width(stream)
    return text if cell_len(text) <= width else "\n".join(wrap(text, width))


def print_findings(findings: Iterable[str]) -> None:
    """Sentences on the output stream, each with its details in lines of their own; in a terminal as a list."""
    listed = sys.stdout.isatty()
    for finding in findings:
        for place, line in enumerate(finding.split("\n")):
            if listed:
                first = "  " if place else "• "
                sys.stdout.write("\n".join(wrap(safe(line), terminal_width(sys.stdout), first, "  ")) + "\n")
            else:
                echo(line)


def print_table(
    columns: Sequence[str | Column],
    rows: Sequence[Sequence[Any]],
    *,
    title: str | None = None,
    note: str | None = None,
    n: Sequence[int | None] = (),
) -> None:
    """Print rows under headings on the output stream.

    In a terminal the table fits its width: a number and its interval share a column, columns with ``shrink`` are cut,
    other words wrap, and columns of numbers without room are left out and named. Elsewhere every cell is whole, and
    columns are two spaces apart. None is printed as "–"; strings are never read as markup. ``n``: the
    units that each row's intervals rest on; where they are too few, the interval is marked, and a line below says so.
    """
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    # From here on nothing is left that could drive a terminal, or take more room than is measured.
    heads = [dataclasses.replace(head, name=_shown(head.name)) for head in heads]
    cells = [[_shown(_cell(value, head.format)) for value, head in zip(row, heads, strict=True)] for row in rows]
    title, note = (None if text is None else _shown(text) for text in (title, note))
    numeric = [
        any(_is_number(row[i]) for row in rows) and all(row[i] is None or _is_number(row[i]) for row in rows)
        for i in range(len(heads))
    ]
    _mark([head.name for head in heads], cells, n)
    if sys.stdout.isatty():
        _draw(heads, cells, numeric, title, note)
        return
    lines = [] if title is None else [title]
    lines += _align([[head.name for head in heads], *cells], numeric)
    lines += _notes(note, (cell for row in cells for cell in row))
    sys.stdout.write("\n".join(lines) + "\n")


def print_parts(title: str, parts: Iterable[Part]) -> None:
    """The tables of a chapter, the first under the chapter's title, an empty line after each."""
    for place, part in enumerate(parts):
        own = part.title if place == 0 else part.title[:1].upper() + part.title[1:]
        head = ": ".join(filter(None, (title if place == 0 else "", own)))
        print_table(part.columns, part.rows, title=head, note=part.note, n=part.n)
        echo()


def _shown(text: str) -> str:
    return as_measured(safe(text), sys.stdout)


def _mark(names: Sequence[str], cells: Sequence[list[str]], n: Sequence[int | None]) -> None:
    """Mark the upper ends of intervals over too few units; others of the column keep the room, so that digits align."""
    from exitlens.report.words import mark

    marks = [mark(units) for units in n]
    for end in interval_ends(names) if any(marks) else ():
        for row, sign in zip(cells, marks, strict=True):
            row[end] += (sign if row[end] != "–" else "") or " "


def _notes(note: str | None, cells: Iterable[str]) -> list[str]:
    """The lines below a table."""
    legend = narrow_legend(cell.strip() for cell in cells)
    return [line for line in (note, legend) if line]


def _draw(
    heads: Sequence[Column],
    cells: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    title: str | None,
    note: str | None,
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from exitlens.cli._fit_table import fit

    width = terminal_width(sys.stdout)
    console = Console(file=sys.stdout, highlight=False, width=width)
    columns = list(zip(*cells, strict=True)) or [()] * len(heads)
    fitted = fit([_piece(*column) for column in zip(heads, columns, numeric, strict=True)], width)
    notes = _notes(note, (cell for piece in fitted.columns for cell in piece.cells))
    if fitted.left_out:
        notes.append(f"no room for {', '.join(fitted.left_out)}: a wider terminal, a pipe and --json have everything")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
    names = [cut(piece.name, piece.width) for piece in fitted.columns]
    tallest = max(map(len, names), default=0)
    for piece, lines in zip(fitted.columns, names, strict=True):  # headings end above the rule
        heading = Text("\n" * (tallest - len(lines)) + "\n".join(lines))
        table.add_column(heading, justify="right" if piece.numeric else "left", width=piece.width)
    for row in zip(*(_cells(piece) for piece in fitted.columns), strict=True):
        table.add_row(*row)
    # The terminal's own colours only: dim text would be too faint on a light ground.
    if title is not None:
        console.print(Text("\n".join(wrap(title, width)), style="bold"))
    console.print(table)
    if notes:
        console.print(Text("\n".join(line for text in notes for line in wrap(text, width))))


def _piece(head: Column, cells: Sequence[str], numeric: bool) -> Piece:
    from exitlens.cli._fit_table import Piece

    return Piece(head.name, list(cells), numeric, head.shrink, head.main)


def _cells(piece: Piece) -> Iterator[Text]:
    """A column's cells as they are drawn: cut to one line where it may be, else broken between words."""
    from rich.text import Text

    for cell in piece.cells:
        if piece.shrink and not piece.label:
            yield Text(cell, no_wrap=True, overflow="ellipsis")
        else:
            rest = "  " if piece.label else ""  # where a label goes on is no row of its own
            yield Text(cell if piece.numeric else "\n".join(cut(cell, piece.width, rest)), no_wrap=True)


def _align(lines: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    from rich.cells import cell_len

    widths = [max(cell_len(cell) for cell in column) for column in zip(*lines, strict=True)]
    aligned = []
    for line in lines:
        padded = []
        for cell, width, to_right in zip(line, widths, right, strict=True):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if to_right else cell + space)
        aligned.append("  ".join(padded).rstrip())
    return aligned


def _is_number(value: object) -> bool:
    value = _scalar(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any, form: str) -> str:
    value = _scalar(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = format(value, form)
        if text.startswith("-") and not re.search("[1-9]", text):  # what rounds to 0 has no sign
            return ("+" if "+" in form else "") + text[1:]
        return text
    if isinstance(value, int):
        return format(value, form if form.endswith("d") else "d")
    return str(value)


def _scalar(value: Any) -> Any:
    """numpy and torch scalars as Python's own."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", 0) == 0 else value


def plain(value: Any) -> Any:
    """A value as JSON can hold it: dataclasses and mappings as objects, arrays as lists, NaN and infinities as null."""
    value = _scalar(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    listed = getattr(value, "tolist", None)
    if callable(listed):
        return plain(listed())
    if isinstance(value, Sequence | set | frozenset):
        return [plain(each) for each in value]
    return str(value)


def print_json(value: Any) -> None:
    """Print one JSON value on the output stream: full precision, ASCII only, so that any pipe takes it."""
    sys.stdout.write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")

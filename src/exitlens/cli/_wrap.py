"""Where may a line of a terminal break? Between words, never within a number and its interval."""

from __future__ import annotations

import os
import re
from typing import Protocol

from rich.cells import cell_len, chop_cells

__all__ = ["Stream", "atoms", "cut", "terminal_width", "wrap"]

# ``0.35 [0.22, 0.50]†`` is one atom; a no-break space (U+00A0) is no place to break either.
_ATOM = re.compile(r"(?:[^ \n]+ )?\[[\d.,%e+−∞\xa0 -]+\][^ \n]*|[^ \n]+")
_NARROWEST = 20  # cells: below that nothing can be laid out, and the terminal breaks lines itself


class Stream(Protocol):
    """What of an output stream tells how wide its lines are."""

    def isatty(self) -> bool:
        """Whether a terminal is behind it."""

    def fileno(self) -> int:
        """Its descriptor."""


def terminal_width(stream: Stream) -> int:
    """Cells of a line of the terminal behind ``stream``; COLUMNS, where it is set, says otherwise."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told) > 0:
        return max(int(told), _NARROWEST)
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        width = 0
    return max(width or 80, _NARROWEST)


def atoms(text: str) -> list[str]:
    """The parts of ``text`` that stay in one line."""
    return _ATOM.findall(text)


def wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Lines of at most ``width`` cells, beginning with ``first`` and then ``rest``; an atom that is longer stays whole.

    Line breaks of ``text`` stay. What does not fit a line, such as a path, can be copied as it is.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        start = rest if lines else first
        line = ""
        for atom in atoms(paragraph):
            if line and cell_len(start) + cell_len(line) + 1 + cell_len(atom) > width:
                lines.append(start + line)
                start, line = rest, ""
            line += (" " if line else "") + atom
        lines.append(start + line)
    return lines


def cut(text: str, width: int, rest: str = "") -> list[str]:
    """:func:`wrap`, and what is longer than a line is cut into lines of ``width`` cells."""
    return [part for line in wrap(text, width, "", rest) for part in (chop_cells(line, width) if line else [""])]

"""Token × layer as text for a terminal: it fits the width given, uses 256 colours or none, and prints nothing.

Text from data and models passes through :func:`exitlens.report.text.visible`, so no terminal escape in it is obeyed.
"""

from __future__ import annotations

import unicodedata

from pandas import DataFrame
from rich.cells import cell_len, set_cell_size

from exitlens.report.frames import evenly, layers_of, rows
from exitlens.report.text import is_number, to_float, token_text

__all__ = ["token_map"]

_SHADES = " ░▒▓█"
_RIGHT_TO_LEFT = ("R", "AL", "AN", "RLE", "RLO", "RLI")
# Black on a blue of middle lightness: 5 : 1 within, 4 : 1 against white and against the usual near-black.
_GROUND = "\x1b[38;5;16;48;5;31m"
_BOLD = "\x1b[1m"  # what was read, above what the layers say of it


def _fit(text: str, width: int) -> str:
    """Exactly ``width`` terminal cells: cut with ``…`` or padded; wide characters count as two."""
    if cell_len(text) > width:
        return set_cell_size(set_cell_size(text, max(width - 1, 0)).rstrip() + "…", width)
    return set_cell_size(text, width)


def _shade(text: str, number: float) -> str:
    """``text`` on a ground that reaches as far as the probability: a bar, which reads on light and dark terminals."""
    if not is_number(number):
        return text
    width = cell_len(text)
    reach = round(min(max(number, 0.0), 1.0) * width)
    head = set_cell_size(text, reach)
    if not head:
        return text
    # A character of two cells that the bar's end would halve stays outside of it.
    if not text.startswith(head):
        reach -= 1
        head = set_cell_size(text, reach)
    return f"{_GROUND}{head}\x1b[0m{text[len(head) :]}" if head else text


def _one_way(text: str) -> str:
    """``text`` with right-to-left letters as ``⟨U+05D0⟩``: in a terminal they would turn the order of a map's cells."""
    if text.isascii():
        return text
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.bidirectional(c) in _RIGHT_TO_LEFT else c for c in text)


def token_map(
    frame: DataFrame, *, width: int = 80, colour: bool = True, cell: int = 9, most_layers: int | None = None
) -> str:
    """Token × layer: the top token of every layer at every position, over a bar of its probability; last layer on top.

    Args:
        frame: Columns position, layer, token, probability, and optionally context (the token that was read there).
        width: Of the terminal [characters]. Positions that do not fit go into further blocks.
        colour: Whether bars are coloured; else a shade ``░▒▓█`` follows each token.
        cell: Width of a cell [characters].
        most_layers: Layers at most, evenly spread; by default all.

    Returns:
        Lines with control sequences for colours, if there are colours.
    """
    items = rows(frame)
    shown = layers_of(items) if most_layers is None else evenly(layers_of(items), most_layers)
    at = {(int(row["layer"]), int(row["position"])): row for row in items}
    contexts = {int(row["position"]): row.get("context") for row in items}
    positions = sorted(contexts)
    room = max((width - 6) // (cell + 1), 1)
    blocks: list[str] = []
    for start in range(0, len(positions), room):
        part = positions[start : start + room]
        named = [contexts[place] for place in part]
        heads = [
            _one_way(token_text(name)) if name is not None else str(place)
            for name, place in zip(named, part, strict=True)
        ]
        head = ("layer " + " ".join(_fit(head, cell) for head in heads)).rstrip()
        lines = [f"{_BOLD}{head}\x1b[0m" if colour else head]
        for layer in reversed(shown):
            cells = []
            for place in part:
                row = at.get((layer, place), {})
                number = to_float(row.get("probability"))
                text = _one_way(token_text(row.get("token"))) if row else ""
                if colour:
                    cells.append(_shade(_fit(text, cell), number))
                else:
                    step = min(int(max(number, 0.0) * len(_SHADES)), len(_SHADES) - 1) if is_number(number) else 0
                    cells.append(_fit(text, cell - 1) + _SHADES[step])
            lines.append(f"{layer:>5} " + " ".join(cells))
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)

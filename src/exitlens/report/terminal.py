"""Tables and maps as text for a terminal: they fit the width given, use 256 colours or none, and print nothing.

Text from data and models passes through :func:`exitlens.report.text.visible`, so no terminal escape in it is obeyed.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence

from pandas import DataFrame
from rich.cells import cell_len, set_cell_size

from exitlens.report.frames import evenly, groups, layers_of, rows
from exitlens.report.sections import TITLES
from exitlens.report.text import interval_text, is_number, number_text, p_text, to_float, token_text, visible
from exitlens.studies.decoding.figures import metric_name
from exitlens.studies.probes.figures import method_name

__all__ = ["choice_table", "columns", "headline_tables", "token_map", "top_table"]

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_SHADES = " ░▒▓█"
_RIGHT_TO_LEFT = ("R", "AL", "AN", "RLE", "RLO", "RLI")
_BLUE, _ORANGE, _GREY = 32, 172, 245
# 256-colour greys-to-blues, light text from the fourth on.
_RAMP = (255, 153, 111, 68, 25, 18)


def choice_table(
    layers: DataFrame, *, width: int = 80, colour: bool = True, value: str = "share", most_layers: int | None = None
) -> str:
    """Layer × choice: a number and a bar in each cell; ✓ marks the right choice, ``*`` the layer's leader.

    ``layers``: rows of one question and one lens. Choices that do not fit beside each other go into a second block.
    ``most_layers``: at most so many layers, evenly spaced, the last one included. Returns text without a last newline.
    """
    items = rows(layers)
    shown = layers_of(items) if most_layers is None else evenly(layers_of(items), most_layers)
    choices = {name: bool(group[0].get("correct", False)) for name, group in groups(items, "choice").items()}
    values = {(int(row["layer"]), row.get("choice")): to_float(row.get(value)) for row in items}
    leaders = {layer: _leader([(name, values.get((layer, name), 0.0)) for name in choices]) for layer in shown}
    least = 11
    room = max((width - 6) // least, 1)
    blocks: list[str] = []
    names = list(choices)
    for start in range(0, len(names), room):
        part = names[start : start + room]
        cell = max(min((width - 6) // len(part), 22), least)
        head = [_fit(("✓ " if choices[name] else "") + visible(name), cell - 1) for name in part]
        lines = ["layer " + " ".join(head)]
        for layer in shown:
            cells = []
            for name in part:
                number = values.get((layer, name), float("nan"))
                lead = leaders[layer] == name
                ink = _BLUE if choices[name] else _ORANGE if lead else _GREY
                text = ("*" if lead else " ") + _short(number)
                cells.append(_paint(text + _bar(number, cell - 1 - len(text)), ink, colour))
            lines.append(f"{layer:>5} " + " ".join(cells))
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)


def _leader(pairs: Sequence[tuple[object, float]]) -> object:
    known = [pair for pair in pairs if is_number(pair[1]) and pair[1] > 0]
    return max(known, key=lambda pair: pair[1])[0] if known else None


def _short(number: float) -> str:
    if not is_number(number):
        return "   – "
    return f"{number:5.3f}" if number >= 0.0005 or number == 0 else f"{number:5.0e}".replace("e-0", "e-")[:5].rjust(5)


def _bar(number: float, width: int) -> str:
    """A bar of eighths of a character, ``width`` characters for 1."""
    if width <= 0:
        return ""
    eighths = round(min(max(number, 0.0), 1.0) * width * 8) if is_number(number) else 0
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def _paint(text: str, ink: int, colour: bool, ground: int | None = None) -> str:
    if not colour:
        return text
    back = f";48;5;{ground}" if ground is not None else ""
    return f"\x1b[38;5;{ink}{back}m{text}\x1b[0m"


def _fit(text: str, width: int) -> str:
    """Exactly ``width`` terminal cells: cut with ``…`` or padded; wide characters count as two."""
    if cell_len(text) > width:
        return set_cell_size(set_cell_size(text, max(width - 1, 0)).rstrip() + "…", width)
    return set_cell_size(text, width)


def top_table(layers_top: DataFrame, *, width: int = 80, colour: bool = True, ranks: int = 5) -> str:
    """The ``ranks`` most probable next tokens of each layer, one line a layer, the last layer on top.

    ``layers_top``: rows of one question and one lens.
    """
    items = [row for row in rows(layers_top) if int(row["rank"]) < ranks]
    count = max((int(row["rank"]) for row in items), default=0) + 1
    while count > 1 and (width - 6) // count < 12:
        count -= 1
    cell = max((width - 6) // count - 1, 8)
    lines = ["layer " + " ".join(_fit(f"{rank + 1}.", cell) for rank in range(count))]
    for layer in reversed(layers_of(items)):
        here = {int(row["rank"]): row for row in items if int(row["layer"]) == layer}
        cells = []
        for rank in range(count):
            row = here.get(rank, {})
            number = to_float(row.get("probability"))
            text = _fit(token_text(row.get("token")) if row else "", cell - 5) + " " + _two(number)
            cells.append(_shade(text, number, colour))
        lines.append(f"{layer:>5} " + " ".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _two(number: float) -> str:
    if not is_number(number):
        return "    "
    return f"{number:4.2f}" if number >= 0.005 else "<.01"


def _shade(text: str, number: float, colour: bool) -> str:
    if not colour or not is_number(number):
        return text
    step = min(int(min(max(number, 0.0), 1.0) * len(_RAMP)), len(_RAMP) - 1)
    return _paint(text, 255 if step >= 3 else 16, True, _RAMP[step])


def _one_way(text: str) -> str:
    """``text`` with right-to-left letters as ``⟨U+05D0⟩``: in a terminal they would turn the order of a map's cells."""
    if text.isascii():
        return text
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.bidirectional(c) in _RIGHT_TO_LEFT else c for c in text)


def token_map(
    frame: DataFrame, *, width: int = 80, colour: bool = True, cell: int = 9, most_layers: int | None = None
) -> str:
    """Token × layer: the top token of every layer at every position, shaded by its probability; last layer on top.

    Columns of ``frame``: position, layer, token, probability, and optionally context (the token that was read there).
    Without colour a shade ``░▒▓█`` follows each token. Positions that do not fit go into further blocks.
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
        lines = ["layer " + " ".join(_fit(head, cell) for head in heads)]
        for layer in reversed(shown):
            cells = []
            for place in part:
                row = at.get((layer, place), {})
                number = to_float(row.get("probability"))
                text = _one_way(token_text(row.get("token"))) if row else ""
                if colour:
                    cells.append(_shade(_fit(text, cell), number, True))
                else:
                    step = min(int(max(number, 0.0) * len(_SHADES)), len(_SHADES) - 1) if is_number(number) else 0
                    cells.append(_fit(text, cell - 1) + _SHADES[step])
            lines.append(f"{layer:>5} " + " ".join(cells))
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)


def columns(headers: Sequence[str], body: Sequence[Sequence[object]], *, width: int = 80) -> str:
    """A plain table: the first column to the left and cut when the line is too wide, the others to the right."""
    cells = [[visible(name) for name in headers], *([visible(value) for value in row] for row in body)]
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(headers))]
    over = sum(widths) + 2 * (len(widths) - 1) - width
    if over > 0:
        widths[0] = max(widths[0] - over, 8)
    lines = [
        "  ".join(
            [
                _fit(row[0], widths[0]),
                *(" " * (size - cell_len(text)) + text for text, size in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "─" * min(max(map(cell_len, lines)), width), *lines[1:]])


def headline_tables(tables: Mapping[str, DataFrame], *, width: int = 80) -> str:
    """What a run ends with: each study's findings in sentences and its smallest telling table."""
    from exitlens.report.page import headlines

    small = {"probes": _probes, "decoding": _decoding}
    parts: list[str] = []
    for study, lines in headlines(tables).items():
        parts.append(f"{TITLES[study]}\n" + "─" * min(len(TITLES[study]), width))
        for line in lines:
            wrapped = textwrap.wrap(line.replace("\n", " "), width=max(width - 2, 20))
            parts[-1] += "\n" + "\n".join(("• " if i == 0 else "  ") + text for i, text in enumerate(wrapped))
        if study in small and study in tables and len(tables[study]):
            parts[-1] += "\n\n" + small[study](tables[study], width)
    return "\n\n".join(parts)


def _probes(frame: DataFrame, width: int) -> str:
    body = [
        [
            f"{method_name(row)} ({row.get('setting')})",
            *(number_text(row.get(name)) for name in ("train_loss", "train_accuracy")),
            interval_text(row.get("test_accuracy"), row.get("test_accuracy_low"), row.get("test_accuracy_high")),
        ]
        for row in rows(frame)
    ]
    return columns(["method", "train loss", "train acc.", "test accuracy"], body, width=width)


def _decoding(frame: DataFrame, width: int) -> str:
    body = [
        [
            f"{row.get('decoder')}: {metric_name(str(row.get('metric')))}",
            interval_text(row.get("mean"), row.get("low"), row.get("high")),
            interval_text(row.get("difference"), row.get("difference_low"), row.get("difference_high")),
            p_text(row.get("p")),
        ]
        for row in rows(frame)
    ]
    return columns(["decoder: metric", "mean", "difference to the first", "p"], body, width=width)

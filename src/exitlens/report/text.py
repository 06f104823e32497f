"""Text and numbers as a reader sees them: control characters made visible, long text wrapped, numbers short.

Everything drawn, printed or written into the report passes through here, because it comes from data files and
models: it may hold NUL bytes, terminal escapes, right-to-left overrides or characters that a font does not have.
"""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

__all__ = [
    "TOO_NARROW",
    "Column",
    "continued",
    "figure_text",
    "interval_ends",
    "interval_text",
    "is_number",
    "narrow_legend",
    "number_text",
    "p_text",
    "shorten",
    "slug",
    "to_float",
    "token_text",
    "visible",
    "wrap",
]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a printed table: heading, and how numbers are written.

    In a terminal ``shrink`` columns are cut to fit, and the ``main`` one (else the first number) is kept longest.
    """

    name: str
    format: str = ".4g"
    shrink: bool = False
    main: bool = False


ELLIPSIS = "…"
TOO_NARROW = "†"  # stands behind an interval that rests on too few units
# Behind an interval, or behind its upper end in a column of its own; a dagger in a text of the data is another.
_MARKED = re.compile(rf"[\d∞]\]{TOO_NARROW}|^[+−-]?(?:[\d.,]+(?:e[+−-]?\d+)?|inf|∞){TOO_NARROW}$")
# Newline and tab have pictures of their own that readers know better than the control pictures.
_KNOWN = {"\n": "↵", "\t": "⇥", "\x7f": "␡"}
# Characters that change the order or presence of their neighbours without being seen (Unicode TR 9 and TR 36).
_HIDDEN = frozenset([0x200B, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029])


def visible(value: object) -> str:
    """The value as text in which nothing is invisible: control characters become pictures (NUL: ``␀``).

    Bidirectional overrides, C1 controls, lone surrogates and non-characters become ``⟨U+202E⟩``; missing values an
    empty text. The result holds no character that is forbidden in HTML or XML, and no terminal escape.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_seen(character) for character in text)


def _seen(character: str) -> str:
    if character in _KNOWN:
        return _KNOWN[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    unseen = code in _HIDDEN or unicodedata.category(character) in ("Cc", "Cs", "Co") or (code & 0xFFFE) == 0xFFFE
    return f"⟨U+{code:04X}⟩" if unseen else character


def token_text(value: object) -> str:
    """A token as text: a leading space shown as ``·``, an empty token as ``∅``, the rest as :func:`visible`."""
    text = visible(value)
    if not text:
        return "∅"
    return "·" + text[1:] if text.startswith(" ") else text


def shorten(text: str, width: int) -> str:
    """At most ``width`` characters, ending in ``…`` when something was cut."""
    if len(text) <= width:
        return text
    return text[: max(width - 1, 0)].rstrip() + ELLIPSIS


def wrap(text: str, width: int, lines: int = 2) -> str:
    """Lines of at most ``width`` characters, at most ``lines`` of them, ``…`` at the end when something was cut."""
    return "\n".join(textwrap.wrap(text, width=width, max_lines=lines, placeholder=" " + ELLIPSIS)) or text[:0]


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    # The font that matplotlib itself ships: the same on every machine, so a figure is the same on every machine.
    path = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans"))
    return frozenset(FT2Font(path).get_charmap())


def figure_text(value: object) -> str:
    """:func:`visible` text that the figures' font can show; runs of characters it lacks become ``⟨U+4E2D U+6587⟩``.

    A control character's picture, which that font lacks too, becomes the code of the character itself.
    """
    have = _glyphs()
    out: list[str] = []
    missing: list[str] = []
    for character in visible(value) + "\n":
        if ord(character) not in have and character != "\n":
            code = ord(character)
            missing.append(f"U+{code - 0x2400 if 0x2400 <= code < 0x2420 else code:04X}")
            continue
        if missing:
            out.append("⟨" + " ".join(missing) + "⟩")
            missing = []
        out.append(character)
    return "".join(out)[:-1]


def to_float(value: object) -> float:
    """The value as a float; missing or not a number: NaN."""
    if value is None:
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]  # pandas' NA and text are caught below
    except (TypeError, ValueError):
        return math.nan


def is_number(value: object) -> bool:
    """True for a finite number."""
    return math.isfinite(to_float(value))


def number_text(value: object, digits: int = 3) -> str:
    """A number with ``digits`` decimals, integers as they are, ``–`` when missing, small ones as ``2.1e-05``."""
    number = to_float(value)
    if math.isnan(number):
        return "–"
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    if isinstance(value, int) or (number == int(number) and abs(number) >= 1000):
        return f"{int(number):,}".replace("-", "−")
    if number != 0 and abs(number) < 0.5 * 10**-digits:
        return f"{number:.1e}".replace("-", "−", 1) if number < 0 else f"{number:.1e}"
    return f"{number:.{digits}f}".replace("-", "−")


def interval_text(value: object, low: object, high: object, digits: int = 3) -> str:
    """``0.62 [0.55, 0.69]``; the value alone where no interval is known."""
    if not (is_number(low) and is_number(high)):
        return number_text(value, digits)
    return f"{number_text(value, digits)} [{number_text(low, digits)}, {number_text(high, digits)}]"


def interval_ends(names: Sequence[str]) -> list[int]:
    """Which columns are the upper ends of intervals: those in ``x``, ``… low``, ``… high``, one behind the other."""
    return [
        i
        for i in range(2, len(names))
        if names[i].endswith("high")
        and names[i - 1].endswith("low")
        and names[i].removesuffix("high") == names[i - 1].removesuffix("low")
    ]


def narrow_legend(cells: Iterable[object]) -> str:
    """What the mark of too narrow intervals says, to stand below a table with these cells; '' where none has it."""
    if not any(isinstance(cell, str) and _MARKED.search(cell) for cell in cells):
        return ""
    from exitlens.stats import ENOUGH  # scipy stands behind it, and most tables do without

    return f"{TOO_NARROW} interval too narrow: fewer than {ENOUGH} units"


def p_text(value: object) -> str:
    """A p-value: ``< 0.001`` below that, three decimals otherwise, ``–`` when missing."""
    number = to_float(value)
    if math.isnan(number):
        return "–"
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens only: safe in file names and as an HTML id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def continued(name: str, made: Mapping[str, object], unit: str = "batches") -> str:
    """What is said of a stage whose units more than one version of exitlens made; empty for any other.

    ``made``: how many by version, as the manifest says; ``unit``: what they are called.
    """
    if len(made) < 2:
        return ""
    total = sum(count for count in made.values() if isinstance(count, int))
    first, *others = (f"{visible(count)} by {visible(version)}" for version, count in made.items())
    shares = ", ".join([first.replace(" by ", f" of {total} {unit} by ", 1), *others])
    return f"Stage {visible(name)} was continued by another version of exitlens: {shares}."

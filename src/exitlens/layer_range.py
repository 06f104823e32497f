"""How are layers written: ``0,8,16-20``, ``all``, ``last``, ``1/2,3/4``. Read without a model, resolved with one.

The only grammar of layers: options, TOML files and Python functions that take a string all use it.

    N          a layer; 0 is the embeddings, N the output of block N
    A-B        layers A to B, both included; each end may be a number, a fraction or last
    P/Q        a fraction of the model's depth, rounded to the nearest layer: 1/2, 3/4
    last       the last layer
    all        every layer
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from exitlens.arguments import as_numbers, is_whole
from exitlens.errors import InputError, layer_range_error

__all__ = ["GRAMMAR", "LayerRange", "Layers", "parse_layers", "resolve_layers", "spelled"]

Layers = Sequence[int] | str
"""Layers as numbers, or as text in the grammar of this module."""

GRAMMAR = "numbers, ranges, fractions of the depth, last or all, such as 0,8,16-20 or 1/2,3/4,last"

_POINT = r"(?:[0-9]{1,9}(?:\s*/\s*[0-9]{1,9})?|last)"
_PART = re.compile(rf"(?P<first>{_POINT})(?:\s*-\s*(?P<last>{_POINT}))?")


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers as someone wrote them, not yet those of one model.

    Attributes:
        text: what was written, without spaces.
        parts: first and last point of each comma-separated part; ``("0", "last")`` for ``all``.
    """

    text: str
    parts: tuple[tuple[str, str], ...]

    def resolve(
        self, n_layers: int, *, first: int = 0, last: int | None = None, what: str = "layer", owner: str = "the model",
        more: str = "",
    ) -> tuple[int, ...]:  # fmt: skip
        """The layers of a model of this depth, ascending, each once.

        Args:
            n_layers: the model's depth in blocks.
            first: the lowest layer that may be meant; ``all`` begins there.
            last: the highest layer that may be meant, ``n_layers`` by default; ``last`` and the end of ``all``.
            what: what a layer is here, for the message.
            owner: whose layers these are, for the message.
            more: what the message adds.

        Raises:
            LayerError: a layer outside ``first..last``.
            InputError: a range that runs backwards.
        """
        last = n_layers if last is None else last
        found: set[int] = set()
        for start, end in self.parts:
            if (start, end) == _ALL:
                found.update(range(first, last + 1))
                continue
            low, high = (_number(point, n_layers, last) for point in (start, end))
            for layer in (low, high):
                if not first <= layer <= last:
                    raise layer_range_error(layer, first, last, what=what, owner=owner, more=more)
            if low > high:
                raise InputError(f"'{start}-{end}' runs backwards ({low} to {high}): write the lower layer first")
            found.update(range(low, high + 1))
        return tuple(sorted(found))


_ALL = ("all", "all")


def parse_layers(text: str) -> LayerRange:
    """Read layers as text; no model is needed, so that a slip is reported immediately.

    Raises:
        InputError: what is not in the grammar, with the part that is not; a range that runs backwards at any depth.
    """
    parts = [part.strip() for part in text.split(",")]
    points: list[tuple[str, str]] = []
    for part in parts:
        match = _PART.fullmatch(part)
        if part == "all":
            points.append(_ALL)
        elif match is None:
            shown = f"'{part[:80]}' in layers '{text.strip()[:80]}'" if len(parts) > 1 else f"'{part[:80]}'"
            raise InputError(f"{shown} is not a layer: write {GRAMMAR}")
        else:
            start = match["first"]
            points.append((_checked(start, part), _checked(match["last"] or start, part)))
            _check_order(*points[-1])
    return LayerRange("".join(text.split()), tuple(points))


def resolve_layers(
    layers: Layers, n_layers: int, *, first: int = 0, last: int | None = None, what: str = "layer",
    owner: str = "the model",
) -> tuple[int, ...]:  # fmt: skip
    """Layers, as numbers or as text, as layers of a model of this depth: see :meth:`LayerRange.resolve`.

    Numbers keep their order; a repeated one counts once.

    Raises:
        LayerError: a layer out of range.
        InputError: text that is not in the grammar, or what is neither text nor numbers.
    """
    if isinstance(layers, str):
        return parse_layers(layers).resolve(n_layers, first=first, last=last, what=what, owner=owner)
    end = n_layers if last is None else last
    numbers = as_numbers([layers] if is_whole(layers) else layers, f"{what}s")
    for layer in numbers:
        if not first <= layer <= end:
            raise layer_range_error(layer, first, end, what=what, owner=owner)
    return tuple(dict.fromkeys(numbers))


def spelled(layers: Sequence[int]) -> str:
    """Ascending layers in this module's grammar, as short as it goes: ``0,4-7``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _checked(point: str, part: str) -> str:
    """A fraction lies in 0..1. Checked as it is read: no model has such a layer."""
    over, slash, under = point.partition("/")
    if (slash and not 0 <= int(over) <= int(under)) or (slash and int(under) == 0):
        raise InputError(f"'{part[:80]}' is not a layer: a fraction of the depth lies between 0 and 1, such as 3/4")
    return point


def _check_order(start: str, end: str) -> None:
    """Two numbers, or two fractions, run backwards in every model; a number and a fraction only in some."""
    if "last" not in (start, end) and ("/" in start) == ("/" in end) and Fraction(start) > Fraction(end):
        raise InputError(f"'{start}-{end}' runs backwards: write the lower layer first")


def _number(point: str, n_layers: int, last: int) -> int:
    if point == "last":
        return last
    over, slash, under = point.partition("/")
    return round(n_layers * int(over) / int(under)) if slash else int(over)

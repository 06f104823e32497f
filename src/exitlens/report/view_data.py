"""A view: what the interactive component draws, packed small and checked on both sides.

A :class:`View` is JSON. Numbers and texts stand in blocks: typed arrays behind one another, deflated, as base64, with a
table of contents. What a kind of view must hold is written once, in :data:`KINDS`; ``web/src/schema.json`` is made from
it, so the component checks by the same list. A view of a newer :data:`VERSION` is refused by older readers.

    block = pack({"layers": np.arange(3), "tokens": np.array(["a", "b"], dtype=object), "entropy": quantised(values)})

Floats are kept as they are, unless :func:`quantised` asks for 16 bits between the least and the largest value: an error
of at most (largest − least) / 131,068, which no picture can show.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame
from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeInt, ValidationError

from exitlens.errors import InputError
from exitlens.parsing import cut
from exitlens.report.view_kinds import KINDS, VERSION, ArraySpec, lacks

__all__ = [
    "Block",
    "Packed",
    "Quantised",
    "View",
    "columns_of",
    "embedded",
    "pack",
    "parse_view",
    "quantised",
    "unpack",
    "view",
]

FORMAT: Final = "exitlens-view"
MOST_BYTES: Final = 1 << 28  # of one block, unpacked: more is a mistake or an attack, and no browser would show it
Name: TypeAlias = Literal["b1", "u1", "u2", "u4", "i4", "f4", "f8", "q1", "q2", "s1", "s2", "s4"]
# How each type lies in memory. q: a number between `low` and `high`; s: a place in the list of texts; in b, u, q and s
# the largest value means that there is none.
_STORED: Final[Mapping[str, str]] = {
    "b1": "u1",
    "u1": "u1",
    "u2": "<u2",
    "u4": "<u4",
    "i4": "<i4",
    "f4": "<f4",
    "f8": "<f8",
    "q1": "u1",
    "q2": "<u2",
    "s1": "u1",
    "s2": "<u2",
    "s4": "<u4",
}
# What could end a script, what cannot be encoded, and what would be in the file without being seen.
_ESCAPED: Final = re.compile("[&<>\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
Values: TypeAlias = "NDArray[Any] | Quantised"


@dataclass(frozen=True, slots=True)
class Quantised:
    """Floats that may lose precision: stored in ``bits`` bits between the least and the largest."""

    values: NDArray[Any]
    bits: Literal[8, 16] = 16


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Packed(_Model):
    """Where an array lies in its block: type, shape, first byte; for quantised ones the two ends of their range."""

    type: Name
    shape: list[NonNegativeInt]
    at: NonNegativeInt
    low: float | None = None
    high: float | None = None


class Block(_Model):
    """Arrays in one piece. ``data``: base64 of the deflated bytes, ``size`` of them unpacked; ``texts`` is the length
    in bytes of the JSON list of texts that they begin with.
    """

    arrays: dict[str, Packed]
    texts: NonNegativeInt
    size: NonNegativeInt
    data: str


class View(_Model):
    """One view. ``meta``: small facts of its kind; ``pages``: blocks that are unpacked when they are asked for."""

    format: Literal["exitlens-view"]
    version: int = Field(ge=1)
    kind: str
    title: str
    caption: str = ""
    model: str = ""
    notes: list[str] = []
    meta: dict[str, JsonValue] = {}
    block: Block
    pages: list[Block] = []

    def to_json(self) -> str:
        """The view as JSON text. Raises InputError where ``meta`` holds NaN or infinity: JSON knows neither."""
        made = self.model_dump(exclude_defaults=True)
        try:
            return json.dumps(made, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError:
            raise InputError(
                f"the view {cut(repr(self.title))} has NaN or infinity in its meta: leave it out"
            ) from None


def quantised(values: Any, bits: Literal[8, 16] = 16) -> Quantised:
    """Floats to be stored in ``bits`` bits between the least and the largest; NaN stays NaN.

    Values among which one is infinite are kept as float32.
    """
    return Quantised(np.asarray(values, dtype=np.float64), bits)


def columns_of(prefix: str, frame: DataFrame, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns of a table as arrays named ``prefix.column``; a column that the frame does not have is left out.

    Args:
        prefix: Name of the table in the view.
        frame: The table.
        names: Its columns that are wanted.

    Returns:
        Arrays ``[rows]``. Missing values stay missing: NaN in numbers, None in texts and in yes-or-no.
    """
    out: dict[str, NDArray[Any]] = {}
    for name in names:
        if name in frame.columns:
            column = frame[name]
            out[f"{prefix}.{name}"] = (
                column.to_numpy()
                if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufb"
                else column.astype(object).where(column.notna(), None).to_numpy()
            )
    return out


def pack(arrays: Mapping[str, Values], texts: Collection[str] = ()) -> Block:
    """Arrays of numbers, texts (object, None where missing) or yes-or-no as one block.

    Args:
        arrays: By name; of any shape. Whole numbers take as few bytes as they need.
        texts: Names of arrays that are texts even if every value is missing.

    Returns:
        The block.

    Raises:
        InputError: An array of another type.
    """
    index: dict[str, int] = {}
    raw: list[bytes] = []
    entries: dict[str, dict[str, Any]] = {}
    for name, values in arrays.items():
        stored, entry = _stored(name, values, index, name in texts)
        entries[name] = entry
        raw.append(stored)
    listed = json.dumps(list(index), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    whole = bytearray(listed)
    for entry, stored in zip(entries.values(), raw, strict=True):
        whole += b"\0" * (-len(whole) % 8)  # typed arrays begin at multiples of their width
        entry["at"] = len(whole)
        whole += stored
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = deflater.compress(bytes(whole)) + deflater.flush()
    return Block(
        arrays={name: Packed(**entry) for name, entry in entries.items()},
        texts=len(listed),
        size=len(whole),
        data=base64.b64encode(data).decode("ascii"),
    )


def _stored(name: str, values: Values, index: dict[str, int], text: bool = False) -> tuple[bytes, dict[str, Any]]:
    """Bytes and table entry of one array; texts are added to ``index``."""
    if isinstance(values, Quantised) and np.isinf(values.values).any():
        values = values.values.astype(np.float32)  # infinity has no place between least and largest
    array = values.values if isinstance(values, Quantised) else np.asarray(values)
    entry: dict[str, Any] = {"shape": list(array.shape)}
    if isinstance(values, Quantised):
        return _quantise(values, entry)
    kind = array.dtype.kind
    if kind == "b" or (
        kind == "O" and not text and all(v is None or isinstance(v, bool | np.bool_) for v in array.flat)
    ):
        entry["type"] = "b1"
        return bytes(255 if v is None else int(v) for v in array.flat), entry
    if kind in "OU" and all(v is None or isinstance(v, str) for v in array.flat):
        found = [None if v is None else index.setdefault(str(v), len(index)) for v in array.flat]
        entry["type"] = "s" + _width(len(index))
        largest = 256 ** int(entry["type"][1]) - 1
        places = np.array([largest if v is None else v for v in found], dtype=_STORED[entry["type"]])
        return places.tobytes(), entry
    if kind in "iu":
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if low < -(2**31) or high >= 2**32 - 1 or (low < 0 and high >= 2**31):
            raise InputError(f"the view's array {name!r} holds {low} to {high}: whole numbers of 32 bits at most")
        entry["type"] = "i4" if low < 0 else "u" + _width(high + 1)
    elif kind == "f":
        entry["type"] = "f4" if array.dtype.itemsize <= 4 else "f8"
    elif kind == "O":
        try:
            array = np.array([math.nan if v is None else float(v) for v in array.flat]).reshape(array.shape)
        except (TypeError, ValueError):
            raise InputError(f"the view's array {name!r} mixes texts and numbers: it can hold one of them") from None
        entry["type"] = "f8"
    else:
        raise InputError(f"the view's array {name!r} is of type {array.dtype}: use numbers, texts or yes-or-no")
    return np.ascontiguousarray(array, dtype=_STORED[entry["type"]]).tobytes(), entry


def _width(count: int) -> str:
    """Bytes that hold ``count`` different values and one for "none"."""
    return "1" if count <= 255 else "2" if count <= 65535 else "4"


def _quantise(values: Quantised, entry: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    array = values.values
    steps = 2**values.bits - 2
    finite = array[np.isfinite(array)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    span = (high - low) or 1.0
    with np.errstate(invalid="ignore"):
        scaled = np.rint((np.clip(array, low, high) - low) / span * steps)
    entry |= {"type": f"q{values.bits // 8}", "low": low, "high": high}
    return np.where(np.isnan(array), steps + 1, scaled).astype(_STORED[entry["type"]]).tobytes(), entry


def unpack(block: Block) -> dict[str, NDArray[Any]]:
    """The arrays of a block: floats with NaN, texts and yes-or-no as objects with None where there is none.

    Raises:
        InputError: The block is damaged.
    """
    try:
        inflater = zlib.decompressobj(-15)
        whole = inflater.decompress(base64.b64decode(block.data, validate=True), min(block.size, MOST_BYTES) + 1)
        if len(whole) != block.size or not 0 <= block.texts <= len(whole):
            raise ValueError(f"{len(whole)} bytes instead of {block.size}")
        texts = json.loads(whole[: block.texts].decode("utf-8", "surrogatepass"))
        return {name: _array(whole, entry, texts) for name, entry in block.arrays.items()}
    except (ValueError, zlib.error, IndexError) as error:
        raise InputError(f"the view is damaged ({cut(str(error))}): write it again") from None


def _array(whole: bytes, entry: Packed, texts: list[str]) -> NDArray[Any]:
    stored = np.frombuffer(whole, dtype=_STORED[entry.type], count=math.prod(entry.shape), offset=entry.at)
    stored = stored.reshape(entry.shape)
    kind = entry.type[0]
    if kind in "uif":
        return stored.copy()
    none = 256**stored.dtype.itemsize - 1
    if kind == "q":
        low, high = entry.low or 0.0, entry.high or 0.0
        numbers = low + stored.astype(np.float64) / (none - 1) * ((high - low) or 1.0)
        return np.where(stored == none, math.nan, numbers)
    out = np.empty(stored.size, dtype=object)
    out[:] = [None if v == none else bool(v) if kind == "b" else texts[int(v)] for v in stored.flat]
    return out.reshape(stored.shape)


def view(
    kind: str,
    arrays: Mapping[str, Values],
    *,
    title: str,
    caption: str = "",
    model: str = "",
    notes: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
    pages: Sequence[Mapping[str, Values]] = (),
) -> View:
    """A checked view of the given kind.

    Args:
        kind: One of :data:`~exitlens.report.view_kinds.KINDS`.
        arrays: What it shows.
        title: Its heading.
        caption: What a reader must know to read it: model, lens, judge, n.
        model: The model's name.
        notes: Remarks, a line each.
        meta: Small facts of the kind, as JSON.
        pages: Arrays that are unpacked when they are asked for, a mapping a page.

    Raises:
        InputError: An unknown kind, or arrays that the kind does not have like that.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of view {cut(repr(kind))}: use {', '.join(KINDS)}")
    texts, paged = (
        {name for name, spec in specs.items() if spec.type == "text"}
        for specs in (KINDS[kind].arrays, KINDS[kind].pages)
    )
    made = View(
        format="exitlens-view",
        version=VERSION,
        kind=kind,
        title=title,
        caption=caption,
        model=model,
        notes=list(notes),
        meta=dict(meta or {}),
        block=pack(arrays, texts),
        pages=[pack(page, paged) for page in pages],
    )
    _check(made)
    return made


def parse_view(text: str | bytes) -> View:
    """A view from its JSON text. Raises InputError for any other text, and for a view of a newer version."""
    try:
        raw = json.loads(text)
    except ValueError:
        raise InputError("this is no view: it is not JSON") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise InputError(f"this is no view: its format is not {FORMAT!r}")
    if isinstance(raw.get("version"), int) and raw["version"] > VERSION:
        raise InputError(f"this view is of version {raw['version']}, newer than {VERSION}: update exitlens to show it")
    try:
        found = View.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"this view is damaged ({cut(where)}: {cut(first['msg'])}): write it again") from None
    _check(found)
    return found


def _check(made: View) -> None:
    """Raise InputError where the arrays are not those of the kind."""
    if made.kind not in KINDS:
        raise InputError(f"unknown kind of view {cut(repr(made.kind))}: use {', '.join(KINDS)}")
    kind = KINDS[made.kind]
    _check_block(made.kind, made.block, kind.arrays)
    for page in made.pages:
        _check_block(f"{made.kind}, a page", page, kind.pages)
    _check_figures(made)


def _check_figures(made: View) -> None:
    """Raise InputError where a figure names a column that its table does not have."""
    try:
        figures: Any = made.meta.get("figures") or ()
        lacking = [lacks(each, made.block.arrays, made.meta.get("switches")) for each in figures]
    except (TypeError, ValueError, KeyError, AttributeError):
        raise InputError(f"this view ({made.kind}) is damaged: its figures are not described as figures are") from None
    if any(lacking):
        missing = ", ".join(filter(None, lacking))
        raise InputError(f"the view ({made.kind}) has no array {missing}, which its figures need")


def _check_block(what: str, block: Block, specs: Mapping[str, ArraySpec]) -> None:
    sizes: dict[Hashable, int] = {}
    # The columns of a table, arrays named `table.column`, are of one length.
    for name, column in block.arrays.items():
        table, _, short = name.partition(".")
        if short and (not column.shape or sizes.setdefault(table, column.shape[0]) != column.shape[0]):
            raise InputError(f"the view's array {name!r} ({what}) is not as long as the other columns of {table!r}")
    for name, spec in specs.items():
        entry = block.arrays.get(name)
        if entry is None:
            if spec.optional:
                continue
            raise InputError(f"the view ({what}) has no array {name!r}")
        if (entry.type[0] == "s") != (spec.type == "text") or (entry.type[0] == "b") != (spec.type == "flag"):
            raise InputError(f"the view's array {name!r} ({what}) is of type {entry.type}, expected {spec.type}")
        if len(entry.shape) != len(spec.axes):
            raise InputError(f"the view's array {name!r} ({what}) has {len(entry.shape)} axes: expected {spec.axes}")
        for axis, size in zip(spec.axes, entry.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise InputError(f"the view's array {name!r} ({what}) has {size} along {axis}, others {sizes[axis]}")


def embedded(made: View) -> str:
    """The view's JSON for a ``<script type="application/json">``: nothing in it can end the element or is invisible."""
    return _ESCAPED.sub(lambda found: f"\\u{ord(found.group()):04x}", made.to_json())

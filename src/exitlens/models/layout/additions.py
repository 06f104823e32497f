"""Which modules add to the residual stream, and how: found by value in one traced pass, block by block.

A block that adds writes ``h_j = a · h_{j-1} + Σ c_k · out_k`` with ``out_k`` the outputs of some of its modules and
``a, c_k`` constants (1 almost everywhere; scales of the residual; a number a channel). Which outputs these are is a
least-squares question with far more equations than unknowns: what is no such sum leaves a rest, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from exitlens.errors import UnsupportedModel
from exitlens.models.layout.affine import half
from exitlens.models.layout.final_path import scale_between
from exitlens.models.layout.find import Layout
from exitlens.models.layout.residual import Stream
from exitlens.models.layout.watch import Call, found_at

__all__ = ["Additions", "Term", "find_additions", "inside", "stream_like"]

_DEEPEST = 4  # how deep inside a block the modules lie whose outputs are tried
_SAMPLE = 20_000  # entries of the stream that the coefficients are found from; all are compared afterwards

# What a module is called says what kind it is; that it adds, and how much, is measured.
_KINDS = (
    ("mlp", re.compile(r"mlp|feed_?forward|(^|[._])ff[n\d]?([._]|$)|moe|expert|(^|[._])fc\d?([._]|$)|dense_4h_to_h")),
    ("attention", re.compile(r"attn|attention")),
    ("mixer", re.compile(r"mixer|mamba|ssm|conv|rwkv|recurrent|temporal|retention|lstm")),
)


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A module output that is added to the stream, and the constant that it reaches the last block's output with.

    ``block``: 1..N, or 0 for what the stream begins with. ``module`` is called several times in some blocks: ``nth``
    counts from 0; None is a constant, ``factor`` itself. ``path``: the way to the tensor in the module's output.
    ``factor``: a number, or one a channel ``[d]``.
    """

    kind: str
    block: int
    name: str
    module: nn.Module | None
    nth: int
    path: tuple[Any, ...]
    factor: Tensor

    @property
    def label(self) -> str:
        """What tables call it: ``block 3 attention``; ``token embeddings`` before the blocks."""
        return f"block {self.block} {self.kind}" if self.block else self.kind


@dataclass(frozen=True, slots=True)
class Additions:
    """All that a model adds up: ``terms``, and what the whole of layer 0 is multiplied by on its way (``begin``).

    Without terms of block 0 layer 0 is one term of its own.
    """

    terms: tuple[Term, ...]
    begin: Tensor


def find_additions(calls: Sequence[Call], layout: Layout, ids_shape: tuple[int, int], family: str) -> Additions:
    """What each block adds, from the calls of one traced pass over tokens ``ids_shape``.

    Raises:
        UnsupportedModel: A block's output is not a sum of what entered it and of outputs of its modules.
    """
    stream, rows, seq = layout.stream, *ids_shape
    if stream.kind in ("stacked", "split"):
        raise UnsupportedModel(
            f"{family} keeps {stream.count} residual streams side by side and mixes them, so a logit does not split "
            "into what each block adds"
        )
    by_module: dict[int, list[Call]] = {}
    for call in calls:
        by_module.setdefault(id(call.module), []).append(call)
    blocks = [by_module[id(block)][0] for block in layout.blocks]
    if stream.entry is not None:
        raise UnsupportedModel(f"{family}: its blocks are no modules of their own, so what each adds is not known")
    entries = [found_at(call.given, stream.enters) for call in blocks]
    exits = [found_at(call.gave, stream.leaves) for call in blocks]
    found: list[list[Term]] = []
    carried: list[Tensor] = []
    for number, (call, entry, out) in enumerate(zip(blocks, entries, exits, strict=True), start=1):
        ratio = 1.0 if number == 1 else scale_between(exits[number - 2], entry)
        if ratio is None:
            raise UnsupportedModel(
                f"{family}: what enters block {number} is not what left block {number - 1}, so the last layer is no "
                "sum of what each block adds"
            )
        within = inside(calls, call)
        combination = _combination(out, entry, within, _fitting(stream, entry, rows, seq), may_begin=number == 1)
        if combination is None:
            raise UnsupportedModel(
                f"{family}: the output of block {number} is not the sum of its input and of outputs of its modules "
                "(blocks that norm the sum itself are none), so a logit does not split into what each block adds"
            )
        if carried:
            carried[-1] = carried[-1] * ratio
            found[-1] = [replace(term, factor=term.factor * ratio) for term in found[-1]]
        carried.append(combination.base)
        found.append(_named(combination, number, within))
    begin = torch.ones((), dtype=torch.float64)
    later: list[Term] = []
    for factor, terms in zip(reversed(carried), reversed(found), strict=True):
        later = [replace(term, factor=term.factor * begin) for term in terms] + later
        begin = begin * factor
    first = _first(calls, blocks[0], entries[0], layout, ids_shape)
    return Additions((*(replace(t, factor=t.factor * begin) for t in first), *later), begin)


def inside(calls: Sequence[Call], outer: Call) -> list[tuple[int, Call]]:
    """Calls within a call, each with how deep it lies (1: called by it), in the order in which they ended."""
    within = [c for c in calls if outer.order < c.order and -1 < c.end < outer.end]
    out = []
    for call in within:
        depth = 1 + sum(o.order < call.order and call.end < o.end for o in within)
        out.append((depth, call))
    return sorted(out, key=lambda pair: pair[1].end)


def stream_like(t: Tensor, stream: Stream, rows: int, seq: int, width: int) -> Tensor | None:
    """A tensor as ``[rows, seq, width]``, from the stream's own shape, flattened or shared by the rows; else None."""
    if t.dim() < 2 or t.shape[-1] != width:
        return None
    if stream.kind == "positions first":
        return t.transpose(0, 1) if t.dim() == 3 and t.shape[1] == rows else None
    places = t.numel() // width
    if places % rows == 0 and places // rows >= seq and (t.dim() == 2 or t.shape[0] == rows):
        return t.reshape(rows, -1, width)[:, -seq:]
    if places == seq:
        return t.reshape(1, seq, width).expand(rows, seq, width)
    return None


@dataclass(frozen=True, slots=True)
class _Part:
    call: Call | None  # None: a constant
    path: tuple[Any, ...]
    nth: int
    value: Tensor
    coefficient: Tensor


@dataclass(frozen=True, slots=True)
class _Combination:
    base: Tensor
    parts: tuple[_Part, ...]


_Fitting = Callable[[Tensor], Tensor | None]


def _fitting(stream: Stream, entry: Tensor, rows: int, seq: int) -> _Fitting:
    width = entry.shape[-1]
    return lambda t: stream_like(t, stream, rows, seq, width)


def _combination(
    out: Tensor, entry: Tensor, within: Sequence[tuple[int, Call]], fitting: _Fitting, *, may_begin: bool
) -> _Combination | None:
    """``out`` as a sum of ``entry`` and outputs of calls, the outermost that do; None where there is no such sum.

    ``may_begin``: a sum without ``entry`` will do where there is none with it.
    """
    y, x = fitting(out), fitting(entry)
    if y is None or x is None:
        return None
    x = x.to(y.device)  # a model may be spread over devices
    parts = _parts(y, within, fitting)
    tried = 0
    anew: _Combination | None = None
    for deepest in range(1, _DEEPEST + 1):
        usable = [part for depth, part in parts if depth <= deepest]
        if len(usable) == tried:
            continue
        tried = len(usable)
        for by_channel in (False, True):
            found = _solve(y, x, usable, by_channel=by_channel)
            if found is not None and bool((found.base != 0).all()):
                return found
            anew = anew or found
    return anew if may_begin else None


def _parts(y: Tensor, within: Sequence[tuple[int, Call]], fitting: _Fitting) -> list[tuple[int, _Part]]:
    """Every output of a call that could be a part of ``y``, with its depth, in the order in which they ended."""
    parts: list[tuple[int, int, _Part]] = []
    seen: dict[int, int] = {}
    for depth, call in sorted(within, key=lambda pair: pair[1].order):
        nth = seen.get(id(call.module), 0)
        seen[id(call.module)] = nth + 1
        for path, tensor in call.gave:
            value = fitting(tensor)
            if value is not None and not _collinear(value, y):
                parts.append((call.end, depth, _Part(call, path, nth, value, torch.zeros(()))))
    return [(depth, part) for _, depth, part in sorted(parts, key=lambda entry: entry[0])]


def _solve(y: Tensor, x: Tensor, parts: Sequence[_Part], *, by_channel: bool = False) -> _Combination | None:
    """``y = a x + Σ c_k part_k``, with numbers or (``by_channel``) with a number a channel and a constant vector.

    The fewest parts that explain ``y`` to rounding are used. Every position counts alike, whatever its size: the
    first of a text is often a thousand times as large as the others, and would hide what these need.
    """
    coarse = half(y.dtype)
    if by_channel:
        parts = [_Part(None, (), 0, torch.ones_like(y), torch.zeros(())), *parts]
    size = torch.maximum(y.abs(), x.abs()).amax(-1, keepdim=True).double().clamp_min(1e-30)
    goal, stream = y.double() / size, x.double() / size
    columns = [(None, stream), *((part, part.value.double() / size) for part in parts)]
    columns = _independent(columns, coarse=coarse, by_channel=by_channel)
    if by_channel and 2 * len(columns) > y[..., 0].numel():
        return None
    weights = _explained(goal, columns, coarse=coarse, by_channel=by_channel)
    if weights is None:
        return None
    sizes = [float((w * column).abs().max()) for w, (_, column) in zip(weights, columns, strict=True)]
    kept = list(range(len(columns)))
    for k in sorted(kept[1:], key=sizes.__getitem__):
        fewer = [columns[i] for i in kept if i != k]
        found = _explained(goal, fewer, coarse=coarse, by_channel=by_channel)
        if found is not None:
            kept.remove(k)
            weights = found
    used = tuple(
        replace(part, coefficient=w.cpu())
        for (part, _), w in zip((columns[i] for i in kept), weights, strict=True)
        if part is not None
    )
    needed = _explained(goal, [columns[i] for i in kept if i], coarse=coarse, by_channel=by_channel) is None
    return _Combination((weights[0] if needed else torch.zeros_like(weights[0])).cpu(), used)


_Column = tuple[_Part | None, Tensor]


def _explained(y: Tensor, columns: Sequence[_Column], *, coarse: bool, by_channel: bool) -> list[Tensor] | None:
    """The weights with which the columns sum to ``y`` to rounding, or None."""
    if not columns:
        return None
    weights = [_tidied(w, coarse) for w in _least_squares(y, [c for _, c in columns], by_channel=by_channel)]
    rest, scale = y, torch.ones_like(y[..., :1])
    for w, (_, column) in zip(weights, columns, strict=True):
        rest = rest - w * column
        scale = torch.maximum(scale, (w * column).abs().amax(-1, keepdim=True))
    bound = 2e-2 if coarse else 1e-5
    return weights if bool((rest.abs() <= bound * scale).all()) else None


def _independent(columns: Sequence[_Column], *, coarse: bool, by_channel: bool) -> list[_Column]:
    """The columns that are no combination of those before (the stream after a first sum is one)."""
    bound = 1e-2 if coarse else 1e-4
    basis: list[Tensor] = []
    kept: list[_Column] = []
    for part, column in columns:
        v = _entries(column, by_channel=by_channel)
        size = v.norm(dim=-1, keepdim=True)
        for _ in range(2):  # twice is enough for rounding
            for b in basis:
                v = v - (b * v).sum(-1, keepdim=True) * b
        rest = v.norm(dim=-1, keepdim=True)
        if bool((rest > bound * size).any()):
            basis.append(v / rest.clamp_min(1e-300))
            kept.append((part, column))
    return kept


def _entries(t: Tensor, *, by_channel: bool) -> Tensor:
    """The equations' numbers: ``[1, some]``, or ``[width, places]`` where each channel is a question of its own."""
    if by_channel:
        return t.reshape(-1, t.shape[-1]).t()
    return t.reshape(1, -1)[:, :: max(1, t.numel() // _SAMPLE)]


def _least_squares(y: Tensor, columns: Sequence[Tensor], *, by_channel: bool) -> list[Tensor]:
    a = torch.stack([_entries(column, by_channel=by_channel) for column in columns], dim=-1)
    found = torch.linalg.lstsq(a, _entries(y, by_channel=by_channel)[..., None]).solution[..., 0]
    return list((found if by_channel else found[0]).unbind(-1))


def _tidied(w: Tensor, coarse: bool) -> Tensor:
    """1 where rounding has blurred it."""
    return torch.where((w - 1).abs() <= (2e-2 if coarse else 1e-5), torch.ones_like(w), w)


def _collinear(a: Tensor, b: Tensor) -> bool:
    x, y = a.double().flatten(), b.double().flatten()
    norm = float(x @ x)
    if norm == 0.0:
        return True
    rest = y - (float(x @ y) / norm) * x
    return float(rest.norm()) <= (1e-2 if half(a.dtype) else 1e-5) * float(y.norm())


def _named(combination: _Combination, block: int, within: Sequence[tuple[int, Call]]) -> list[Term]:
    terms: list[Term] = []
    since = -1
    for part in combination.parts:
        call = part.call
        if call is None:
            terms.append(Term("bias", block, "", None, 0, (), part.coefficient))
            continue
        # A norm behind a sub-layer has a name of its own; what ran since the term before says what it norms.
        group = [c.name for depth, c in within if depth == 1 and since < c.end < call.order and "norm" not in c.name]
        kind = kind_of(call.name) or next((k for k in map(kind_of, reversed(group)) if k), "") or _leaf(call.name)
        if kind == "mixer":  # hybrids call all their kinds of layers by one name
            kind = kind_of(type(call.module).__name__) or kind
        since = call.end
        terms.append(Term(kind, block, call.name, call.module, part.nth, part.path, part.coefficient))
    kinds = [term.kind for term in terms]
    return [replace(t, kind=f"{t.kind} ({_leaf(t.name)})") if kinds.count(t.kind) > 1 else t for t in terms]


def kind_of(name: str) -> str:
    """attention, mlp or mixer (another way to look at other positions); empty where the name does not say."""
    own = re.sub(r"^.*?\.\d+\.", "", name).lower()  # without the way to the block
    return next((kind for kind, pattern in _KINDS if pattern.search(own)), "")


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _first(calls: Sequence[Call], block: Call, entry: Tensor, layout: Layout, ids_shape: tuple[int, int]) -> list[Term]:
    """What layer 0 is the sum of: token embeddings, positions; nothing where it is one, or no such sum."""
    rows, seq = ids_shape
    before = [c for c in calls if -1 < c.end < block.order]
    outer = [(1, c) for c in before if not any(o.order < c.order and c.end < o.end for o in before)]
    y = stream_like(entry, layout.stream, rows, seq, entry.shape[-1])
    if y is None:
        return []
    fitting = _fitting(layout.stream, entry, rows, seq)
    combination = _solve(y, torch.ones_like(y), [part for _, part in _parts(y, outer, fitting)])
    if combination is None or bool((combination.base != 0).any()) or len(combination.parts) < 2:
        return []
    terms = []
    for part in combination.parts:
        if part.call is not None:
            alike = all(torch.equal(part.value[0], part.value[r]) for r in range(1, rows))
            kind = "positions" if alike else "token embeddings"
            terms.append(Term(kind, 0, part.call.name, part.call.module, part.nth, part.path, part.coefficient))
    return terms if len({term.kind for term in terms}) == len(terms) else []

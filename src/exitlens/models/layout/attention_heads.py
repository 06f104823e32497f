"""Which attention outputs are a matrix product of concatenated heads: found by scaling each head by its own factor.

The module that gives the attention's output is known; its input is a concatenation of heads where scaling the results
of the attention product, head ``i`` by ``f_i``, scales the ``i``-th stretch of that input by ``f_i`` and nothing else.
Gates and norms between the two leave that as it is (a norm's own number is common to all heads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from exitlens.models.layout.additions import Term, inside
from exitlens.models.layout.affine import frozen_norm, half, linear_weight
from exitlens.models.layout.final_path import scale_between
from exitlens.models.layout.find import Layout
from exitlens.models.layout.hooks import eval_mode, here
from exitlens.models.layout.residual import at
from exitlens.models.layout.watch import Call

__all__ = ["Heads", "find_heads"]

_PRODUCTS = frozenset(["scaled_dot_product_attention", "matmul", "__matmul__", "bmm", "baddbmm", "einsum"])


@dataclass(frozen=True, slots=True)
class Heads:
    """How one attention's output splits: ``norm(ratio · (W z + b))`` with ``z`` the concatenation of ``count`` heads.

    ``projection`` is the module of ``W`` and ``b``, called for the ``nth`` time in its block, given ``z`` at ``path``
    of its ``(args, kwargs)``. ``norm``: the module behind it (called for the ``norm_nth`` time), or None.
    """

    projection: nn.Module
    nth: int
    path: tuple[Any, ...]
    count: int
    ratio: float
    norm: nn.Module | None
    norm_nth: int


@dataclass(slots=True)
class _Candidate:
    call: Call
    nth: int
    ratio: float
    norm: nn.Module | None
    norm_nth: int


def find_heads(
    calls: Sequence[Call], layout: Layout, terms: Sequence[Term], model: nn.Module, run: Callable[[], Any]
) -> dict[Term, Heads]:
    """The attention terms whose heads are known, from the calls of a traced pass; ``run()`` does that pass again."""
    by_module: dict[int, Call] = {id(call.module): call for call in reversed(calls)}
    found: dict[Term, _Candidate] = {}
    with eval_mode(model):
        for term in terms:
            if term.block and term.kind.startswith(("attention", "mixer")):
                block = by_module[id(layout.blocks[term.block - 1])]
                candidate = _projection(_counted(calls, block), term)
                if candidate is not None:
                    found[term] = candidate
    seen = _scaled_pass(layout.blocks, {term.block: c for term, c in found.items()}, model, run)
    out = {}
    for term, candidate in found.items():
        path, z = candidate.call.given[0]
        other, count = seen.get(term.block, (None, 0))
        if other is not None and count > 0 and _concatenated(z, other, count):
            out[term] = Heads(
                candidate.call.module, candidate.nth, path, count, candidate.ratio, candidate.norm, candidate.norm_nth
            )
    return out


def _counted(calls: Sequence[Call], block: Call) -> list[tuple[Call, int]]:
    """Calls within a block in order, each with how often its module was called there before."""
    seen: dict[int, int] = {}
    out = []
    for call in sorted((c for _, c in inside(calls, block)), key=lambda c: c.order):
        nth = seen.get(id(call.module), 0)
        seen[id(call.module)] = nth + 1
        out.append((call, nth))
    return out


def _projection(counted: Sequence[tuple[Call, int]], term: Term) -> _Candidate | None:
    own = next((c for c, nth in counted if c.module is term.module and nth == term.nth), None)
    if own is None:
        return None
    value = at_path(own.gave, term.path)
    goals: list[tuple[Tensor, nn.Module | None]] = [(value, None)]
    if own.given and own.given[0][1].shape == value.shape:
        goals.append((own.given[0][1], own.module))
    for call, nth in counted:
        if call.end > own.end or not call.given or not call.gave:
            continue
        z, out = call.given[0][1], call.gave[0][1]
        for goal, norm in goals:
            if (norm is not None and call is own) or out.numel() != goal.numel() or out.shape[-1] != goal.shape[-1]:
                continue
            ratio = scale_between(out.reshape(goal.shape), goal)
            flat_in, flat_out = z.reshape(-1, z.shape[-1]), out.reshape(-1, out.shape[-1])
            if ratio is None or len(flat_in) != len(flat_out) or linear_weight(call.module, flat_in, flat_out) is None:
                continue
            if norm is not None and frozen_norm(norm, goal.reshape(-1, goal.shape[-1])) is None:
                continue
            return _Candidate(call, nth, ratio, norm, term.nth)
    return None


def at_path(found: Sequence[tuple[tuple[Any, ...], Tensor]], path: tuple[Any, ...]) -> Tensor:
    """The tensor at ``path`` among those of a call."""
    return next(tensor for way, tensor in found if way == path)


def _scaled_pass(
    blocks: Sequence[nn.Module], candidates: dict[int, _Candidate], model: nn.Module, run: Callable[[], Any]
) -> dict[int, tuple[Tensor, int]]:
    """Each projection's input in a pass whose heads are scaled, and the number of heads; later blocks see no change."""
    if not candidates:
        return {}
    found: dict[int, tuple[Tensor, int]] = {}
    mode = _Scaling()
    with eval_mode(model), _hooked(blocks, candidates, mode, found), mode:
        run()
    return found


@contextmanager
def _hooked(
    blocks: Sequence[nn.Module], candidates: dict[int, _Candidate], mode: _Scaling, found: dict[int, tuple[Tensor, int]]
) -> Iterator[None]:
    handles = []

    def begin(number: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any) -> None:
            mode.open(number, candidates[number].call.given[0][1])

        return hook

    def projected(number: int) -> Callable[..., Any]:
        candidate = candidates[number]
        path, z = candidate.call.given[0]

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if mode.number != number or mode.calls.setdefault(number, 0) != candidate.nth:
                mode.calls[number] = mode.calls.get(number, 0) + 1
                return None
            mode.calls[number] += 1
            given = at((args, kwargs), path)
            found[number] = (given.detach().clone(), mode.count)
            mode.close()
            swapped = [z if value is given else value for value in args]
            return tuple(swapped), {key: z if value is given else value for key, value in kwargs.items()}

        return hook

    try:
        for number, candidate in candidates.items():
            handles.append(blocks[number - 1].register_forward_pre_hook(here(begin(number))))
            handles.append(candidate.call.module.register_forward_pre_hook(here(projected(number)), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Scaling(TorchFunctionMode):
    """Scales what an attention product gives, each head by its own factor, while a block is open."""

    def __init__(self) -> None:
        super().__init__()
        self.number = self.count = 0
        self.calls: dict[int, int] = {}
        self._shape: tuple[int, ...] = ()

    def open(self, number: int, z: Tensor) -> None:
        """Block ``number`` begins, whose concatenated heads had the shape of ``z``."""
        self.number, self.count, self._shape = number, 0, tuple(z.shape)

    def close(self) -> None:
        """Nothing is scaled until the next block."""
        self.number = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.number or getattr(func, "__name__", "") not in _PRODUCTS or not isinstance(out, Tensor):
            return out
        whole = 1
        for size in self._shape:
            whole *= size
        if out.numel() != whole or out.dim() not in (3, 4):
            return out
        axis = self._heads_axis(out)
        if axis is None:
            return out
        rows = self._shape[0]
        self.count = out.shape[axis] if out.dim() == 4 else out.shape[0] // rows
        factors = factors_of(self.count).to(out)
        if out.dim() == 3:  # rows and heads in one axis, a row's heads side by side
            return (out.reshape(rows, self.count, *out.shape[1:]) * factors[None, :, None, None]).reshape(out.shape)
        return out * factors.reshape([-1 if k == axis else 1 for k in range(4)])

    def _heads_axis(self, out: Tensor) -> int | None:
        if len(self._shape) != 3:
            return None
        rows, seq = self._shape[:2]
        if out.dim() == 3:
            return 0 if out.shape[1] == seq and out.shape[0] % rows == 0 else None
        if out.shape[0] != rows:
            return None
        return 1 if out.shape[2] == seq else 2 if out.shape[1] == seq else None


def factors_of(count: int) -> Tensor:
    """A different factor for every head, between 1 and 2."""
    return 1.0 + torch.arange(count, dtype=torch.float64) / max(count, 1)


def _concatenated(z: Tensor, other: Tensor, count: int) -> bool:
    width = z.shape[-1]
    if other.shape != z.shape or width % count:
        return False
    want = z.double() * factors_of(count).to(z.device).repeat_interleave(width // count)
    got = other.double()
    common = (want * got).sum(-1, keepdim=True) / (want * want).sum(-1, keepdim=True).clamp_min(1e-300)
    bound = 3e-2 if half(z.dtype) else 1e-4
    return bool((got - common * want).abs().max() <= bound * got.abs().max().clamp_min(1e-12))

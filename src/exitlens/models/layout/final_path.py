"""What lies between the last block and the unembedding, as a function of the last block's output alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exitlens.errors import UnsupportedModel
from exitlens.models.layout.hooks import here, stopping_at
from exitlens.models.layout.residual import Stream, first_tensor

__all__ = ["FinalPath", "Injection", "TailStep", "replaced", "scale_between"]

_CHUNK = 512  # positions put through an injected pass at once


@dataclass(frozen=True, slots=True)
class TailStep:
    """One step between the last block and the unembedding: a module (or none), then a scale."""

    module: nn.Module | None
    name: str
    scale: float = 1.0

    def __call__(self, h: Tensor) -> Tensor:
        """``h`` put through the module and the scale."""
        if self.module is not None:
            out = first_tensor(self.module(h))
            if out is None:
                raise UnsupportedModel(f"module {self.name!r} after the last block gave no tensor")
            h = out
        return h * self.scale if self.scale != 1.0 else h


@dataclass(frozen=True, slots=True)
class FinalPath:
    """The usual tail: modules and constant scales, one after another."""

    steps: tuple[TailStep, ...]
    stream: Stream | None = None  # given where the first step takes several streams in the model's own layout

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that run: nothing else of the model does."""
        return tuple(step.module for step in self.steps if step.module is not None)

    def __call__(self, h: Tensor) -> Tensor:
        """``[batch, seq, width]`` → ``[batch, seq, d_head]``."""
        if self.stream is not None:
            h = self.stream.unpack(h)
        for step in self.steps:
            h = step(h)
        return h

    def __str__(self) -> str:
        names = [step.name if step.module is not None else f"× {step.scale:g}" for step in self.steps]
        return " → ".join(names) or "nothing"


@dataclass(frozen=True, slots=True)
class Injection:
    """The tail of a model whose own code, not a chain of modules, leads to the unembedding.

    The model runs on placeholder tokens with its blocks bypassed; what leaves the last block is replaced by ``h``, and
    the pass ends at the unembedding's door. Dearer than a chain of modules, and as right: parity is checked on tokens
    other than the placeholders.
    """

    run: Callable[[Tensor], Any]
    blocks: tuple[nn.Module, ...]
    stream: Stream
    head: nn.Module
    device: torch.device
    limit: int | None = None
    arity: int = 0  # parts of a block's output tuple; 0 where it is the stream alone

    def __call__(self, h: Tensor) -> Tensor:
        """``[batch, seq, width]`` → ``[batch, seq, d_head]``."""
        flat = h.reshape(1, -1, h.shape[-1])
        size = min(_CHUNK, self.limit or _CHUNK)
        parts = [self._run(part) for part in torch.split(flat, size, dim=1)] if flat.shape[1] else [self._run(flat)]
        x = torch.cat(parts, dim=1)
        return x.reshape(*h.shape[:-1], x.shape[-1])

    def _run(self, h: Tensor) -> Tensor:
        ids = torch.full((1, h.shape[1]), 3, dtype=torch.long, device=self.device)
        found: list[Tensor] = []
        with _bypassed(self.blocks, self.stream, self.stream.unpack(h), self.arity), stopping_at(self.head, found):
            self.run(ids)
        if not found:
            raise UnsupportedModel("the unembedding was not reached with the blocks bypassed")
        x = found[0]
        return x.reshape(1, -1, x.shape[-1]) if x.dim() != 3 else x

    def __str__(self) -> str:
        return "the model's own code, blocks bypassed"


@contextmanager
def _bypassed(blocks: Sequence[nn.Module], stream: Stream, last: Tensor, arity: int) -> Iterator[None]:
    """While open, blocks hand on what they are given (where their output is simple) and the last gives ``last``."""
    plain = stream.leaves in ((), (0,)) and stream.enters == (0, 0)
    shadowed: list[tuple[nn.Module, Any]] = []
    handles = []
    try:
        if plain:
            for block in blocks[:-1]:
                shadowed.append((block, block.__dict__.get("forward")))
                block.__dict__["forward"] = _handing_on(block, arity)
        put = here(lambda _m, _a, output: replaced(output, stream.leaves, last))
        handles.append(blocks[-1].register_forward_hook(put))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block, before in shadowed:
            block.__dict__.pop("forward", None)
            if before is not None:
                block.__dict__["forward"] = before


def _handing_on(block: nn.Module, arity: int) -> Callable[..., Any]:
    """A block's method that gives what it was given; in another thread the block's own."""
    usual, own = block.forward, threading.get_ident()

    def forward(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != own:
            return usual(*args, **kwargs)
        return (args[0], *[None] * (arity - 1)) if arity else args[0]

    return forward


def replaced(output: Any, path: tuple[Any, ...], h: Tensor) -> Any:
    """``output`` (nested tuples, lists and dicts) with ``h`` at ``path``; what it holds beside is not copied."""
    if not path:
        return h
    if isinstance(output, dict):
        copy = type(output)(**output)
        copy[path[0]] = replaced(output[path[0]], path[1:], h)
        return copy
    parts = list(output)
    parts[path[0]] = replaced(parts[path[0]], path[1:], h)
    return tuple(parts) if isinstance(output, tuple) else parts


def scale_between(a: Tensor, b: Tensor) -> float | None:
    """The constant ``c`` with ``b = c·a`` to rounding (exactly 1.0 when equal), or None when there is none."""
    if a.shape != b.shape:
        if a.dim() == b.dim() == 3 and a.shape[-1] == b.shape[-1] and b.shape[1] <= a.shape[1]:
            a = a[:, -b.shape[1] :]
        elif b.dim() == 2 and a.dim() == 3 and a.numel() == b.numel():
            b = b.reshape(a.shape)
        if a.shape != b.shape:
            return None
    if torch.equal(a, b):
        return 1.0
    x, y = a.double().flatten(), b.double().flatten()
    norm = float(x @ x)
    if norm == 0.0 or not math.isfinite(norm):
        return None
    ratio = float(x @ y) / norm
    if ratio == 0.0 or float((y - ratio * x).abs().max()) > 2e-3 * float(y.abs().max()) * slack(b):
        return None
    return _tidy(ratio, slack(b))


def slack(t: Tensor) -> float:
    """How much coarser than the bound for half precision the comparison may be: 1 there, 0.01 in float32."""
    return 1.0 if t.dtype in (torch.bfloat16, torch.float16) else 1e-2


def _tidy(ratio: float, loose: float) -> float:
    """A ratio that rounding has blurred, put back on the simple number (k/1024, 1/k) it must be, where one is near."""
    for candidate in (1.0, round(ratio * 1024) / 1024, *(1 / k for k in range(2, 257))):
        if candidate and abs(ratio - candidate) <= 1e-4 * loose * abs(ratio):
            return float(candidate)
    return ratio

"""Blocks that can be run one by one, rows apart: Llama-like, GPT-2-like and GPT-NeoX-like models.

transformers runs a model from its first block to its last. Leaving at a layer, running only some rows deeper, and
decoding without its per-token overhead need the blocks themselves; here they are, on the model's own weights, with a
key-value cache in which every row has its own length and no padding. :func:`native` compares every layer with the
model's own pass before it gives a runner out, so a family that does something else is not run this way.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import native_families
from .native_families import Family
from .recorder import evaluating

__all__ = ["KV", "Runner", "Where", "native", "runner_of"]


@dataclass(slots=True)
class KV:
    """Keys and values a layer, each ``[rows, kv_heads, capacity, head_dim]``; position is index, in every row."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.keys[0].shape[0])

    @property
    def capacity(self) -> int:
        """Most tokens that a row can hold."""
        return int(self.keys[0].shape[2])

    def select(self, rows: Tensor) -> KV:
        """The same for some rows only (copies)."""
        return KV([k[rows] for k in self.keys], [v[rows] for v in self.values])


@dataclass(slots=True)
class Where:
    """Which cache rows a call works on and from which position each goes on, shared by all layers of a step.

    ``start``: one position for all rows, or ``[rows]``. ``rows``: indices into the cache, or None for all of them.
    """

    start: int | Tensor
    width: int
    rows: Tensor | None
    positions: Tensor  # [rows, width] or [width]
    total: int  # keys that can be seen: the largest position + 1
    cos: Tensor | None = None
    sin: Tensor | None = None
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)


class Runner:
    """Runs single blocks of one model. Make it with :func:`native`."""

    def __init__(self, lm: Any, family: Family, capacity: int) -> None:
        self.lm = lm
        self.family = family
        self.n_layers: int = lm.n_layers
        self._table_for = 0
        self._cos: Tensor | None = None
        self._sin: Tensor | None = None
        self._rope(capacity)

    def new_kv(self, rows: int, capacity: int) -> KV:
        """An empty cache for ``rows`` rows of at most ``capacity`` tokens."""
        f = self.family
        shape = (rows, f.kv_heads, capacity, f.head_dim)
        dtype, device = self.lm.dtype, self.lm.device
        keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(self.n_layers)]
        return KV(keys, [torch.zeros_like(k) for k in keys])

    def where(self, start: int | Tensor, width: int, rows: Tensor | None = None) -> Where:
        """Work out positions and rotary tables for a step; see :class:`Where`."""
        device = self.lm.device
        if isinstance(start, Tensor) and int(start.min()) == int(start.max()):
            start = int(start[0])
        if isinstance(start, int):
            positions = torch.arange(start, start + width, device=device)
            total = start + width
        else:
            start = start.to(device)
            positions = start[:, None] + torch.arange(width, device=device)
            total = int(start.max()) + width
        return self._turned(Where(start, width, rows, positions, total))

    def where_at(self, positions: np.ndarray, rows: Tensor | None = None) -> Where:
        """The same for any positions ``[rows, width]``, in any order: each token sees the positions up to its own."""
        if positions.shape[1] == 1 or bool((np.diff(positions, axis=1) == 1).all()):
            return self.where(torch.from_numpy(positions[:, 0].copy()), positions.shape[1], rows)
        device = self.lm.device
        at = torch.from_numpy(positions).to(device)
        own = None if rows is None else rows.to(device)
        return self._turned(Where(at[:, 0], positions.shape[1], own, at, int(positions.max()) + 1))

    def _turned(self, where: Where) -> Where:
        """With the rotary tables of its positions."""
        positions = where.positions
        if self.family.rotary is not None:
            self._rope(where.total)
            if self._cos is None or self._sin is None:
                raise RuntimeError("the rotary table was not made")
            shape = (*positions.shape, 1, -1)
            where.cos, where.sin = self._cos[positions].view(shape), self._sin[positions].view(shape)
        return where

    def embed(self, ids: Tensor, where: Where) -> Tensor:
        """Layer 0 of token ids ``[rows, width]`` → ``[rows, width, d_model]``."""
        return self.family.embed(ids, where.positions)

    def block(self, j: int, x: Tensor, kv: KV, where: Where, *, attention: bool = True, mlp: bool = True) -> Tensor:
        """Run block ``j`` (1..N) on ``[rows, width, d_model]``; its keys and values go into ``kv``.

        ``attention`` and ``mlp`` leave a sub-layer out (drafts do).
        """
        f = self.family
        if not attention:
            return f.finish(j - 1, x, None, mlp)
        q, k, v = f.project(j - 1, x, where.cos, where.sin)
        self.store(kv.keys[j - 1], k, where)
        self.store(kv.values[j - 1], v, where)
        keys, values = kv.keys[j - 1], kv.values[j - 1]
        if where.rows is not None:
            keys, values = keys[where.rows, :, : where.total], values[where.rows, :, : where.total]
        else:
            keys, values = keys[:, :, : where.total], values[:, :, : where.total]
        mixed = _attend(q, keys, values, self._mask(where, f.window(j - 1)), f.scaling)
        return f.finish(j - 1, x, mixed, mlp)

    def store_only(self, j: int, x: Tensor, kv: KV, where: Where) -> None:
        """Put block ``j``'s keys and values of ``x`` into the cache and compute nothing else."""
        _, k, v = self.family.project(j - 1, x, where.cos, where.sin)
        self.store(kv.keys[j - 1], k, where)
        self.store(kv.values[j - 1], v, where)

    def run(self, x: Tensor, kv: KV, where: Where, *, keep: Collection[int] = (), first: int = 1) -> dict[int, Tensor]:
        """Blocks ``first``..N on ``x``; the states at layers ``keep`` (and N) of ``[rows, width, d_model]``."""
        kept = {first - 1: x} if first - 1 in keep else {}
        for j in range(first, self.n_layers + 1):
            x = self.block(j, x, kv, where)
            if j in keep or j == self.n_layers:
                kept[j] = x
        return kept

    @staticmethod
    def store(cache: Tensor, new: Tensor, where: Where) -> None:
        """Write ``new [rows, kv_heads, width, head_dim]`` at its rows and positions."""
        if isinstance(where.start, int):
            into = slice(where.start, where.start + where.width)
            if where.rows is None:
                cache[:, :, into] = new
            else:
                cache[where.rows, :, into] = new
            return
        rows = torch.arange(new.shape[0], device=new.device) if where.rows is None else where.rows
        cache[rows[:, None], :, where.positions] = new.transpose(1, 2)

    def _mask(self, where: Where, window: int | None) -> Tensor | None:
        """What each query may see: ``[rows or 1, 1, width, total]``, or None when it is everything."""
        if window is not None and where.total <= window:
            window = None
        if window not in where.masks:
            if isinstance(where.start, int) and where.width == 1 and window is None:
                where.masks[window] = None
            else:
                at = where.positions if where.positions.dim() == 2 else where.positions[None]
                keys = torch.arange(where.total, device=at.device)
                seen = keys <= at[..., None]
                if window is not None:
                    seen &= keys > at[..., None] - window
                where.masks[window] = seen[:, None]
        return where.masks[window]

    def _rope(self, capacity: int) -> None:
        if self.family.rotary is None or capacity <= self._table_for:
            return
        size = max(256, 1 << (capacity - 1).bit_length())
        at = torch.arange(size, device=self.lm.device)[None]
        # The model computes its angles in float32 whatever its dtype, then rounds.
        like = torch.zeros(1, 1, dtype=self.lm.dtype, device=self.lm.device)
        with evaluating(self.lm.model):
            cos, sin = self.family.rotary(like, at)
        self._cos, self._sin, self._table_for = cos[0], sin[0], size


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """``q [r, heads, s, hd]`` over ``[r, kv_heads, n, hd]`` → ``[r, s, heads·hd]``."""
    r, heads, s, hd = q.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    if s == 1:
        # One token a row: the heads of a group are the rows of one small product, and no key is copied.
        weights = torch.matmul(q.view(r, kv_heads, group, hd), keys.transpose(-1, -2)).mul_(scaling)
        if mask is not None:
            weights = weights.masked_fill_(~mask, -torch.inf)
        weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.matmul(weights, values).view(r, 1, heads * hd)
    if group > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scaling)
    return mixed.transpose(1, 2).reshape(r, s, heads * hd)


def runner_of(lm: Any) -> Runner | None:
    """:func:`native`, asked once a model."""
    if "_runner" not in lm.__dict__:
        lm._runner = native(lm)
    return lm._runner  # type: ignore[no-any-return]


def native(lm: Any) -> Runner | None:
    """A runner for ``lm``, or None when its family is not known or a layer does not come out equal.

    Without one nothing but leaving early is lost: everything else works through the model's own pass.
    """
    family = native_families.family_of(lm)
    if family is None:
        return None
    with evaluating(lm.model):
        runner = Runner(lm, family, 64)
        ids = (torch.arange(48, device=lm.device).view(2, 24) * 37 + 5) % lm.vocab_size
        want = lm.forward(ids, layers="all").hidden
        kv = runner.new_kv(2, ids.shape[1])
        split = max(1, ids.shape[1] // 2)
        got: list[dict[int, Tensor]] = []
        for a, b in ((0, split), (split, ids.shape[1] - 1), (ids.shape[1] - 1, ids.shape[1])):
            if b > a:
                at = runner.where(a, b - a)
                got.append(runner.run(runner.embed(ids[:, a:b], at), kv, at, keep=range(lm.n_layers + 1)))
    bound = 5e-2 if lm.dtype in (torch.bfloat16, torch.float16) else 1e-4
    for j, state in want.items():
        ours = torch.cat([part[j] for part in got], dim=1).float()
        if not float((ours - state.float()).abs().max()) <= bound * max(1.0, float(state.abs().max())):
            return None
    return runner

"""Blocks that can be run one by one, rows apart: Llama-like, GPT-2-like and GPT-NeoX-like models.

transformers runs a model from its first block to its last. Leaving at a layer, running only some rows deeper, and
decoding without its per-token overhead need the blocks themselves; here they are, on the model's own weights, with a
key-value cache in which every row has its own length and no padding. :func:`native` compares every layer with the
model's own pass before it gives a runner out, so a family that does something else is not run this way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from exitlens.compute.compiled import compiled_before
from exitlens.compute.matmul import plain_linear
from exitlens.compute.prepacked import packed
from exitlens.models.layered import Layered
from exitlens.models.layout.final_path import FinalPath
from exitlens.models.layout.hooks import eval_mode, undisturbed
from exitlens.models.native import families as native_families
from exitlens.models.native.agreement import agrees, compiled_agrees
from exitlens.models.native.attention import attend, attend_shared, attend_whole
from exitlens.models.native.compiled_blocks import KERNELS, CompiledBlocks, compiled_blocks
from exitlens.models.native.families import Family, norm_of, small_enough
from exitlens.models.native.known import unknown_field
from exitlens.models.native.kv_cache import KV, Shared, Where
from exitlens.models.protocol import LayeredModel
from exitlens.progress import progress

__all__ = ["KV", "Runner", "Shared", "Where", "logits_of", "native", "runner_of"]


_FEW = 16  # rows whose logits stay with the compiled blocks: of more, another product's are faster


class Runner:
    """Runs single blocks of one model. Make it with :func:`native`."""

    def __init__(self, lm: Layered, family: Family, capacity: int) -> None:
        self.lm = lm
        self.family = family
        self.n_layers = lm.n_layers
        self._table: tuple[Tensor, Tensor] | None = None
        self._head = self._norm = None
        self.compiled: CompiledBlocks | None = None  # all blocks in one call, where there are any
        self._last_norm: nn.Module | None = None
        head, tail = lm.layout.head, lm.layout.tail
        if isinstance(head, nn.Linear) and plain_linear(head) and small_enough(lm):
            self._head = packed(head.weight, head.bias)
        # A tail of one norm, as these families have: run without looking through the model first.
        if isinstance(tail, FinalPath) and tail.stream is None and len(tail.steps) == 1 and tail.steps[0].scale == 1.0:
            module = self._last_norm = tail.steps[0].module
            fast = None if module is None else norm_of(module)
            self._norm = None if fast is module else fast
        if family.rotary is not None:
            self._rope(family.rotary, capacity)

    def new_kv(self, rows: int, capacity: int, shared: Shared | None = None) -> KV:
        """An empty cache for ``rows`` rows of at most ``capacity`` tokens, those of ``shared`` among them."""
        f = self.family
        shape = (rows, f.kv_heads, capacity - (0 if shared is None else shared.length), f.head_dim)
        dtype, device = self.lm.dtype, self.lm.device
        keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(self.n_layers)]
        kv = KV(keys, [torch.zeros_like(k) for k in keys], shared, blank=True)
        if self.compiled is not None:
            self.compiled.open(kv)
        return kv

    def can_share(self, capacity: int) -> bool:
        """Whether every block of a text of ``capacity`` tokens sees all that came before."""
        windows = [self.family.window(j) for j in range(self.n_layers)]
        return all(window is None or window >= capacity for window in windows)

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

    def moved(self, start: int, width: int) -> Where:
        """Positions 0..width − 1 whose rotation is that of ``start``..: what a model does late, without a long text."""
        where, rotary = self.where(0, width), self.family.rotary
        if rotary is not None:
            where.cos, where.sin = (t.view(width, 1, -1) for t in self._tables(rotary, start, width))
        return where

    def _turned(self, where: Where) -> Where:
        """With the rotary tables of its positions."""
        positions = where.positions
        if self.family.rotary is not None:
            cos, sin = self._rope(self.family.rotary, where.total)
            shape = (*positions.shape, 1, -1)
            where.cos, where.sin = cos[positions].view(shape), sin[positions].view(shape)
        return where

    def embed(self, ids: Tensor, where: Where) -> Tensor:
        """Layer 0 of token ids ``[rows, width]`` → ``[rows, width, d_model]``."""
        if ids.device.type == "cpu":
            self.lm.check_ids(ids)
        return self.family.embed(ids, where.positions)

    def block(self, j: int, x: Tensor, kv: KV, where: Where, *, attention: bool = True, mlp: bool = True) -> Tensor:
        """Run block ``j`` (1..N) on ``[rows, width, d_model]``; its keys and values go into ``kv``.

        ``attention`` and ``mlp`` leave a sub-layer out (drafts do).
        """
        f = self.family
        if not attention:
            return f.finish(j - 1, x, None, mlp)
        q, k, v = f.project(j - 1, x, where.cos, where.sin)
        keys, values, past = kv.keys[j - 1], kv.values[j - 1], kv.past
        where.store((keys, values), (k, v), past)
        kv.written()
        seen, window = where.total - past, f.window(j - 1)
        if q.shape[2] > 1 and seen == q.shape[2] and kv.shared is None and (window is None or window >= seen):
            return f.finish(j - 1, x, attend_whole(q, k, v, f.scaling), mlp)  # a text from its first token on
        if where.rows is not None:
            keys, values = keys[where.rows, :, :seen], values[where.rows, :, :seen]
        else:
            keys, values = keys[:, :, :seen], values[:, :, :seen]
        mask = where.mask(window, past, q.shape[1] // keys.shape[1], q.dtype)
        if kv.shared is None:
            mixed = attend(q, keys, values, mask, f.scaling)
        else:
            held = kv.shared.keys[j - 1], kv.shared.values[j - 1]
            mixed = attend_shared(q, held, keys, values, mask, f.scaling)
        return f.finish(j - 1, x, mixed, mlp)

    def store_only(self, first: int, x: Tensor, kv: KV, where: Where) -> None:
        """Put the keys and values that blocks ``first``..N make of ``x`` into the cache and compute nothing else."""
        if self.compiled is not None and self.compiled.fits(len(x), where):
            self.compiled(x, kv, where, first=first, store_only=True)
            return
        for j in range(first, self.n_layers + 1):
            _, k, v = self.family.project(j - 1, x, where.cos, where.sin)
            where.store((kv.keys[j - 1], kv.values[j - 1]), (k, v), kv.past)
        kv.written()

    def run(
        self,
        x: Tensor,
        kv: KV,
        where: Where,
        *,
        keep: Collection[int] = (),
        first: int = 1,
        last: int | None = None,
        skip: tuple[Collection[int], Collection[int]] = ((), ()),
    ) -> dict[int, Tensor]:
        """Blocks ``first``..``last`` (default N) on ``x [rows, width, d_model]``: states at layers ``keep``, ``last``.

        ``skip``: blocks whose attention, and whose MLP, is left out (drafts do that).
        """
        if self.compiled is not None and self.compiled.fits(len(x), where):
            return self.compiled(x, kv, where, keep, first=first, last=last, skip=skip)[0]
        return self.one_by_one(x, kv, where, keep=keep, first=first, last=last, skip=skip)

    def one_by_one(
        self,
        x: Tensor,
        kv: KV,
        where: Where,
        *,
        keep: Collection[int] = (),
        first: int = 1,
        last: int | None = None,
        skip: tuple[Collection[int], Collection[int]] = ((), ()),
    ) -> dict[int, Tensor]:
        """:meth:`run` without compiled blocks."""
        last = self.n_layers if last is None else last
        kept = {first - 1: x} if first - 1 in keep or first > last else {}
        for j in range(first, last + 1):
            attention, mlp = j not in skip[0], j not in skip[1]
            if attention or mlp:
                x = self.block(j, x, kv, where, attention=attention, mlp=mlp)
            if j in keep or j == last:
                kept[j] = x
        return kept

    def step(
        self, tokens: Tensor, kv: KV, where: Where, *, keep: Collection[int] = ()
    ) -> tuple[dict[int, Tensor], Tensor | None]:
        """One token a row ``[rows]`` through all blocks: what :meth:`run` gives, and logits where they came along."""
        x = self.embed(tokens[:, None], where)
        if self.compiled is None or not self.compiled.fits(len(tokens), where):
            return self.one_by_one(x, kv, where, keep=keep), None
        kept, logits = self.compiled(x, kv, where, keep, read=True)
        return kept, None if logits is None else self.lm.logit_transform(logits[:, 0])

    def compile(self) -> None:
        """Take compiled blocks, where there are any and their numbers are those of :meth:`run`."""
        lm, head = self.lm, self.lm.layout.head
        if not small_enough(lm) or not isinstance(head, nn.Linear):
            return
        size = sum(p.numel() for p in lm.model.parameters())
        made = compiled_blocks(lm.blocks, self._last_norm, head, self.family, lm.dtype, size)
        if made is None:
            return
        # The first call of all compiles: a terminal shows that, as it takes half a minute, once.
        with progress("compiling the blocks, once", quiet=compiled_before(*KERNELS)):
            if compiled_agrees(lm, self, made):
                self.compiled = made

    @torch.no_grad()
    def logits(self, h: Tensor, layer: int, lens: Literal["raw", "logit"] = "logit") -> Tensor:
        """``lm.logits`` by a product laid out for few rows, where there is one."""
        lm = self.lm
        early = lens == "raw" and layer < self.n_layers
        if self._head is None or (early and h.shape[-1] != lm.weight.shape[-1]):
            return lm.logits(h, layer, lens)
        h = h.to(lm.dtype)
        if self.compiled is not None and h.numel() <= _FEW * h.shape[-1]:
            return lm.logit_transform(self.compiled.logits(h, normed=early)[..., : lm.vocab_size])
        x = h if early else (self._norm or lm.norm)(h)
        return lm.logit_transform(self._head(x)[..., : lm.vocab_size])

    def _rope(self, rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], capacity: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least ``capacity`` positions, kept; another thread may want more meanwhile."""
        table = self._table
        if table is None or len(table[0]) < capacity:
            table = self._table = self._tables(rotary, 0, max(256, 1 << (capacity - 1).bit_length()))
        return table

    def _tables(
        self, rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], start: int, size: int
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines of ``size`` positions from ``start``, the sign of the first half of the sines turned."""
        at = torch.arange(start, start + size, device=self.lm.device)[None]
        # The model computes its angles in float32 whatever its dtype, then rounds.
        like = torch.zeros(1, 1, dtype=self.lm.dtype, device=self.lm.device)
        with eval_mode(self.lm.model):
            cos, sin = rotary(like, at)
        half = sin.shape[-1] // 2
        return cos[0], torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)[0]


def runner_of(lm: LayeredModel) -> Runner | None:
    """:func:`native`, asked once a model, and again where its weights have changed: a runner holds copies of them."""
    if not isinstance(lm, Layered):
        return None
    held = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in lm.model.parameters())
    with undisturbed(lm.model):
        if lm.held_runner is None or lm.held_runner[0] != held:
            lm.held_runner = held, native(lm)
        runner: Runner | None = lm.held_runner[1]
    return runner


def logits_of(lm: LayeredModel) -> Callable[..., Tensor]:
    """``lm.logits``, or the same of its runner where that is faster."""
    runner = runner_of(lm)
    return lm.logits if runner is None else runner.logits


def native(lm: Layered) -> Runner | None:
    """A runner for ``lm``, or None when its family or a field of its configuration is not known, it lies on several
    devices, or a layer does not come out equal (see :mod:`exitlens.models.native.agreement`).

    Without one nothing but early exit is lost: everything else works through the model's own pass.
    """
    if unknown_field(lm.config) is not None or any(p.device != lm.device for p in lm.model.parameters()):
        return None  # spread over devices: its own pass moves the states from one to the next
    with eval_mode(lm.model):
        family = native_families.family_of(lm)
        if family is None:
            return None
        runner = Runner(lm, family, 64)
        if not agrees(lm, runner):
            return None
        runner.compile()
    return runner

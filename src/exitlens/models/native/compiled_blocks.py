"""Tokens through a model's blocks in one compiled call: Llama-like models in bf16, processors with tile registers.

The weights are held a second time, in the order in which :mod:`._kernels` reads them, in memory of huge pages: read
from pages of 4 kB the same bytes take half as long again. Everywhere else blocks are run one by one
(:class:`~exitlens.models.native.runner.Runner`).
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from exitlens.compute.compiled import MISSING, kernels, problem, tile_registers
from exitlens.compute.matmul import plain_linear
from exitlens.models.native.families import LlamaLike, rms_parts
from exitlens.models.native.kv_cache import KV, Where

__all__ = ["KERNELS", "CompiledBlocks", "compiled_blocks"]

KERNELS = (
    "exitlens.models.native._kernels", "exitlens.models.native._attention", "exitlens.models.native._lanes",
    "exitlens.models.native._machine", "exitlens.models.native._shapes", "exitlens.compute.vectors",
    "exitlens.compute.tiles",
)  # fmt: skip
_LOG = logging.getLogger("exitlens")
_LEAST = 20_000_000  # parameters: below, compiling takes longer than it saves
_THREADS = 16
_MOST = 8192  # tokens of a call: more are no faster, and take room
_KEPT_ROOM = 64  # tokens of calls whose room is kept from call to call
_ACTIVATIONS = ("SiLU", "SiLUActivation")


class CompiledBlocks:
    """The blocks of one model. Make it with :func:`compiled_blocks`."""

    def __init__(self, run: Any, blocks: Sequence[Any], norm: Any, head: nn.Linear, family: LlamaLike) -> None:
        self._run, self._lanes, self._step = run, int(run.LANES), int(run.STEP)
        first = blocks[0]
        hd, kv = family.head_dim, family.kv_heads
        heads = int(first.self_attn.q_proj.out_features) // hd
        width, hidden = int(first.self_attn.q_proj.in_features), int(first.mlp.gate_proj.out_features)
        self.vocab = int(head.out_features)
        vocab = _whole(self.vocab, int(run.PAIR))
        norms = [rms_parts(m) for block in blocks for m in (block.input_layernorm, block.post_attention_layernorm)]
        norms.append(rms_parts(norm))
        known = [found for found in norms if found is not None]
        if len(known) != len(norms) or len({eps for _, eps in known}) != 1:
            raise ValueError("norms of another kind")
        biases = [[p.bias for p in _qkv(block)] for block in blocks]
        given = [b for each in biases for b in each]
        if any(b is None for b in given) and any(b is not None for b in given):
            raise ValueError("biases on some projections only")
        padded = _whole(hd, self._step)
        self.shape = run.Shape(len(blocks), heads, kv, hd, padded, width, hidden, vocab, known[0][1], family.scaling)
        packed, starts = _packed([_products(block) for block in blocks])
        filled = torch.zeros(vocab, width, dtype=torch.bfloat16)
        filled[: self.vocab] = head.weight.detach()
        self._weights = run.Weights(
            packed, starts, _packed([[filled]])[0],
            np.stack([w.detach().float().numpy() for w, _ in known]),
            np.zeros((len(blocks), (heads + 2 * kv) * hd), np.float32) if given[0] is None
            else np.stack([torch.cat(each).detach().float().numpy() for each in biases]),
            np.array([family.window(j) or 0 for j in range(len(blocks))], np.int64),
        )  # fmt: skip
        self._settings = run.tile_settings()
        self._alone = threading.Lock()  # threads of two calls would wait for each other
        self._pool: ThreadPoolExecutor | None = None
        self._room: dict[int, tuple[Any, ...]] = {}
        self._group = heads // kv
        if self._group > self._lanes:
            raise ValueError("more heads share their keys than a tile has rows")

    def fits(self, rows: int, where: Where) -> bool:
        """Whether a call can be made here."""
        return 0 < rows * where.width <= _MOST

    def __call__(
        self,
        x: Tensor,
        kv: KV,
        where: Where,
        keep: Collection[int] = (),
        *,
        first: int = 1,
        last: int | None = None,
        skip: tuple[Collection[int], Collection[int]] = ((), ()),
        read: bool = False,
        store_only: bool = False,
    ) -> tuple[dict[int, Tensor], Tensor | None]:
        """Blocks ``first``..``last`` (default N) on ``x [rows, width, d_model]``, states at layer ``first`` − 1.

        States at layers ``keep`` and ``last``, and with ``read`` the logits ``[rows, width, vocab]`` in float32. Keys
        and values go into ``kv``. ``skip``: blocks whose attention, and whose MLP, is left out. ``store_only``: only
        the keys and values that every block makes of ``x``.
        """
        shape = self.shape
        last = shape.layers if last is None else last
        if where.cos is None or where.sin is None:
            raise RuntimeError("the rotary table was not made")
        rows, width, _ = x.shape
        count = rows * width
        held = np.arange(rows) if where.rows is None else where.rows.numpy()
        at = where.positions.expand(rows, width).reshape(-1).numpy().astype(np.int64)
        wanted = sorted({j for j in (*keep, last) if first <= j <= last})
        slots = np.full(shape.layers, -1, np.int64)
        slots[[j - 1 for j in wanted]] = np.arange(len(wanted))
        parts = np.ones((shape.layers, 2), np.int8)
        for column, skipped in enumerate(skip):
            parts[[j - 1 for j in skipped], column] = 0
        if store_only:
            parts[:] = 2, 0
        blocks = _blocks(rows, width, self._lanes // self._group)
        plan = self._run.Plan(first, last, parts, int(read), slots, blocks)
        cos, sin = (
            t.float().reshape(-1, width, shape.head_dim).expand(rows, -1, -1).reshape(count, -1).contiguous().numpy()
            for t in (where.cos, where.sin)
        )
        kept = torch.empty(len(wanted), rows, width, shape.width, dtype=torch.bfloat16)
        logits = torch.empty(count if read else 0, shape.vocab)
        with self._alone:
            state = self._run.State(
                x.reshape(count, -1).float().numpy(), np.repeat(held, width).astype(np.int64), at, cos, sin,
                kept.view(torch.int16).view(len(wanted), count, shape.width).numpy(), logits.numpy(),
                *self._held(count),
            )  # fmt: skip
            self._all_threads(self._cache(kv), state, plan)
        found = dict(zip(wanted, kept, strict=True))
        if first - 1 in keep or not wanted:
            found[first - 1] = x
        return found, logits.view(rows, width, -1)[..., : self.vocab] if read else None

    def logits(self, h: Tensor, *, normed: bool) -> Tensor:
        """Logits of states ``[..., d_model]`` in bf16, behind the last norm or (``normed``) as they are."""
        return self._product(h, self.shape, self._weights, normed)[..., : self.vocab]

    def product(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """``x [..., d_model] ↦ x · weight [v, d_model]ᵀ`` in float32, in the same threads as the blocks.

        The threads of another library go on looking for work a while after each product, and take the blocks' time.
        """
        v, d = weight.shape
        filled = torch.zeros(_whole(v, int(self._run.PAIR)), d, dtype=torch.bfloat16)
        filled[:v] = weight.detach()
        shape, weights = self.shape._replace(vocab=len(filled)), self._weights._replace(head=_packed([[filled]])[0])
        return lambda x: self._product(x, shape, weights, True)[..., :v]

    def _product(self, h: Tensor, shape: Any, weights: Any, normed: bool) -> Tensor:
        flat = h.reshape(-1, h.shape[-1])
        count = len(flat)
        logits = torch.empty(count, shape.vocab)
        plan = self._run.Plan(
            1, 0, np.ones((shape.layers, 2), np.int8), 2 if normed else 1, np.full(shape.layers, -1, np.int64),
            np.zeros((0, 2), np.int64),
        )  # fmt: skip
        empty = np.zeros((0, shape.head_dim), np.float32)
        nobody, nowhere = np.zeros(0, np.int64), np.zeros((shape.layers, 2), np.int64)
        cache = self._run.Cache(nowhere, nowhere, nowhere, 0, 0)
        with self._alone:
            state = self._run.State(
                flat.float().numpy(), nobody, nobody, empty, empty, np.zeros((0, 0, shape.width), np.int16),
                logits.numpy(), *self._held(count),
            )  # fmt: skip
            self._all_threads(cache, state, plan, shape, weights)
        return logits.view(*h.shape[:-1], -1)

    def open(self, kv: KV) -> None:
        """Make room for the packed keys of a cache, so that views of some of its rows share it."""
        self._cache(kv)

    def _cache(self, kv: KV) -> Any:
        """Where keys and values lie, and lie packed; those that rows share are packed once."""
        shape, rows = self.shape, kv.rows
        if kv.packed is None:
            room = _whole(int(kv.keys[0].shape[2]), self._step)
            if kv.blank:
                size = rows * shape.kv_heads * room * shape.padded
                kv.packed = torch.zeros(shape.layers, 2, rows, size // max(1, rows), dtype=torch.int16)
            else:
                kv.packed = self._packed_keys(kv.keys, kv.values, rows)
            kv.blank = False
        own = np.array([[k.data_ptr(), v.data_ptr()] for k, v in zip(kv.keys, kv.values, strict=True)], np.int64)
        shared = np.zeros_like(own)
        if kv.shared is not None:
            if not kv.shared.packed:
                keys = [k.transpose(-1, -2)[None] for k in kv.shared.keys]
                kv.shared.packed.append(self._packed_keys(keys, [v[None] for v in kv.shared.values], 1))
            shared = _addresses(kv.shared.packed[0])
        return self._run.Cache(own, _addresses(kv.packed), shared, int(kv.keys[0].shape[2]), kv.past)

    def _packed_keys(self, keys: Sequence[Tensor], values: Sequence[Tensor], rows: int) -> Tensor:
        """Keys and values a layer ``[rows, kv_heads, n, head_dim]`` as weights are packed ``[layers, 2, rows, …]``."""
        layers, deep = len(keys), self.shape.padded
        n = _whole(int(keys[0].shape[2]), self._step)
        both = []
        for given, v, d in ((torch.stack(list(keys)), n, deep), (torch.stack(list(values)).transpose(-1, -2), deep, n)):
            filled = F.pad(given, (0, d - given.shape[-1], 0, v - given.shape[-2]))
            both.append(_tiles(filled).view(layers, rows, -1))
        return torch.stack(both, dim=1)

    def _held(self, count: int) -> tuple[Any, ...]:
        """Room to work in; that of small calls is kept."""
        if count not in self._room:
            shape, step, rows = self.shape, self._step, _whole(count, self._lanes)
            made = (
                np.zeros((count, (shape.heads + 2 * shape.kv_heads) * shape.head_dim), np.float32),
                _shorts((count * shape.heads + self._lanes) * shape.padded),
                _shorts(rows * (shape.heads * shape.head_dim + step)),
                _shorts(rows * (shape.hidden + step)),
                _shorts(rows * (shape.width + step)),
                np.zeros(shape.layers, np.int64), np.zeros(8, np.int64),
            )  # fmt: skip
            if count > _KEPT_ROOM:
                return made
            self._room[count] = made
        held = self._room[count]
        held[-1][0] = 0
        held[-2][:] = 0
        return held

    def _all_threads(self, cache: Any, state: Any, plan: Any, shape: Any = None, weights: Any = None) -> None:
        threads = max(1, min(torch.get_num_threads(), _THREADS))
        shape, weights = shape or self.shape, weights or self._weights

        def work(thread: int) -> None:
            self._run.run(shape, weights, cache, state, plan, self._settings, thread, threads)

        if self._pool is None or self._pool._max_workers < threads - 1:
            self._pool = ThreadPoolExecutor(max(1, threads - 1), "exitlens-blocks")
        others = [self._pool.submit(work, thread) for thread in range(1, threads)]
        work(0)
        for other in others:
            other.result()


def compiled_blocks(
    blocks: Sequence[Any], norm: Any, head: Any, family: Any, dtype: torch.dtype, size: int
) -> CompiledBlocks | None:
    """The compiled blocks of a model of ``size`` parameters, or None where there is none.

    ``norm``, ``head``: between the last block and the logits, where that is one RMS norm and a plain product.
    """
    if dtype != torch.bfloat16 or size < _LEAST or type(family) is not LlamaLike or norm is None:
        return None
    if not plain_linear(head) or head.bias is not None or head.weight.device.type != "cpu":
        return None
    if not all(_plain(block) for block in blocks):
        return None
    if not _usable() or not tile_registers():
        return None
    run = kernels(*KERNELS)
    sizes = [size for block in blocks for product in _products(block) for size in product.shape]
    if any(size % int(run.STEP) for size in sizes) or family.head_dim % 2:
        return None
    try:
        return CompiledBlocks(run, blocks, norm, head, family)
    except (ValueError, AttributeError, TypeError):
        return None


@functools.cache
def _usable() -> bool:
    """Whether the kernels can be used; a line in the log, once, where numba is here but does not load."""
    why = problem(*KERNELS)
    if why and why != MISSING:
        _LOG.warning("decoding in bf16 takes about twice the time: %s", why)
    return why is None


def _qkv(block: Any) -> list[Any]:
    return [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]


def _plain(block: Any) -> bool:
    a, m = block.self_attn, block.mlp
    free = [a.o_proj, m.gate_proj, m.up_proj, m.down_proj]
    return (
        all(plain_linear(p) and p.weight.dtype == torch.bfloat16 for p in (*_qkv(block), *free))
        and all(p.bias is None for p in free)
        and getattr(a, "q_norm", None) is None
        and type(m.act_fn).__name__ in _ACTIVATIONS
    )


def _products(block: Any) -> list[Tensor]:
    """The four products of a block; gate and up in turns of 16 outputs."""
    a, m = block.self_attn, block.mlp
    gate, up = m.gate_proj.weight.detach(), m.up_proj.weight.detach()
    d = gate.shape[1]
    pair = torch.stack([gate.reshape(-1, 16, d), up.reshape(-1, 16, d)], dim=1).reshape(-1, d)
    qkv = torch.cat([p.weight.detach() for p in _qkv(block)])
    return [qkv, a.o_proj.weight.detach(), pair, m.down_proj.weight.detach()]


def _whole(count: int, step: int) -> int:
    return -(-count // step) * step


def _shorts(count: int) -> NDArray[np.int16]:
    """Room that begins where a line of the cache does. NumPy asks for huge pages."""
    made = np.zeros(count + 32, np.int16)
    first = -made.ctypes.data % 64 // 2
    return made[first : first + count]


def _addresses(packed: Tensor) -> NDArray[np.int64]:
    """Where each layer's packed keys and values begin ``[layers, 2]``."""
    layer, part = packed.stride(0), packed.stride(1)
    places = np.arange(len(packed), dtype=np.int64)[:, None] * layer + np.array([0, part])
    found: NDArray[np.int64] = packed.data_ptr() + 2 * places
    return found


def _blocks(rows: int, width: int, most: int) -> NDArray[np.int64]:
    """Up to ``most`` neighbouring tokens of a row at a time: the first, and how many."""
    starts = np.arange(0, width, most)
    one = np.stack([starts, np.minimum(most, width - starts)], axis=1)
    every = np.arange(rows)[:, None, None] * [width, 0] + one
    return np.ascontiguousarray(every.reshape(-1, 2))


def _tiles(weight: Tensor) -> Tensor:
    """Weights ``[..., v, d]`` in bf16 as tiles of 32 × 16, two for 32 outputs, inputs in pairs: the bits, flat.

    Tile by tile the inputs go on; then come the next 32 outputs.
    """
    *more, v, d = weight.shape
    pairs = weight.contiguous().view(torch.int32).view(*more, v // 32, 2, 16, d // 32, 16)
    k = len(more)
    return pairs.permute(*range(k), k, k + 3, k + 1, k + 4, k + 2).contiguous().view(torch.int16).view(-1)


def _packed(layers: Sequence[Sequence[Tensor]]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Weights ``[v, d]`` as tiles, one after the other, and where each begins."""
    total = sum(weight.numel() for layer in layers for weight in layer)
    packed = _shorts(total)
    starts: list[list[int]] = []
    at = 0
    for layer in layers:
        starts.append([])
        for weight in layer:
            packed[at : at + weight.numel()] = _tiles(weight).numpy()
            starts[-1].append(at)
            at += weight.numel()
    return packed, np.array(starts, np.int64)

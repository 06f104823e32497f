"""A step of decoding in one compiled call, for Llama-like models in bf16 on processors with tile registers.

The weights are held a second time, in the order in which :mod:`._kernels` reads them, in memory of huge pages: read
from pages of 4 kB the same bytes take half as long again. Everywhere else, and for more than 16 rows, blocks are run
one by one (:class:`~exitlens.models.native.runner.Runner`).
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exitlens.compute.compiled import MISSING, kernels, problem, tile_registers
from exitlens.compute.matmul import plain_linear
from exitlens.models.native.families import LlamaLike, rms_parts
from exitlens.models.native.kv_cache import KV, Where

__all__ = ["KERNELS", "OneToken", "one_token"]

KERNELS = ("exitlens.models.native._kernels", "exitlens.models.native._machine", "exitlens.compute.tiles")
_LOG = logging.getLogger("exitlens")
_LEAST = 20_000_000  # parameters: below, compiling takes longer than it saves
_THREADS = 16
_ACTIVATIONS = ("SiLU", "SiLUActivation")


class OneToken:
    """The step of one model. Make it with :func:`one_token`."""

    def __init__(self, run: Any, blocks: Sequence[Any], norm: Any, head: nn.Linear, family: LlamaLike) -> None:
        self._run, self._lanes = run, int(run.LANES)
        first = blocks[0]
        hd, kv = family.head_dim, family.kv_heads
        heads = int(first.self_attn.q_proj.out_features) // hd
        width, hidden = int(first.self_attn.q_proj.in_features), int(first.mlp.gate_proj.out_features)
        self.vocab = int(head.out_features)
        vocab = -(-self.vocab // self._lanes) * self._lanes
        norms = [rms_parts(m) for block in blocks for m in (block.input_layernorm, block.post_attention_layernorm)]
        norms.append(rms_parts(norm))
        known = [found for found in norms if found is not None]
        if len(known) != len(norms) or len({eps for _, eps in known}) != 1:
            raise ValueError("norms of another kind")
        biases = [[p.bias for p in _qkv(block)] for block in blocks]
        given = [b for each in biases for b in each]
        if any(b is None for b in given) and any(b is not None for b in given):
            raise ValueError("biases on some projections only")
        self.shape = run.Shape(len(blocks), heads, kv, hd, width, hidden, vocab, known[0][1], family.scaling)
        packed, starts = _packed([_products(block) for block in blocks], self._lanes, int(run.STEP))
        filled = torch.zeros(vocab, width, dtype=torch.bfloat16)
        filled[: self.vocab] = head.weight.detach()
        self._weights = run.Weights(
            packed, starts, _packed([[filled]], self._lanes, int(run.STEP))[0],
            np.stack([w.detach().float().numpy() for w, _ in known]),
            np.zeros((len(blocks), 0), np.float32) if given[0] is None
            else np.stack([torch.cat(each).detach().float().numpy() for each in biases]),
            np.array([family.window(j) or 0 for j in range(len(blocks))], np.int64),
        )  # fmt: skip
        self._settings = run.tile_settings()
        self._alone = threading.Lock()  # threads of two steps would wait for each other
        self._pool: ThreadPoolExecutor | None = None
        self._room: dict[int, tuple[Any, ...]] = {}

    def fits(self, rows: int, where: Where) -> bool:
        """Whether a call is a step that can be taken here."""
        return where.width == 1 and where.rows is None and rows <= self._lanes

    def __call__(self, x: Tensor, kv: KV, where: Where, keep: Collection[int]) -> tuple[dict[int, Tensor], Tensor]:
        """States at layers ``keep`` and N ``[rows, 1, width]``, and the logits ``[rows, vocab]`` in float32.

        ``x [rows, 1, width]``: layer 0 of the new tokens. Their keys and values go into ``kv``.
        """
        shape, rows = self.shape, len(x)
        if where.cos is None or where.sin is None:
            raise RuntimeError("the rotary table was not made")
        own = np.array([[k.data_ptr(), v.data_ptr()] for k, v in zip(kv.keys, kv.values, strict=True)], np.int64)
        shared = np.zeros((shape.layers, 2), np.int64)
        if kv.shared is not None:
            pairs = zip(kv.shared.keys, kv.shared.values, strict=True)
            shared = np.array([[k.data_ptr(), v.data_ptr()] for k, v in pairs], np.int64)
        cache = self._run.Cache(own, shared, int(kv.keys[0].shape[2]), kv.past)
        at = where.positions.reshape(-1).expand(rows).numpy().astype(np.int64)
        cos, sin = (
            t.float().reshape(-1, shape.head_dim).expand(rows, -1).contiguous().numpy() for t in (where.cos, where.sin)
        )
        wanted = np.zeros(shape.layers, np.bool_)
        wanted[[j - 1 for j in keep if j > 0]] = True
        wanted[-1] = True
        kept = np.empty((shape.layers, rows, shape.width), np.float32)
        logits = np.empty((rows, shape.vocab), np.float32)
        with self._alone:
            state = self._run.State(
                np.ascontiguousarray(x[:, 0].float().numpy()), cos, sin, at, wanted, kept, logits, *self._held(rows)
            )
            self._all_threads(cache, state)
        dtype = x.dtype
        found = {j: torch.from_numpy(kept[j - 1]).to(dtype)[:, None] for j in {*keep, shape.layers} if j > 0}
        if 0 in keep:
            found[0] = x
        return found, torch.from_numpy(logits)[:, : self.vocab]

    def _held(self, rows: int) -> tuple[Any, ...]:
        """Room to work in, kept from step to step."""
        if rows not in self._room:
            shape, lanes = self.shape, self._lanes
            self._room[rows] = (
                np.zeros((rows, (shape.heads + 2 * shape.kv_heads) * shape.head_dim), np.float32),
                np.zeros(shape.heads * shape.head_dim * lanes, np.int16),
                np.zeros(shape.hidden * lanes, np.int16),
                np.zeros(8, np.int64),
            )
        self._room[rows][-1][0] = 0
        return self._room[rows]

    def _all_threads(self, cache: Any, state: Any) -> None:
        threads = max(1, min(torch.get_num_threads(), _THREADS))

        def work(thread: int) -> None:
            self._run.step(self.shape, self._weights, cache, state, self._settings, True, thread, threads)

        if self._pool is None or self._pool._max_workers < threads - 1:
            self._pool = ThreadPoolExecutor(max(1, threads - 1), "exitlens-step")
        others = [self._pool.submit(work, thread) for thread in range(1, threads)]
        work(0)
        for other in others:
            other.result()


def one_token(
    blocks: Sequence[Any], norm: Any, head: Any, family: Any, dtype: torch.dtype, size: int
) -> OneToken | None:
    """The compiled step of a model of ``size`` parameters, or None where there is none.

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
        return OneToken(run, blocks, norm, head, family)
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


def _packed(layers: Sequence[Sequence[Tensor]], lanes: int, step: int) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Weights ``[v, d]`` as tiles of ``lanes × step``, one after the other, and where each begins."""
    total = sum(weight.numel() for layer in layers for weight in layer)
    packed = np.empty(total, np.int16)  # NumPy asks for huge pages
    starts: list[list[int]] = []
    at = 0
    for layer in layers:
        starts.append([])
        for weight in layer:
            v, d = weight.shape
            tiles = weight.reshape(v // lanes, lanes, d // step, step).transpose(1, 2).contiguous()
            packed[at : at + weight.numel()] = tiles.view(torch.int16).reshape(-1).numpy()
            starts[-1].append(at)
            at += weight.numel()
    return packed, np.array(starts, np.int64)

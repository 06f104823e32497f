"""The block of rows on a CUDA device in one pass of Triton: logits never leave the chip.

Used where Triton is installed and the statistics asked for allow it. Each program of the kernel takes some rows and a
share of the vocabulary: unembedding tile, online maximum and sums; the shares are put together afterwards. Sums are
kept relative to the running maximum ``m``; when it grows by δ they are carried over as
Σe → e^−δ Σe,  Σde → e^−δ (Σde − δΣe),  Σd²e → e^−δ (Σd²e − 2δΣde + δ²Σe)  (the online softmax of Milakov and Gimelshein
2018, arXiv 1805.02867, for higher moments).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exitlens.lenses.kernels.unembed import LogitBlock, ReadoutPlan, Unembedding

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with GPU builds of torch only
    INSTALLED = False
else:
    INSTALLED = True

__all__ = ["FusedBlock", "sums", "usable"]

# Tiles that Triton's compiler, asked for the H100's machine code, fits into the registers of a processor without
# spilling: with 4 warps instead of 8, or tiles of 256 tokens, it spills. `benchmarks/gpu.py` times others beside them.
_HALF = {"bm": 128, "bn": 128, "bk": 64, "warps": 8, "stages": 4}
_FULL = {"bm": 64, "bn": 128, "bk": 32, "warps": 8, "stages": 3}


def usable(device: torch.device, product: torch.dtype, wants: ReadoutPlan) -> bool:
    """True when the fused pass gives all that is wanted: no look back at logits, no more than the top token."""
    if device.type != "cuda" or product == torch.float64 or wants.stored or wants.top > 1:
        return False
    return INSTALLED


class FusedBlock(LogitBlock):
    """As :class:`~.unembed.LogitBlock`, with no logits kept: :meth:`at` computes single logits anew.

    With a bf16 product nothing is rescored: the sums are float32 and only the inputs are rounded. The rows that KL
    compares with are multiplied in float32 all the same.
    """

    def __init__(self, head: Unembedding, x: Tensor, wants: ReadoutPlan, reference: slice = slice(0, 0)) -> None:
        self.head, self.x, self.wants, self.reference = head, x, wants, reference
        self.m = len(x)
        rows = x.to(head.product)
        found = sums(rows, head.weight, head.bias, head.cap)
        self.shift = found["max"].to(head.dtype)
        self.total, self.first, self.second = found["total"], found["first"], found["second"]
        self.top_ids = found["best"][:, None] if wants.top else None
        self.top_values = torch.zeros_like(self.shift)[:, None] if wants.top else None
        if wants.mean_row:  # one layer's rows more through the plain product, in float32: 1/layers of the work
            need = ReadoutPlan(first=True, second=wants.second, mean_row=True, compared=True)
            own = LogitBlock(head, x[reference], need, slice(0, None))
            self.mean_row, self.mean_bias = own.mean_row, own.mean_bias
            # p_ref is the distribution of these sums, so they stand for its rows.
            self.shift[reference] = own.shift
            self.total[reference], self.first[reference] = own.total, own.first
            self.second[reference] = own.second
            if self.top_ids is not None and self.top_values is not None:
                best = head.single(x[reference], self.top_ids[reference])
                self.top_values[reference] = best - own.shift[:, None]

    def at(self, ids: Tensor) -> Tensor:
        """Logits z' ``[m, k]`` at ``ids [m, k]``, each one dot product."""
        return self.head.single(self.x, ids) - self.shift[:, None]


def sums(x: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, **tuning: Any) -> dict[str, Tensor]:
    """``{max, total, first, second, best}`` ``[rows]`` for ``x [rows, d]`` and ``weight [vocab, d]`` of one type.

    ``x`` and ``bias`` carry the last transformation's factor already (:meth:`.unembed.Unembedding.rows_of`). Sums are
    relative to ``max`` and float64; ``best`` is the lowest id among the largest logits. ``tuning``: tiles, warps and
    stages other than those chosen above.
    """
    rows, width = x.shape
    vocab = len(weight)
    chosen = {**(_HALF if x.element_size() == 2 else _FULL), **tuning}
    bm, bn, bk = chosen["bm"], chosen["bn"], chosen["bk"]
    all_tiles = triton.cdiv(vocab, bn)
    row_blocks = triton.cdiv(rows, bm)
    # Few rows: share the vocabulary out, so that every processor has work.
    shares = chosen.get("shares") or max(1, min(all_tiles, triton.cdiv(512, row_blocks)))
    tiles = triton.cdiv(all_tiles, shares)
    shares = triton.cdiv(all_tiles, tiles)
    outs = [torch.empty(shares, rows, dtype=torch.float32, device=x.device) for _ in range(4)]
    best = torch.empty(shares, rows, dtype=torch.int64, device=x.device)
    _pass[(row_blocks, shares)](
        x.contiguous(), weight.contiguous(), bias if bias is not None else x, *outs, best,
        rows, vocab, width, tiles, cap or 1.0,
        HAS_BIAS=bias is not None, HAS_CAP=cap is not None, BM=bm, BN=bn, BK=bk,
        num_warps=chosen["warps"], num_stages=chosen["stages"],
    )  # fmt: skip
    part_max, total, first, second = (o.double() for o in outs)
    whole = part_max.amax(0)
    step = whole - part_max
    shrink = torch.exp(-step)
    winner = part_max.argmax(0, keepdim=True)
    return {
        "max": whole,
        "total": (shrink * total).sum(0),
        "first": (shrink * (first - step * total)).sum(0),
        "second": (shrink * (second - 2 * step * first + step**2 * total)).sum(0),
        "best": best.gather(0, winner)[0],
    }


if INSTALLED:

    @triton.jit  # type: ignore[untyped-decorator, unused-ignore]
    def _pass(  # type: ignore[no-untyped-def]
        x, w, b, out_max, out_total, out_first, out_second, out_best, rows, vocab, width, tiles, cap,
        HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        r = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
        share = tl.program_id(1)
        inside = r < rows
        m = tl.full((BM,), float("-inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
        first = tl.zeros((BM,), tl.float32)
        second = tl.zeros((BM,), tl.float32)
        best = tl.zeros((BM,), tl.int64)
        for i in range(tiles):
            v = ((share * tiles + i) * BN + tl.arange(0, BN)).to(tl.int64)
            real = v < vocab
            z = tl.zeros((BM, BN), tl.float32)
            for k in range(0, width, BK):
                kk = k + tl.arange(0, BK)
                left = tl.load(
                    x + r[:, None] * width + kk[None, :], mask=inside[:, None] & (kk < width)[None, :], other=0.0
                )
                right = tl.load(
                    w + v[None, :] * width + kk[:, None], mask=real[None, :] & (kk < width)[:, None], other=0.0
                )
                z = tl.dot(left, right.to(left.dtype), z, input_precision="ieee")
            if HAS_BIAS:
                z += tl.load(b + v, mask=real, other=0.0)[None, :]
            if HAS_CAP:
                z = cap * (1.0 - 2.0 / (tl.exp(tl.minimum(2.0 * z, 60.0)) + 1.0))  # tanh
            z = tl.where(real[None, :], z, float("-inf"))
            largest = tl.max(z, 1)
            here = tl.argmax(z, 1).to(tl.int64) + (share * tiles + i) * BN
            best = tl.where(largest > m, here, best)
            new = tl.maximum(m, largest)
            # Nothing seen yet, or a tile past the end of the vocabulary: no step to take.
            step = tl.where(m == float("-inf"), 0.0, new - m)
            shrink = tl.exp(-step)
            d = tl.where(real[None, :], z - new[:, None], 0.0)
            e = tl.where(real[None, :], tl.exp(d), 0.0)
            second = shrink * (second - 2.0 * step * first + step * step * total) + tl.sum(d * d * e, 1)
            first = shrink * (first - step * total) + tl.sum(d * e, 1)
            total = shrink * total + tl.sum(e, 1)
            m = new
        at = share * rows + r
        tl.store(out_max + at, m, mask=inside)
        tl.store(out_total + at, total, mask=inside)
        tl.store(out_first + at, first, mask=inside)
        tl.store(out_second + at, second, mask=inside)
        tl.store(out_best + at, best, mask=inside)

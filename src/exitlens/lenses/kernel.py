"""One block of rows through the unembedding: the sums that every statistic is made of, one vocabulary tile at a time.

A tile of logits (rows × some thousand tokens) is made by one matrix product, read while it lies in the cache, and
overwritten by the next one unless a later step must look back at it. Logits are kept minus a per-row shift ``c``
(0 where the logits are small, which spares a pass), so that for row r, with z' = z − c:

    total = Σ e^z'      first = Σ z' e^z'      second = Σ z'² e^z'
    log-sum-exp = c + ln total    H = ln total − first/total    varentropy = second/total − (first/total)²

The largest logits are found from the maxima of runs of 64 tokens: the k largest logits lie in the k runs with the
largest maxima.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.protocol import Post

__all__ = ["Block", "Head", "Wants"]

RUN = 64  # tokens whose maximum is kept
UNSHIFTED = 30.0  # logits within ± this need no shift: e^z stays far from both ends of float32
CELLS = 1 << 19  # logits in a tile: what a processor cache holds beside the exponentials
RESCORED = 8  # largest logits recomputed in float32 after a bf16 product


@dataclass(frozen=True, slots=True)
class Wants:
    """What a block has to produce: only these passes are made."""

    first: bool = False
    second: bool = False
    top: int = 0
    stored: bool = False
    targets: bool = False
    mean_row: bool = False

    @property
    def keeps_logits(self) -> bool:
        """Whether the block's logits must outlive their tile."""
        return self.stored or self.targets or self.top > 0


class Head:
    """The unembedding as the kernel sees it: tiles of weight, bias, soft-cap; buffers that all blocks reuse.

    ``product``: number type of the matrix product (float32, float64 or bfloat16); sums are float32 (float64 with a
    float64 model) and gathered in float64.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, post: Post, *, rows: int, product: torch.dtype) -> None:
        self.weight = weight.detach()
        self.vocab, self.width = weight.shape
        self.device = weight.device
        self.product = product
        self.dtype = torch.float64 if product == torch.float64 else torch.float32
        self.cap = post.cap
        # tanh(scale * z / cap): scale and 1/cap go into the rows and the bias, both far smaller than the logits.
        self.factor = post.scale / post.cap if post.cap is not None else post.scale
        self.bias: Tensor | None = None
        if bias is not None:
            # A bias of −inf (a token switched off) would give −inf · 0 in Σ z e^z.
            self.bias = (bias.detach().to(self.dtype) * self.factor).clamp_(min=-1e30)
        self.rows = rows
        # Tiles that stay in the cache while they are read; on a GPU large ones, to launch few kernels.
        cells = CELLS if self.device.type == "cpu" else CELLS << 7
        n = min(max(cells // rows // RUN * RUN, 8 * RUN), (self.vocab + RUN - 1) // RUN * RUN)
        self.tile = n
        self.bounds = [(a, min(a + n, self.vocab)) for a in range(0, self.vocab, n)]
        self._runs = (self.vocab + RUN - 1) // RUN
        self._buffers: dict[str, Tensor] = {}

    def bytes(self, wants: Wants) -> int:
        """Bytes of the buffers that a block of :attr:`rows` rows needs."""
        size = 8 if self.dtype == torch.float64 else 4
        logits = self.vocab if wants.keeps_logits else self.tile
        return self.rows * (logits + 2 * self.tile + self._runs) * size + self.tile * self.width * size

    def buffer(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A reused buffer of this shape, its content undefined."""
        dtype = dtype or self.dtype
        count = 1
        for s in shape:
            count *= s
        have = self._buffers.get(name)
        if have is None or have.numel() < count or have.dtype != dtype:
            have = self._buffers[name] = torch.empty(count, dtype=dtype, device=self.device)
        return have[:count].view(shape)

    def rows_of(self, x: Tensor) -> Tensor:
        """Rows ready for the product: the kernel's number type, scaled by the last transformation's factor."""
        x = x.to(device=self.device, dtype=self.dtype)
        return x * self.factor if self.factor != 1.0 else x

    def tile_weight(self, a: int, b: int, dtype: torch.dtype) -> Tensor:
        """Rows ``a..b`` of the unembedding in ``dtype``; a view where the model has that type already."""
        w = self.weight[a:b]
        if w.dtype == dtype:
            return w
        return self.buffer(f"weight {dtype}", b - a, self.width, dtype=dtype).copy_(w)

    def multiply(self, x: Tensor, a: int, b: int, out: Tensor) -> None:
        """``out[r, v] = post(⟨x_r, w_v⟩ + b_v)`` for the tokens a..b, ``x`` from :meth:`rows_of`."""
        if self.product == torch.bfloat16:
            w16 = self.tile_weight(a, b, torch.bfloat16)
            if self.device.type == "cuda":
                torch.mm(x.bfloat16(), w16.T, out_dtype=torch.float32, out=out)
            else:
                out.copy_(torch.mm(x.bfloat16(), w16.T))
            if self.bias is not None:
                out += self.bias[a:b]
        elif self.bias is not None:
            torch.addmm(self.bias[a:b], x, self.tile_weight(a, b, self.dtype).T, out=out)
        else:
            torch.mm(x, self.tile_weight(a, b, self.dtype).T, out=out)
        if self.cap is not None:
            out.tanh_().mul_(self.cap)

    def single(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits ``[rows, k]`` of the tokens ``ids [rows, k]`` alone, each one dot product in the kernel's type."""
        w = self.weight[ids].to(self.dtype)
        z = torch.einsum("rkd,rd->rk", w, x)
        if self.bias is not None:
            z += self.bias[ids]
        return z.tanh_().mul_(self.cap) if self.cap is not None else z


class Block:
    """The sums over the vocabulary of a block of rows, and a way back to its logits while they are kept.

    ``x [m, d_head]`` comes from :meth:`Head.rows_of`. With ``wants.mean_row``, ``mean_row [t, d_head]`` is
    ``Σ_v p_v w_v`` and ``mean_bias [t]`` is ``Σ_v p_v b_v`` for the rows of ``reference``.
    """

    def __init__(self, head: Head, x: Tensor, wants: Wants, reference: slice = slice(0, 0)) -> None:
        self.head, self.x, self.wants, self.reference = head, x, wants, reference
        self.m = len(x)
        self.shift = torch.zeros(self.m, dtype=head.dtype, device=head.device)
        self.total = torch.zeros(self.m, dtype=torch.float64, device=head.device)
        self.first = torch.zeros(self.m, dtype=torch.float64, device=head.device)
        self.second = torch.zeros(self.m, dtype=torch.float64, device=head.device)
        t = len(range(*reference.indices(self.m)))
        self.mean_row = torch.zeros(t, head.width, dtype=torch.float64, device=head.device)
        self.mean_bias = torch.zeros(t, dtype=torch.float64, device=head.device)
        self._maxima = head.buffer("maxima", self.m, head._runs) if wants.top else None
        self.top_ids: Tensor | None = None
        self.top_values: Tensor | None = None
        self._run(exact_shift=False)
        bad = ~torch.isfinite(self.total) | (self.total <= 0)
        if bool(bad.any()) and bool(torch.isfinite(x).all()):
            self._run(exact_shift=True)  # logits spread wider than float32's exponent: once more, with the true maxima
        if wants.top:
            self._find_top(max(wants.top, RESCORED) if head.product == torch.bfloat16 else wants.top)
            if head.product == torch.bfloat16:
                self._rescore()
        if wants.mean_row:
            scale = self.total[reference]
            self.mean_row /= scale[:, None]
            self.mean_bias /= scale

    def tiles(self) -> Iterator[tuple[int, int, Tensor]]:
        """``(a, b, z' [m, b − a])`` of every tile; the logits are real only when they are kept."""
        head = self.head
        keep = self.wants.keeps_logits
        flat = head.buffer("logits", head.vocab * head.rows if keep else head.tile * head.rows)
        for a, b in head.bounds:
            start = a * head.rows if keep else 0
            yield a, b, flat[start : start + self.m * (b - a)].view(self.m, b - a)

    def _run(self, *, exact_shift: bool) -> None:
        head, wants = self.head, self.wants
        for sums in (self.total, self.first, self.second, self.mean_row, self.mean_bias):
            sums.zero_()
        if exact_shift:
            self.shift.fill_(-torch.inf)
            for a, b, z in self.tiles():
                head.multiply(self.x, a, b, z)
                self.shift = torch.maximum(self.shift, z.amax(1))
        shifted = exact_shift
        for a, b, z in self.tiles():
            head.multiply(self.x, a, b, z)
            if a == 0 and not exact_shift:
                largest = z.amax(1)
                # Σ z² e^z needs logits near 0 for its own precision.
                shifted = wants.second or bool((largest.abs() > UNSHIFTED).any())
                if shifted:
                    self.shift = torch.nan_to_num(largest)
            if shifted:
                z.sub_(self.shift[:, None])
            if self._maxima is not None:
                full = (b - a) // RUN
                if full:
                    into = self._maxima[:, a // RUN : a // RUN + full]
                    torch.amax(z[:, : full * RUN].reshape(self.m, full, RUN), 2, out=into)
                if (b - a) % RUN:
                    self._maxima[:, -1] = z[:, full * RUN :].amax(1)
            e = torch.exp(z, out=head.buffer("e", self.m, b - a))
            self.total += e.sum(1)
            if wants.mean_row:
                ref = e[self.reference]
                self.mean_row += ref @ head.tile_weight(a, b, head.dtype)
                if head.bias is not None:
                    self.mean_bias += ref @ head.bias[a:b]
            if wants.first:
                self.first += e.mul_(z).sum(1)
            if wants.second:
                self.second += e.mul_(z).sum(1)

    # ---- looking back at kept logits

    def at(self, ids: Tensor) -> Tensor:
        """Kept logits z' ``[m, k]`` at ``ids [m, k]``."""
        return self.head.buffer("logits", self.head.vocab * self.head.rows)[self._where(ids)]

    def _where(self, ids: Tensor) -> Tensor:
        head = self.head
        tile = torch.div(ids, head.tile, rounding_mode="floor")
        start = tile * head.tile
        wide = (head.vocab - start).clamp_(max=head.tile)
        row = torch.arange(self.m, device=ids.device)[:, None]
        return start * head.rows + row * wide + (ids - start)

    def _find_top(self, k: int) -> None:
        head = self.head
        assert self._maxima is not None
        k = min(k, head.vocab)
        runs = min(k, head._runs)
        # One run more than needed shows whether equal maxima straddle the edge; then the lower token ids win.
        seen = self._maxima.topk(min(runs + 1, head._runs), dim=1)
        chosen = seen.indices[:, :runs]
        if seen.values.shape[1] > runs:
            tied = (seen.values[:, runs] == seen.values[:, runs - 1]).nonzero()[:, 0]
            if len(tied):
                order = self._maxima[tied].sort(dim=1, descending=True, stable=True).indices
                chosen = chosen.index_copy(0, tied, order[:, :runs])
        ids = chosen.sort(dim=1).values[:, :, None] * RUN + torch.arange(RUN, device=head.device)
        ids = ids.flatten(1)
        z = self.at(ids.clamp(max=head.vocab - 1)).masked_fill_(ids >= head.vocab, -torch.inf)
        best = z.sort(dim=1, descending=True, stable=True)
        self.top_ids = ids.gather(1, best.indices[:, :k])
        self.top_values = best.values[:, :k]

    def _rescore(self) -> None:
        """Recompute the largest logits in float32 and put the differences into every sum."""
        assert self.top_ids is not None
        assert self.top_values is not None
        old = self.top_values
        new = self.head.single(self.x, self.top_ids) - self.shift[:, None]
        e_old, e_new = old.double().exp(), new.double().exp()
        change = e_new - e_old
        self.total += change.sum(1)
        self.first += (new * e_new - old * e_old).sum(1)
        self.second += (new * new * e_new - old * old * e_old).sum(1)
        if self.wants.mean_row:
            ref, ids = self.reference, self.top_ids[self.reference]
            moved = change[ref].to(self.head.dtype)
            self.mean_row += torch.einsum("rk,rkd->rd", moved, self.head.weight[ids].to(self.head.dtype))
            if self.head.bias is not None:
                self.mean_bias += (moved * self.head.bias[ids]).sum(1)
        self.head.buffer("logits", self.head.vocab * self.head.rows)[self._where(self.top_ids)] = new
        order = new.sort(dim=1, descending=True, stable=True)
        k = self.wants.top
        self.top_values = order.values[:, :k]
        self.top_ids = self.top_ids.gather(1, order.indices[:, :k])

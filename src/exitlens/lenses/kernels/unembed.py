"""One block of rows through the unembedding: the sums that every statistic is made of, one vocabulary tile at a time.

A tile of logits (rows × some thousand tokens) is made by one matrix product, read while it lies in the cache, and
overwritten by the next one unless a later step must look back at it. Logits are kept minus a per-row shift ``c``
(0 where the logits are small, which spares a pass), so that for row r, with z' = z − c:

    total = Σ e^z'      first = Σ z' e^z'      second = Σ z'² e^z'
    log-sum-exp = c + ln total    H = ln total − first/total    varentropy = second/total − (first/total)²

Within a tile they come from its softmax p, whose exponentials PyTorch computes twice as fast as ``exp``: with v the
tile's largest logit, its share of ``total`` is u = e^z'_v / p_v, of ``first`` u Σ p z', of ``second`` u Σ p z'².

The largest logits are found from the maxima of runs of 64 tokens: the k largest logits lie in the k runs with the
largest maxima.

After a bf16 product the largest logits are recomputed in float32. The rows that others are compared with by KL are
multiplied in float32 from the start: KL takes the other rows' logits in the mean over p_ref, so that an error of p_ref
counts as often as those logits are large.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.compute.matmul import faster_float32
from exitlens.models.protocol import LogitTransform

__all__ = ["LogitBlock", "ReadoutPlan", "Unembedding"]

RUN = 64  # tokens whose maximum is kept
UNSHIFTED = 64.0  # logits within ± this need no shift: Σ p z keeps its fifth decimal in float32
CELLS = 1 << 19  # logits in a tile: what a processor cache holds beside the exponentials
WEIGHT_BYTES = 128 << 20  # the unembedding in another type is kept whole up to here, else made anew tile by tile
RESCORED = 8  # largest logits recomputed in float32 after a bf16 product


@dataclass(frozen=True, slots=True)
class ReadoutPlan:
    """What a block has to produce: only these passes are made. ``compared``: the reference's rows must be exact."""

    first: bool = False
    second: bool = False
    top: int = 0
    stored: bool = False
    targets: bool = False
    mean_row: bool = False
    compared: bool = False

    @property
    def keeps_logits(self) -> bool:
        """Whether the block's logits must outlive their tile."""
        return self.stored or self.targets or self.top > 0


class Unembedding:
    """The unembedding as the kernel sees it: tiles of weight, bias, soft-cap; buffers that all blocks reuse.

    ``product``: number type of the matrix product (float32, float64 or bfloat16); sums are float32 (float64 with a
    float64 model) and gathered in float64.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, logit_transform: LogitTransform, *, rows: int, product: torch.dtype
    ) -> None:
        self.weight = weight.detach()
        self.vocab, self.width = weight.shape
        self.device = weight.device
        self.product = product
        self.dtype = torch.float64 if product == torch.float64 else torch.float32
        self.cap = logit_transform.cap
        # tanh(scale * z / cap): scale and 1/cap go into the rows and the bias, both far smaller than the logits.
        self.factor = (
            logit_transform.scale / logit_transform.cap if logit_transform.cap is not None else logit_transform.scale
        )
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
        self._converted: set[tuple[int, torch.dtype]] = set()

    def bytes(self, wants: ReadoutPlan) -> int:
        """Bytes of the buffers that a block of :attr:`rows` rows needs."""
        size = 8 if self.dtype == torch.float64 else 4
        kept = self.vocab * (2 if self.rounds(wants) else size) if wants.keeps_logits else 0
        return self.rows * (kept + (3 * self.tile + self._runs) * size) + self._weight_bytes(wants)

    def _weight_bytes(self, wants: ReadoutPlan) -> int:
        types = {self.product, self.dtype} if wants.compared else {self.product}
        whole = (self.vocab * self.width * t.itemsize for t in types if t != self.weight.dtype)
        return sum(bytes_ if bytes_ <= WEIGHT_BYTES else bytes_ * self.tile // self.vocab for bytes_ in whole)

    def rounds(self, wants: ReadoutPlan) -> bool:
        """Whether a bf16 product is kept as it is: half the memory, for a look back at the largest alone."""
        plain = self.bias is None and self.cap is None and self.device.type == "cpu"
        return self.product == torch.bfloat16 and plain and not wants.stored

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
        if self.vocab * self.width * dtype.itemsize > WEIGHT_BYTES:
            return self.buffer(f"weight {dtype}", b - a, self.width, dtype=dtype).copy_(w)
        tile = self.buffer(f"weight {dtype}", self.vocab, self.width, dtype=dtype)[a:b]
        if (a, dtype) not in self._converted:
            self._converted.add((a, dtype))
            tile.copy_(w)
        return tile

    def whole(self, dtype: torch.dtype) -> Tensor | None:
        """All of the unembedding in ``dtype``; None where that would be another large copy."""
        if self.weight.dtype == dtype:
            return self.weight
        if self.vocab * self.width * dtype.itemsize > WEIGHT_BYTES:
            return None
        for a, b in self.bounds:
            self.tile_weight(a, b, dtype)
        return self.buffer(f"weight {dtype}", self.vocab, self.width, dtype=dtype)

    def multiply(
        self,
        x: Tensor,
        a: int,
        b: int,
        out: Tensor,
        rounded: Tensor | None = None,
        exact: tuple[slice, Tensor] | None = None,
    ) -> None:
        """``out[r, v] = logit_transform(⟨x_r, w_v⟩ + b_v)`` for the tokens a..b, ``x`` from :meth:`rows_of`.

        ``rounded``: where to leave a bf16 product as it comes, without bias and soft-cap. ``exact``: some of the rows,
        and what they are in float32, to be multiplied in float32.
        """
        if self.product == torch.bfloat16:
            w16 = self.tile_weight(a, b, torch.bfloat16)
            if self.device.type == "cuda":
                torch.mm(x, w16.T, out_dtype=torch.float32, out=out)
            else:
                if rounded is None:
                    rounded = self.buffer("rounded", len(x), b - a, dtype=torch.bfloat16)
                out.copy_(torch.mm(x, w16.T, out=rounded))
            if exact is not None:
                torch.mm(exact[1], self.tile_weight(a, b, self.dtype).T, out=out[exact[0]])
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
        # index_select copies whole rows, several times as fast as indexing.
        w = self.weight.index_select(0, ids.flatten()).to(self.dtype, copy=True).view(*ids.shape, self.width)
        z = w.mul_(x[:, None]).sum(2)
        if self.bias is not None:
            z += self.bias[ids]
        return z.tanh_().mul_(self.cap) if self.cap is not None else z


class LogitBlock:
    """The sums over the vocabulary of a block of rows, and a way back to its logits while they are kept.

    ``x [m, d_head]`` comes from :meth:`Unembedding.rows_of`. With ``wants.mean_row``, ``mean_row [t, d_head]`` is
    ``Σ_v p_v w_v`` and ``mean_bias [t]`` is ``Σ_v p_v b_v`` for the rows of ``reference``.
    """

    def __init__(self, head: Unembedding, x: Tensor, wants: ReadoutPlan, reference: slice = slice(0, 0)) -> None:
        self.head, self.x, self.wants, self.reference = head, x, wants, reference
        self.m = len(x)
        self._rounds = head.rounds(wants)
        self._exact = (reference, x[reference]) if wants.compared and head.product == torch.bfloat16 else None
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
        with faster_float32():
            self._run(exact_shift=False)
            bad = ~torch.isfinite(self.total) | (self.total <= 0)
            if bool(bad.any()) and bool(torch.isfinite(x).all()):
                # Logits spread wider than the sums' exponents: once more, with the true maxima.
                self._run(exact_shift=True)
        if wants.top:
            self._find_top(max(wants.top, RESCORED) if head.product == torch.bfloat16 else wants.top)
            if head.product == torch.bfloat16:
                self._rescore()
        if wants.mean_row:
            scale = self.total[reference]
            self.mean_row /= scale[:, None]
            self.mean_bias /= scale

    @staticmethod
    def bytes(head: Unembedding, wants: ReadoutPlan) -> int:
        """Bytes of the buffers that a block of ``head.rows`` rows needs."""
        return head.bytes(wants)

    @staticmethod
    def tokens(_head: Unembedding, _layers: int, most: int) -> int:
        """Tokens at a time, where at most ``most`` are."""
        return most

    @staticmethod
    def calm(_head: Unembedding) -> AbstractContextManager[None]:
        """What a block is read in."""
        return nullcontext()

    def tiles(self) -> Iterator[tuple[int, int, Tensor]]:
        """``(a, b, z' [m, b − a])`` of every tile; the logits are real only when they are kept."""
        head = self.head
        keep = self.wants.keeps_logits and not self._rounds
        flat = head.buffer("logits", head.vocab * head.rows if keep else head.tile * self.m)
        for a, b in head.bounds:
            start = a * head.rows if keep else 0
            yield a, b, flat[start : start + self.m * (b - a)].view(self.m, b - a)

    def _products(self, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Every tile, filled with its logits, not shifted yet."""
        head = self.head
        kept = self._kept() if self._rounds else None
        for a, b, z in self.tiles():
            start = a * head.rows
            rounded = None if kept is None else kept[start : start + z.numel()].view(z.shape)
            head.multiply(x, a, b, z, rounded, self._exact)
            yield a, b, z

    def _kept(self) -> Tensor:
        head = self.head
        if self._rounds:
            return head.buffer("kept", head.vocab * head.rows, dtype=torch.bfloat16)
        return head.buffer("logits", head.vocab * head.rows)

    def _run(self, *, exact_shift: bool) -> None:
        head, wants = self.head, self.wants
        x = self.x.to(head.product)
        for sums in (self.total, self.first, self.second, self.mean_row, self.mean_bias):
            sums.zero_()
        if exact_shift:
            self.shift.fill_(-torch.inf)
            for _, _, z in self._products(x):
                self.shift = torch.maximum(self.shift, z.amax(1))
        shifted = exact_shift
        for a, b, z in self._products(x):
            if a == 0 and not exact_shift:
                largest = z.amax(1)
                # Σ z² e^z needs logits near 0 for its own precision.
                shifted = wants.second or bool((largest.abs() > UNSHIFTED).any())
                if shifted:
                    self.shift = torch.nan_to_num(largest)
            if shifted:
                z.sub_(self.shift[:, None])
            largest = z.amax(1) if self._maxima is None else self._keep_maxima(self._maxima, a, b, z)
            p = torch.softmax(z, 1, out=head.buffer("e", self.m, b - a))
            share = (largest.double() - p.amax(1).double().log()).exp()
            self.total += share
            if wants.mean_row:
                ref, of = p[self.reference], share[self.reference]
                self.mean_row += (ref @ head.tile_weight(a, b, head.dtype)).double().mul_(of[:, None])
                if head.bias is not None:
                    self.mean_bias += (ref @ head.bias[a:b]).double().mul_(of)
            for power, sums in ((wants.first or wants.second, self.first), (wants.second, self.second)):
                if power:  # 0 · ∞ where a whole tile is switched off
                    sums += (p.mul_(z).sum(1).double() * share).masked_fill_(share == 0, 0.0)

    def _keep_maxima(self, maxima: Tensor, a: int, b: int, z: Tensor) -> Tensor:
        """Largest logit of every run of the tile a..b into ``maxima``; the tile's own ``[m]`` as result."""
        full = (b - a) // RUN
        last = a // RUN + full
        if full:
            torch.amax(z[:, : full * RUN].reshape(self.m, full, RUN), 2, out=maxima[:, a // RUN : last])
        if (b - a) % RUN:
            maxima[:, last] = z[:, full * RUN :].amax(1)
            last += 1
        return maxima[:, a // RUN : last].amax(1)

    # ---- looking back at kept logits

    def at(self, ids: Tensor) -> Tensor:
        """Kept logits z' ``[m, k]`` at ``ids [m, k]``."""
        found = self._kept()[self._where(ids)]
        return found.float() - self.shift[:, None] if self._rounds else found

    def exact(self, ids: Tensor) -> Tensor:
        """Logits z' ``[m, k]`` at ``ids [m, k]``, computed anew in the sums' type."""
        return self.head.single(self.x, ids) - self.shift[:, None]

    def expected(self, layers: int) -> Tensor:
        """``Σ p_ref z = ⟨Σ p_ref w, x⟩ + Σ p_ref b`` of each row ``[m]``, without a shift: linear in the row."""
        rows = self.x.view(layers, self.m // layers, -1).double()
        return (torch.einsum("ltd,td->lt", rows, self.mean_row) + self.mean_bias).flatten()

    def _where(self, ids: Tensor) -> Tensor:
        head = self.head
        tile = torch.div(ids, head.tile, rounding_mode="floor")
        start = tile * head.tile
        wide = (head.vocab - start).clamp_(max=head.tile)
        row = torch.arange(self.m, device=ids.device)[:, None]
        return start * head.rows + row * wide + (ids - start)

    def _find_top(self, k: int) -> None:
        """The ``k`` largest logits; ties at the edge are seen to where one of the ``wants.top`` first is among them."""
        head = self.head
        assert self._maxima is not None
        k = min(k, head.vocab)
        inner = min(k, self.wants.top) - 1  # the last that is wanted
        runs = min(k, head._runs)
        # One run more than needed shows whether equal maxima straddle the edge; then the lower token ids win.
        seen = self._maxima.topk(min(runs + 1, head._runs), dim=1)
        chosen = seen.indices[:, :runs]
        if seen.values.shape[1] > runs:
            tied = (seen.values[:, runs] == seen.values[:, min(inner, runs - 1)]).nonzero()[:, 0]
            if len(tied):
                order = self._maxima[tied].sort(dim=1, descending=True, stable=True).indices
                chosen = chosen.index_copy(0, tied, order[:, :runs])
        ids = chosen.sort(dim=1).values[:, :, None] * RUN + torch.arange(RUN, device=head.device)
        ids = ids.flatten(1)
        z = self.at(ids.clamp(max=head.vocab - 1)).masked_fill_(ids >= head.vocab, -torch.inf)
        # The k largest put in order, which is quicker than a stable sort of all.
        found = z.topk(min(k + 1, z.shape[1]), dim=1)
        place = found.indices[:, :k].sort(dim=1).values
        place = place.gather(1, z.gather(1, place).sort(dim=1, descending=True, stable=True).indices)
        if found.values.shape[1] > k:
            tied = (found.values[:, k] == found.values[:, inner]).nonzero()[:, 0]
            if len(tied):
                order = z[tied].sort(dim=1, descending=True, stable=True).indices
                place = place.index_copy(0, tied, order[:, :k])
        self.top_ids = ids.gather(1, place)
        self.top_values = z.gather(1, place)

    def _rescore(self) -> None:
        """Recompute the largest logits in float32, and with them what the reference finds likeliest."""
        assert self.top_ids is not None
        assert self.top_values is not None
        new = self._replace(self.top_ids, self.top_values)
        if self.wants.stored:
            # Compared one by one, a row's logits count as much as the reference's probabilities there.
            likely = self.top_ids[self.reference]
            if len(likely):
                likely = likely.repeat(self.m // len(likely), 1)
                self._replace(likely, self.at(likely))
        order = new.sort(dim=1, descending=True, stable=True)
        k = self.wants.top
        self.top_values = order.values[:, :k]
        self.top_ids = self.top_ids.gather(1, order.indices[:, :k])

    def _replace(self, ids: Tensor, old: Tensor) -> Tensor:
        """Logits z' of ``ids [m, k]`` in float32; their differences from ``old`` go into every sum."""
        new = self.head.single(self.x, ids) - self.shift[:, None]
        if self._exact is not None:
            old = old.index_copy(0, torch.arange(self.m, device=old.device)[self.reference], new[self.reference])
        e_old, e_new = old.double().exp(), new.double().exp()
        self.total += (e_new - e_old).sum(1)
        self.first += (new * e_new - old * e_old).sum(1)
        self.second += (new * new * e_new - old * old * e_old).sum(1)
        if not self._rounds:
            self._kept()[self._where(ids)] = new
        return new

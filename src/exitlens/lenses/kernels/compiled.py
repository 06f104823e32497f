"""The block of rows on a processor by compiled kernels (:mod:`.entry`), where numba is installed.

Logits are never kept: sums, and the largest of each row, are read while a tile lies in the cache; single logits are
computed anew. Two ways to make a tile:

- Where the processor has tile registers (AMX) and the model's weights are bf16, product and sums are one kernel. A row
  of float32 is the sum of three bf16 numbers to its last bit, so that ``exact`` is three products of bf16 added up in
  float32. ``fast`` takes the first alone. The rows that others are compared with are always exact, and Σ p_ref z is
  summed with the rest; what rounding did to it is taken back for the reference's largest logits.
- Elsewhere PyTorch multiplies, each thread its own tiles; the rows that others are compared with take the plain way.

There are as many threads as torch's; each has its own sums, put together in the same order every time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from exitlens.compute import compiled
from exitlens.compute.matmul import faster_float32
from exitlens.compute.threads import alone, side_by_side, threads_here
from exitlens.errors import InputError
from exitlens.lenses.kernels.unembed import RESCORED, LogitBlock, ReadoutPlan, Unembedding

if TYPE_CHECKING:
    from exitlens.lenses.kernels.entry import Sums

__all__ = ["KERNELS", "CompiledBlock", "problem", "usable"]

KERNELS = (
    "exitlens.lenses.kernels.entry", "exitlens.lenses.kernels.sums", "exitlens.lenses.kernels.amx",
    "exitlens.lenses.kernels.lanes", "exitlens.compute.vectors", "exitlens.compute.tiles",
)  # fmt: skip
LEAST = 1 << 22  # logits: fewer are read before numba is imported
MOST_TOP = 64  # longer lists are found faster from all logits at once
LANES, BLOCK = 16, 32  # rows that a vector holds; rows that are done together
_TILE = 512  # tokens that PyTorch multiplies at a time
_CACHE = 7 << 18  # bytes of rows that stay in a core's own cache while the weights pass by
_COLUMNS = 20  # × 32 columns of weights at a time, which stay in the first cache
_NOTHING = -3e38  # the largest logit before any was seen


def usable(device: torch.device, product: torch.dtype, wants: ReadoutPlan, logits: int) -> bool:
    """True when the kernels give all that is wanted (no look back at all logits) and it is worth loading them.

    Nothing but what is asked for decides, so that the same request gives the same numbers every time.
    """
    fits = device.type == "cpu" and product != torch.float64 and not wants.stored and wants.top <= MOST_TOP
    return fits and logits >= LEAST


def problem() -> str | None:
    """None where the kernels can be used; else a line for the reader, empty where EXITLENS_COMPILED=0 asked for it."""
    why = compiled.problem(*KERNELS)
    return f"layers are read without compiled kernels, which takes several times as long: {why}" if why else why


class CompiledBlock(LogitBlock):
    """As :class:`~.unembed.LogitBlock`, with no logits kept: :meth:`at` computes single logits anew."""

    top_ids: Tensor
    top_values: Tensor

    def __init__(self, head: Unembedding, x: Tensor, wants: ReadoutPlan, reference: slice = slice(0, 0)) -> None:
        self.head, self.x, self.wants, self.reference = head, x.contiguous(), wants, reference
        self.m = len(x)
        self._registers = _by_registers(head)
        bf16 = head.product == torch.bfloat16
        self._parts = _parts(self.x) if self._registers else 1
        # Rows that come from a norm in bf16 lose nothing in a bf16 product.
        self._rounded = bf16 and not (self._registers and self._parts == 1)
        self._listed = min(max(wants.top, RESCORED) if self._rounded and wants.top else wants.top, head.vocab)
        self.shift = torch.zeros(self.m, dtype=head.dtype)
        self.total, self.first, self.second, self._cross = torch.zeros(4, self.m, dtype=torch.float64).unbind()
        self.top_values = torch.zeros(self.m, self._listed, dtype=head.dtype)
        self.top_ids = torch.zeros(self.m, self._listed, dtype=torch.int64)
        self._multiply_tiles() if self._registers else self._multiply_by_torch()
        # What is not a number shows in Σ z e^z alone; logits of −∞ throughout leave the largest as it was.
        self.total.masked_fill_(torch.isnan(self.first) | (self.shift <= _NOTHING), torch.nan)
        if bool((self.top_ids < 0).any()):  # fewer finite logits than the list is long
            self.total.masked_fill_((self.top_ids < 0).any(1), torch.nan)
            self.top_ids.clamp_(min=0)
        if self._rounded and wants.top:
            self._rescore()
        if wants.mean_row and not self._registers:
            self._compare()

    @staticmethod
    def bytes(head: Unembedding, wants: ReadoutPlan) -> int:
        """Bytes of the buffers that a block of ``head.rows`` rows needs."""
        threads = torch.get_num_threads()
        listed = max(wants.top, RESCORED)
        own = 4 * 8 + 12 * listed + 8  # a thread's sums and lists of a row
        if _by_registers(head):
            copies = 8 if head.product == torch.bfloat16 else 12
            return head.rows * (copies * head.width + threads * (own + 256))
        tile = _TILE * head.product.itemsize
        plain = ReadoutPlan(mean_row=wants.mean_row, compared=wants.compared)
        return head.rows * (8 * head.width + threads * (own + tile)) + head.bytes(plain)

    @staticmethod
    def tokens(head: Unembedding, layers: int, most: int) -> int:
        """Tokens at a time: whole vectors, and no more rows than stay in the cache; ``most`` where that is less."""
        parts = 1 if head.product == torch.bfloat16 else 3
        fits = _CACHE // (2 * parts * head.width * layers) if _by_registers(head) else most
        return min(most, max(LANES, min(fits, most) // LANES * LANES))

    @staticmethod
    def calm(head: Unembedding) -> AbstractContextManager[None]:
        """While a block is read: PyTorch's small operations leave the processors to the kernels between them."""
        return alone() if _by_registers(head) else nullcontext()

    def tiles(self) -> Iterator[tuple[int, int, Tensor]]:
        """Nothing was kept."""
        raise InputError("a statistic looks back at all logits without saying so: give it Needs(logits=True)")

    def at(self, ids: Tensor) -> Tensor:
        """Logits z' ``[m, k]`` at ``ids [m, k]``, each one dot product."""
        return _dots(self.head, self.x, ids) - self.shift[:, None]

    def exact(self, ids: Tensor) -> Tensor:
        """The same: they are computed in float32 anyway."""
        return self.at(ids)

    def expected(self, layers: int) -> Tensor:
        """``Σ p_ref z`` of each row ``[m]``, without a shift."""
        return self._cross if self._registers else super().expected(layers)

    # ---- product and sums in one kernel

    def _multiply_tiles(self) -> None:
        head, wants, run = self.head, self.wants, compiled.kernels(*KERNELS)
        of_ref = torch.zeros(self.m, dtype=torch.bool)
        of_ref[self.reference] = wants.mean_row
        n = int(of_ref.sum())
        width = -(-n // LANES) * LANES
        split = _split(self.x, self._parts)
        parts = 1 if head.product == torch.bfloat16 else self._parts
        others = [part[~of_ref] for part in split[:parts]]
        real = torch.arange(len(others[0]))
        if n:  # a vector of rows meets the same tokens of the reference: every layer begins a vector
            others = [F.pad(part.view(-1, n, head.width), (0, 0, 0, width - n)).flatten(0, 1) for part in others]
            real = (torch.arange(len(others[0])) % width < n).nonzero()[:, 0]
        count = len(others[0])
        rows, rows_ref = (-(-number // BLOCK) * BLOCK for number in (count, n))
        steps = head.width // 32
        chunk = -(-steps // -(-steps // _COLUMNS))
        right = _numbers(torch.cat([_packed([part[of_ref] for part in split], chunk), _packed(others, chunk)]))
        how = (4 if wants.second else 0) + (2 if n else 0)
        weight, bias = _numbers(head.weight), _numbers(_bias(head))
        blocks = 1 if chunk == steps else max(rows, rows_ref) // BLOCK  # whose logits are held, twice

        def own() -> tuple[Sums, Any, NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
            compared = run.Reference(_array(run.TILE * rows_ref), _array(rows_ref))
            held, before = _array(run.HELD * LANES), np.zeros(64, np.uint8)
            return self._state(rows_ref + rows), compared, held, before, _array(2 * blocks * BLOCK * run.TILE)

        def job(tiles: NDArray[np.int64], mine: tuple[Any, ...]) -> Sums:
            state: Sums = mine[0]
            run.fused(
                weight, head.vocab, head.width, tiles, right, parts, self._parts, chunk, bias,
                np.float32(head.cap or 0.0), width or BLOCK, how, mine[:4], mine[4], run.tile_settings(),
            )  # fmt: skip
            return state

        found = _shared(job, np.arange(-(-head.vocab // run.TILE)), own)
        self._put((~of_ref).nonzero()[:, 0], found, rows_ref + real)
        if n:
            self._put(of_ref.nonzero()[:, 0], found, torch.arange(n))
            self._sum_cross(~of_ref, found, count, real, width)

    def _sum_cross(self, rows: Tensor, found: Sequence[Sums], count: int, real: Tensor, width: int) -> None:
        """``Σ p_ref z`` from what each thread summed relative to the largest reference logit that it saw."""
        if not count:
            return
        largest = torch.stack([torch.from_numpy(state.shift)[:width].double() for state in found])
        scale = (largest - largest.amax(0)).exp()
        begin = -(-width // BLOCK) * BLOCK  # the rows that are compared come behind those they are compared with
        parts = torch.stack([torch.from_numpy(state.sums).view(4, -1)[3, begin : begin + count] for state in found])
        cross = (parts.view(len(found), -1, width) * scale[:, None]).sum(0)
        total = self.total[self.reference]
        cross = cross.flatten()[real].view(-1, len(total)) / total
        if self._rounded:
            # z is linear in x, so that rounding x moved Σ p z by ⟨Σ p w, x − rounded x⟩: known for the largest p.
            ids, n = self.top_ids[self.reference], len(total)
            p = (self.top_values[self.reference].double() - total.log()[:, None]).exp().float()
            w = self.head.weight.index_select(0, ids.flatten()).float().view(n, -1, self.head.width)
            own = self.x[rows].view(-1, n, self.head.width)
            cross += torch.einsum("lnd,nd->ln", own - own.bfloat16().float(), (p[:, :, None] * w).sum(1))
        self._cross[rows] = cross.flatten()

    # ---- product by PyTorch, sums by a kernel

    def _multiply_by_torch(self) -> None:
        head, run = self.head, compiled.kernels(*KERNELS)
        rows = -(-self.m // BLOCK) * BLOCK
        x = F.pad(self.x, (0, 0, 0, rows - self.m)).to(head.product)
        weight, bias = head.whole(head.product), _numbers(_bias(head))
        how = 4 if self.wants.second else 0

        def job(own: NDArray[np.int64]) -> Sums:
            state, scratch = self._state(rows), _array(run.TILE * BLOCK)
            nothing = run.Reference(_array(0), _array(0))
            z = torch.empty(_TILE, rows, dtype=head.product)
            for a in (own * _TILE).tolist():
                b = min(a + _TILE, head.vocab)
                w = head.weight[a:b].to(head.product) if weight is None else weight[a:b]
                out = torch.mm(w, x.T, out=z[: b - a])
                run.from_tile(
                    _numbers(out), b - a, a, bias, np.float32(head.cap or 0.0), how, (state, nothing, scratch)
                )
            return state

        with faster_float32():
            found = _shared(job, np.arange(-(-head.vocab // _TILE)))
        self._put(torch.arange(self.m), found, torch.arange(self.m))

    def _compare(self) -> None:
        """The rows that others are compared with, through the plain product in float32."""
        need = ReadoutPlan(first=True, second=self.wants.second, mean_row=True, compared=True)
        ref = self.reference
        own = LogitBlock(self.head, self.x[ref], need, slice(0, None))
        self.mean_row, self.mean_bias = own.mean_row, own.mean_bias
        self.top_values[ref] += (self.shift[ref] - own.shift)[:, None]
        self.shift[ref], self.total[ref] = own.shift, own.total
        self.first[ref], self.second[ref] = own.first, own.second

    # ---- sums of threads

    def _state(self, rows: int) -> Sums:
        listed = rows * self._listed
        nobody = np.full(listed, -1, np.int32).view(np.float32)
        total = torch.zeros(4 * rows, dtype=torch.float64).numpy()
        sums: Sums = compiled.kernels(*KERNELS).Sums(_array(rows, _NOTHING), total, _array(listed, -np.inf), nobody)
        return sums

    def _put(self, rows: Tensor, states: Sequence[Sums], real: Tensor) -> None:
        """The threads' sums, put together, of the vectors' rows ``real`` into ``rows``."""
        shift = torch.stack([torch.from_numpy(s.shift)[real] for s in states])
        total, first, second = torch.stack([torch.from_numpy(s.sums).view(4, -1)[:3, real] for s in states], 1)
        largest = shift.amax(0)
        step = shift.double() - largest
        shrink = step.exp()
        self.shift[rows] = largest
        self.total[rows] = (shrink * total).sum(0)
        self.first[rows] = (shrink * (first + step * total)).sum(0)
        self.second[rows] = (shrink * (second + 2 * step * first + step**2 * total)).sum(0)
        k = self._listed
        if k and len(real):
            values, ids = (
                torch.cat(
                    [torch.from_numpy(x).view(-1, k, LANES).transpose(1, 2).flatten(0, 1)[real] for x in lists], 1
                )
                for lists in ([s.best for s in states], [s.ids.view(np.int32) for s in states])
            )
            # Equal logits: lower id first, whichever thread saw it.
            order = ids.argsort(1)
            values, ids = values.gather(1, order), ids.gather(1, order)
            order = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
            self.top_values[rows] = values.gather(1, order) - largest[:, None]
            self.top_ids[rows] = ids.gather(1, order).long()

    def _rescore(self) -> None:
        """The largest logits in float32; their differences go into every sum."""
        new, old = self.at(self.top_ids).double(), self.top_values.double()
        e_new, e_old = new.exp(), old.exp()
        self.total += (e_new - e_old).sum(1)
        self.first += (new * e_new - old * e_old).sum(1)
        self.second += (new * new * e_new - old * old * e_old).sum(1)
        order = new.sort(dim=1, descending=True, stable=True)
        self.top_values = order.values[:, : self.wants.top].to(self.top_values.dtype)
        self.top_ids = self.top_ids.gather(1, order.indices[:, : self.wants.top])


# ---- between torch and the kernels


def _by_registers(head: Unembedding) -> bool:
    """Whether product and sums can be one kernel: whole tiles of bf16 weights, whose rows begin with a cache line."""
    w = head.weight
    fits = w.dtype == torch.bfloat16 and w.is_contiguous() and w.data_ptr() % 64 == 0
    fits = fits and head.width % 32 == 0 and head.vocab >= 32 and head.product != torch.float64
    return fits and compiled.tile_registers()


def _parts(x: Tensor) -> int:
    """How many bf16 numbers add up to each number: one where rows come from a norm in bf16, else three."""
    return 3 if bool((x.view(torch.int32) & 0xFFFF).any()) else 1  # a bf16 number is the upper half of a float32


def _split(x: Tensor, parts: int) -> list[Tensor]:
    """``parts`` bf16 numbers that add up to each number: the nearest one, the nearest to what is left, …."""
    found = [x.bfloat16()]
    while len(found) < parts:
        x = x - found[-1].float()
        found.append(x.bfloat16())
    return found


def _packed(parts: Sequence[Tensor], chunk: int) -> Tensor:
    """Rows, given as the bf16 numbers that add up to them, in the order of tile registers.

    One chunk of columns after the other: ``chunk`` steps of 32 columns are
    ``[blocks of 32 rows, parts, chunk, 2, 16 pairs, 16 rows, 2]``.
    """
    found = []
    for part in parts:
        whole = F.pad(part, (0, 0, 0, -len(part) % 32)) if len(part) % 32 else part.contiguous()
        # Pairs as one number each: half as many to put in order.
        pairs = whole.view(torch.int32).view(len(whole) // 32, 2, 16, whole.shape[1] // 32, 16)
        found.append(pairs.permute(0, 3, 1, 4, 2))
    chunks = torch.stack(found, 1).split(chunk, 2)  # type: ignore[no-untyped-call]
    flat = chunks[0].flatten() if len(chunks) == 1 else torch.cat([c.flatten() for c in chunks])
    return flat.view(torch.bfloat16)


def _numbers(x: Tensor) -> NDArray[Any]:
    """A tensor's numbers in a row for a kernel, not copied where they lie so already; bf16 as int16."""
    flat = x.contiguous().flatten()
    found: NDArray[Any] = (flat.view(torch.int16) if x.dtype == torch.bfloat16 else flat).numpy()
    return found


def _array(count: int, number: float | None = None) -> NDArray[np.float32]:
    # torch's memory begins at a cache line, without which tiles take twice as long; NumPy's may not.
    found: NDArray[np.float32] = (torch.empty(count) if number is None else torch.full((count,), number)).numpy()
    return found


def _bias(head: Unembedding) -> Tensor:
    return torch.empty(0) if head.bias is None else head.bias


def _shared(job: Callable[..., Any], numbers: NDArray[np.int64], own: Callable[[], Any] | None = None) -> list[Any]:
    """What ``job`` gives for each thread's share of ``numbers``, in the order of threads.

    ``own()``, a second argument, is asked for here: a new thread's memory is new to the system, page by page.
    """
    threads = max(1, min(threads_here(), len(numbers)))
    shares = [(numbers[i::threads], *(() if own is None else (own(),))) for i in range(threads)]
    return list(side_by_side([functools.partial(job, *share) for share in shares], most=threads))


def _dots(head: Unembedding, x: Tensor, ids: Tensor) -> Tensor:
    """Logits ``[rows, k]`` of the tokens ``ids [rows, k]`` alone, as :meth:`Unembedding.single` but faster."""
    w, k = head.weight, ids.shape[1]
    if head.width % 32 or not w.is_contiguous() or w.dtype not in (torch.float32, torch.bfloat16):
        return head.single(x, ids)
    run = compiled.kernels(*KERNELS)
    found = torch.empty(ids.shape)
    into, left, right, which = found.flatten().numpy(), _numbers(x), _numbers(w), _numbers(ids)

    def job(rows: NDArray[np.int64]) -> None:
        if k:
            run.at_ids(left, right, head.width, which, rows, into)

    _shared(job, np.arange(len(x)))
    if head.bias is not None:
        found += head.bias[ids]
    return found.tanh_().mul_(head.cap) if head.cap is not None else found

"""What the formulas of :mod:`.statistics` look at: the rows of one block, pairs of rows, and all layers of a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from exitlens.lenses.kernels.unembed import LogitBlock

__all__ = ["AcrossLayers", "PairTile", "Rows", "Term"]


@dataclass(frozen=True, slots=True)
class PairTile:
    """A tile of the vocabulary, the reference ``p`` beside each layer's ``q``: ``[layers, t, v]``, p ``[t, v]``."""

    log_p: Tensor
    log_q: Tensor
    p: Tensor
    q: Tensor
    work: Tensor

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """``a + b`` in a buffer that the next call overwrites: no tile of memory is asked for anew."""
        return torch.add(a, b, out=self.work)

    def subtract(self, a: Tensor, b: Tensor) -> Tensor:
        """``a − b`` in the same buffer."""
        return torch.sub(a, b, out=self.work)


Term = Callable[[PairTile], Tensor]


class Rows:
    """The rows of a block, ``layers`` × tokens, layer by layer: ``m`` in all.

    ``target_ids [m, k]``: the caller's targets, 0 where ``no_target`` holds. ``choice_ids [n]`` and ``choice_of [n]``:
    the token ids of all choices, and which choice each belongs to. ``terms``: what is summed over pairs of rows.
    """

    def __init__(
        self,
        block: LogitBlock,
        layers: int,
        terms: Mapping[str, Term],
        *,
        top_k: int,
        targets: Tensor | None = None,
        choices: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        device = block.head.device
        self.block, self.layers, self.top_k, self.m = block, layers, top_k, block.m
        self._terms = terms
        if targets is not None:
            self.no_target = (targets < 0).to(device)
            self.target_ids = targets.to(device).clamp(min=0)
        if choices is not None:
            self.choice_ids, self.choice_of = (part.to(device) for part in choices)

    # ---- from the block's sums

    @cached_property
    def log_total(self) -> Tensor:
        """``ln Σ e^z'`` ``[m]``, float64: what turns kept logits into log-probabilities."""
        return self.block.total.log()

    @cached_property
    def mean_logit(self) -> Tensor:
        """``Σ p z'`` ``[m]``."""
        return self.block.first / self.block.total

    @cached_property
    def mean_square(self) -> Tensor:
        """``Σ p z'²`` ``[m]``."""
        return self.block.second / self.block.total

    @cached_property
    def entropy(self) -> Tensor:
        """``H = ln Σ e^z' − Σ p z'`` ``[m]``, nats; clamped to its bound, which rounding may leave by 1e-7."""
        return (self.log_total - self.mean_logit).clamp_(min=0.0)

    # ---- the largest logits

    @property
    def top_ids(self) -> Tensor:
        """The ids of the largest logits ``[m, k]``, largest first; equal logits: lower id first."""
        assert self.block.top_ids is not None
        return self.block.top_ids

    @cached_property
    def top_logprobs(self) -> Tensor:
        """Their log-probabilities ``[m, k]``, float64."""
        assert self.block.top_values is not None
        return self.block.top_values.double() - self.log_total[:, None]

    # ---- looking back at logits

    def logprobs_at(self, ids: Tensor, *, rescored: bool = False) -> Tensor:
        """Log-probabilities ``[m, k]`` of ``ids [m, k]``. ``rescored``: in float32 after a bf16 product too."""
        block = self.block
        anew = rescored and block.head.product == torch.bfloat16
        own = block.exact(ids) if anew else block.at(ids)
        return own.double() - self.log_total[:, None]

    def larger_than(self, ids: Tensor) -> Tensor:
        """How many tokens have a strictly larger logit than each of ``ids [m, k]``: ``[m, k]`` int64."""
        head = self.block.head
        own = self.block.at(ids)
        counts = torch.zeros(own.shape, dtype=torch.int64, device=own.device)
        for a, b, z in self.block.tiles():
            # Truth values as numbers: a sum of bool takes five times as long. A tile's sum is exact in float32.
            larger = head.buffer("work", self.m, b - a)
            for k in range(own.shape[1]):
                counts[:, k] += torch.gt(z, own[:, k, None], out=larger).sum(1).long()
        return counts

    def sum(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """``Σ_v of(ln p_v)`` ``[m]`` float64 over the kept logits, tile by tile: any function of one distribution."""
        found = torch.zeros(self.m, dtype=torch.float64, device=self.block.head.device)
        log_total = self.log_total.to(self.block.head.dtype)[:, None]
        for _, _, z in self.block.tiles():
            found += of(z - log_total).sum(1)
        return found

    # ---- against the reference's rows

    @property
    def linear(self) -> bool:
        """Whether ``Σ p_ref z_j`` was taken as one product for all layers: see :meth:`cross_entropy`."""
        return self.block.wants.mean_row

    @property
    def reference_entropy(self) -> Tensor:
        """H of the token's reference row ``[m]``."""
        return self.entropy[self.block.reference].repeat(self.layers)

    def cross_entropy(self) -> Tensor:
        """``−Σ p_ref ln p_j`` ``[m]`` = lse_j − ⟨Σ p_ref w, x_j⟩ − ⟨p_ref, b⟩: one product a token for all layers.

        Taken against the same sum of the reference itself, so that the shift of p_ref drops out.
        """
        return self.block.shift + self.log_total - self.block.expected(self.layers)

    @cached_property
    def terms(self) -> dict[str, Tensor]:
        """Sums over the vocabulary of every pair term ``[m]`` float64, in one more pass over the kept logits.

        The kept logits become log-probabilities: nothing may look back at them afterwards, so that formulas with a
        term come last.
        """
        block, head = self.block, self.block.head
        shape = (self.layers, self.m // self.layers)
        log_total = self.log_total.to(head.dtype)[:, None]
        sums = {name: torch.zeros(self.m, dtype=torch.float64, device=head.device) for name in self._terms}
        for a, b, z in block.tiles():
            z.sub_(log_total)
            q = torch.exp(z, out=head.buffer("e", self.m, b - a))
            log_p, p = z[block.reference], q[block.reference].clone()
            work = head.buffer("work", *shape, b - a)
            tile = PairTile(log_p, z.view(*shape, b - a), p, q.view(*shape, b - a), work)
            for name, term in self._terms.items():
                sums[name] += term(tile).sum(2).flatten()
        return sums

    def zero_at_reference(self, values: Tensor) -> Tensor:
        """``values [m]`` with 0 where a row is compared with itself, which rounding alone would miss."""
        own = values[self.block.reference]
        values[self.block.reference] = torch.where(torch.isnan(own), torch.nan, 0.0)
        return values


@dataclass(frozen=True)
class AcrossLayers:
    """All layers of every token at once: ``hidden[j] [t, d]``, ``top_1 [layers, t]`` where a statistic needs it."""

    hidden: Mapping[int, Tensor]
    layers: tuple[int, ...]
    last: int
    device: torch.device
    top_1: Tensor | None = None

    @property
    def same(self) -> Tensor:
        """Whether a layer's top-1 token is layer N's ``[layers, t]``."""
        assert self.top_1 is not None
        return self.top_1 == self.top_1[self.layers.index(self.last)]

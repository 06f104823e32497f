"""The block of rows on a CUDA device with Triton: one fused pass, where the statistics asked for allow it."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from exitlens.lenses._unembed import LogitBlock, ReadoutPlan, Unembedding

__all__ = ["FusedBlock", "usable"]


def usable(device: torch.device, product: torch.dtype, wants: ReadoutPlan) -> bool:
    """True when the fused pass gives all that is wanted: no look back at logits, no more than the top token."""
    if device.type != "cuda" or product == torch.float64 or wants.stored or wants.top > 1:
        return False
    return importlib.util.find_spec("triton") is not None


class FusedBlock(LogitBlock):
    """As :class:`~.kernel.LogitBlock`, with no logits kept: :meth:`at` computes single logits anew.

    With a bf16 product nothing is rescored: the sums are float32 and only the inputs are rounded. The rows that KL
    compares with are multiplied in float32 all the same.
    """

    def __init__(self, head: Unembedding, x: Tensor, wants: ReadoutPlan, reference: slice = slice(0, 0)) -> None:
        from exitlens.lenses._triton import sums

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

"""A weight laid out once in the order in which the processor reads it fastest, for the many products of decoding.

Handed a weight as a model holds it, oneDNN reads it across its grain at every call. Decoding multiplies the same
weights with a few rows at each token: laid out beforehand, such a product takes a third to two thirds of the time
(``python benchmarks/products.py``). The price is a second copy of the weight.

Taken for bfloat16 where the processor multiplies it, and for float32 where :mod:`exitlens.compute.matmul` prefers
oneDNN
anyway. The numbers are those of any other product of that type to rounding; that is looked at once before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exitlens.compute import matmul as products

__all__ = ["packed"]

_LAID_OUT_FOR = 256  # rows; a layout for many serves few as well, but not the other way about
_LEAST = 4  # fewer rows take longer than this many


def packed(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor] | None:
    """``x [..., d] ↦ x · weight [v, d]ᵀ + bias [v]`` on a copy of ``weight``, or None where that is not faster here.

    The copy does not follow later changes of ``weight``.
    """
    if weight.device.type != "cpu" or not _helps(weight.dtype):
        return None
    with torch.no_grad():
        return _product(weight.detach(), None if bias is None else bias.detach().clone())


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    run = torch.ops.mkldnn._linear_pointwise
    held = torch.ops.mkldnn._reorder_linear_weight(weight, _LAID_OUT_FOR)
    v, d = weight.shape

    def product(x: Tensor) -> Tensor:
        rows = x.numel() // d
        if not 0 < rows < _LEAST:
            return run(x, held, bias, "none", [], "")  # type: ignore[no-any-return]
        flat = x.reshape(rows, d)
        more = flat.expand(_LEAST, d) if rows == 1 else F.pad(flat, (0, 0, 0, _LEAST - rows))
        return run(more, held, bias, "none", [], "")[:rows].view(*x.shape[:-1], v)  # type: ignore[no-any-return]

    return product


@functools.cache
def _helps(dtype: torch.dtype) -> bool:
    return _try(dtype)


def _try(dtype: torch.dtype) -> bool:
    """Whether this processor has the product, and gives numbers right to ``dtype``'s rounding."""
    ops: Any = torch.ops.mkldnn
    able = torch.backends.mkldnn.is_available() and hasattr(ops, "_reorder_linear_weight")  # type: ignore[no-untyped-call]
    if not able or not hasattr(ops, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        helps = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        helps = dtype == torch.float32 and products.onednn_is_exact()
    if not helps:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 256, generator=generator).to(dtype)
    weight, bias = torch.randn(64, 256, generator=generator).to(dtype), torch.randn(64, generator=generator).to(dtype)
    want = F.linear(x.double(), weight.double(), bias.double())
    bound = 5e-2 if dtype == torch.bfloat16 else 1e-5
    try:
        product = _product(weight, bias)
        return all(
            float((product(x[:rows]).double() - want[:rows]).abs().max()) <= bound * float(want.abs().max())
            for rows in (1, 8)
        )
    except RuntimeError:  # a build whose operation takes other arguments
        return False

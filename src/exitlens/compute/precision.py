"""Which number type the unembedding product runs in, decided by what the machine says it can do."""

from __future__ import annotations

from typing import Literal

import torch

from exitlens.compute.hardware import bf16_fast
from exitlens.errors import InputError

__all__ = ["Precision", "bf16_products", "product_dtype"]

Precision = Literal["exact", "fast"]


def bf16_products(device: torch.device) -> bool:
    """True when ``device`` multiplies bf16 matrices in hardware (CPU: AMX or AVX512-BF16; CUDA: compute 8.0 on).

    Read from the machine's own flags. Trying a product to see would cost minutes where bf16 is emulated.
    """
    return bf16_fast(device)


def product_dtype(precision: str, device: torch.device, weight: torch.dtype) -> torch.dtype:
    """The type of the product: float64 for float64 models, bf16 where ``fast`` pays, else float32.

    Raises :class:`InputError` for an unknown precision.
    """
    if precision not in ("exact", "fast"):
        raise InputError(f"unknown precision {precision!r}: use exact or fast")
    if weight == torch.float64:
        return torch.float64
    if precision == "fast" and bf16_products(device):
        return torch.bfloat16
    return torch.float32

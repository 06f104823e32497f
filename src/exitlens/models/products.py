"""The products of a decoding step: few rows with a large weight, in the order that the processor does faster.

``x Wᵀ`` and ``(W xᵀ)ᵀ`` are one product. On AMD processors Intel's MKL (the float32 library of PyTorch's CPU builds)
takes a slow path for the first with two to a few rows: at 3072 × 576 and four rows the second is twice as fast, at
49152 × 576 and eight rows 1.7 times (two cores of an EPYC; more rows, or one, gain nothing). With one row the
weight laid out as ``[d, v]`` is 1.7 times as fast (:func:`joint`, which copies the weights anyway). Chosen by the
processor's maker, never by timing, so that a machine gives the same numbers every time.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["joint", "linear", "plain_linear"]

_FEW = 5  # rows, with any weight
_FEW_OF_MANY = 64  # rows, with a weight of at least so many outputs:
_MANY = 8192


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [..., d] · weight [v, d]ᵀ + bias [v]`` → ``[..., v]``, contiguous."""
    d = x.shape[-1]
    rows = x.numel() // d
    most = _FEW_OF_MANY if weight.shape[0] >= _MANY else _FEW
    if not 2 <= rows <= most or not _turns(x):
        return F.linear(x, weight, bias)
    out = torch.mm(weight, x.reshape(rows, d).t()).t()
    out = out if bias is None else out + bias
    return out.contiguous().view(*x.shape[:-1], weight.shape[0])


def joint(parts: Sequence[tuple[Tensor, Tensor | None]]) -> Callable[[Tensor], Tensor]:
    """Products of one input with several ``(weight [v_i, d], bias [v_i] or None)`` as one, ``[..., Σ v_i]``.

    Biases are there for all or for none.
    """
    weight = torch.cat([w for w, _ in parts])
    biases = [b for _, b in parts if b is not None]
    bias = torch.cat(biases) if biases else None
    if not _turns(weight):
        return lambda x: F.linear(x, weight, bias)
    turned = weight.t().contiguous()

    def product(x: Tensor) -> Tensor:
        if 2 <= x.numel() // x.shape[-1] <= _FEW:
            return torch.cat([linear(x, w, b) for w, b in parts], dim=-1)
        out = torch.matmul(x, turned)
        return out if bias is None else out + bias

    return product


def plain_linear(module: nn.Module) -> bool:
    """True when ``module`` is ``nn.Linear`` itself, unchanged and unheard: its product may be done elsewhere."""
    changed = "forward" in module.__dict__  # what libraries that move weights between devices do
    return type(module) is nn.Linear and not (changed or module._forward_hooks or module._forward_pre_hooks)


def _turns(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and _turned_is_faster()


@functools.cache
def _turned_is_faster() -> bool:
    return bool(torch.backends.mkl.is_available()) and _maker() == "AuthenticAMD"  # type: ignore[no-untyped-call]


def _maker() -> str:
    """The processor's maker as it calls itself, or an empty text."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "AuthenticAMD" if "AuthenticAMD" in platform.processor() else ""

"""Float32 products on the processor, by the library and in the order that it does faster.

PyTorch's CPU builds send float32 products to Intel's MKL, which is slow on AMD processors. Two ways around it
(``python benchmarks/products.py`` times them):

- Processors with AVX512 but no AMX: oneDNN, which PyTorch takes when it is allowed to round to bf16. Without AMX it
  does not round, and is about twice as fast from three rows on. Where a first product shows rounding, it is not used.
- Others: ``x Wᵀ`` and ``(W xᵀ)ᵀ`` are one product, and of two to a few rows the second is faster in MKL. With one row
  the weight laid out as ``[d, v]`` is faster (:func:`joint`, which copies the weights anyway).

Chosen by the processor's maker and abilities, never by timing, so that a machine gives the same numbers every time.
"""

from __future__ import annotations

import functools
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exitlens.compute.hardware import cpu_info

__all__ = ["faster_float32", "has_no_hooks", "joint", "linear", "onednn_is_exact", "plain_linear"]

_ONEDNN = 3  # rows from which on oneDNN is faster
_FEW = 5  # rows, with any weight
_FEW_OF_MANY = 64  # rows, with a weight of at least so many outputs:
_MANY = 8192
_COUNTED = threading.Lock()
_within: list[Any] = []  # the caller's setting, once for each thread within faster_float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [..., d] · weight [v, d]ᵀ + bias [v]`` → ``[..., v]``, contiguous."""
    d = x.shape[-1]
    rows = x.numel() // d
    if rows >= _ONEDNN and _plain(x) and onednn_is_exact():
        with faster_float32():
            return F.linear(x, weight, bias)
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
        if onednn_is_exact():
            with faster_float32():
                out = torch.matmul(x, turned)
        elif 2 <= x.numel() // x.shape[-1] <= _FEW:
            return torch.cat([linear(x, w, b) for w, b in parts], dim=-1)
        else:
            out = torch.matmul(x, turned)
        return out if bias is None else out + bias

    return product


@contextmanager
def faster_float32() -> Iterator[None]:
    """Float32 products on the CPU by oneDNN, where that is faster and as exact; then the caller's setting again."""
    if not onednn_is_exact():
        yield
        return
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _COUNTED:  # one setting for all threads: the last to leave puts it back
        _within.append(_within[-1] if _within else setting.fp32_precision)
        setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        with _COUNTED:
            before = _within.pop()
            if not _within:
                setting.fp32_precision = before


def plain_linear(module: nn.Module) -> bool:
    """True when ``module`` is ``nn.Linear`` itself, unchanged and has_no_hooks: its product may be done elsewhere.

    Not where its weight is quantised: torchao leaves the module and puts another kind of tensor into it.
    """
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter and has_no_hooks(module)


def has_no_hooks(module: nn.Module) -> bool:
    """True when nothing but ``module``'s own code runs when it is called."""
    changed = "forward" in module.__dict__  # what libraries that move weights between devices do
    return not (changed or module._forward_hooks or module._forward_pre_hooks)


def _plain(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def _turns(x: Tensor) -> bool:
    return _plain(x) and _turned_is_faster()


@functools.cache
def onednn_is_exact() -> bool:
    """True where float32 products by oneDNN are faster than by MKL, and as exact; tried once."""
    return _try_onednn()


def _try_onednn() -> bool:
    """Whether oneDNN is the better library here (see above), and a product by it is right to float32's rounding."""
    able = torch.backends.cpu.get_cpu_capability() == "AVX512" and not torch.cpu._is_amx_tile_supported()
    setting: Any = getattr(torch.backends.mkldnn, "matmul", None)  # PyTorch before 2.9 has none
    if not (able and _maker() == "AuthenticAMD" and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    if not hasattr(setting, "fp32_precision"):
        return False
    before, generator = setting.fp32_precision, torch.Generator().manual_seed(0)
    x, w = torch.randn(64, 512, generator=generator), torch.randn(256, 512, generator=generator)
    try:
        setting.fp32_precision = "bf16"
        found = F.linear(x, w)
    finally:
        setting.fp32_precision = before
    want = x.double() @ w.double().T
    return float((found - want).abs().max()) < 1e-3  # rounded inputs would err by 0.1; float32 errs by 1e-5


@functools.cache
def _turned_is_faster() -> bool:
    return bool(torch.backends.mkl.is_available()) and _maker() == "AuthenticAMD"  # type: ignore[no-untyped-call]


def _maker() -> str:
    """The processor's maker as it calls itself, or an empty text."""
    return cpu_info("vendor_id") or ("AuthenticAMD" if "AuthenticAMD" in platform.processor() else "")

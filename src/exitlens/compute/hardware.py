"""Device and dtype choices, decided by what the hardware says it can do, never by timing a product.

A processor without bf16 instructions emulates bf16 products a hundred times slower than float32, so trying one
to see is not an option.
"""

from __future__ import annotations

import platform
from typing import Literal

import torch

from exitlens.compute.names import DTYPE_NAMES, check_device_name, dtype_name
from exitlens.errors import InputError

__all__ = ["DTYPES", "bf16_fast", "describe", "pick_device", "pick_dtype"]

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


def bf16_fast(device: torch.device) -> bool:
    """True when ``device`` multiplies bf16 matrices faster than float32 ones, judged by its instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "mps":
        return False
    return _cpu_flag("_is_amx_tile_supported") or _cpu_flag("_is_avx512_bf16_supported")


def _cpu_flag(name: str) -> bool:
    # Private names: a torch that renames them must cost speed, not correctness.
    probe = getattr(torch.cpu, name, None)
    return bool(probe()) if probe is not None else False


def pick_device(device: str) -> torch.device:
    """``auto`` → cuda, else mps, else cpu. Raises :class:`InputError` for a device that is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = check_device_name(device).split(":", maxsplit=1)[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} was asked for, but this torch sees no CUDA GPU: use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {device!r} was asked for, but this machine has no MPS: use --device cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}: use cpu, cuda, cuda:N, mps or auto") from error


def pick_dtype(dtype: str | torch.dtype | Literal["auto"], device: torch.device) -> torch.dtype:
    """``auto`` → bf16 where :func:`bf16_fast`, else float32. Raises :class:`InputError` for an unknown name.

    Names and aliases (``bf16``, ``half``, …): :mod:`exitlens.compute.names`.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype_name(dtype)
    if name == "auto":
        return torch.bfloat16 if bf16_fast(device) else torch.float32
    return DTYPES[name]


def describe(device: torch.device) -> dict[str, str | int | bool]:
    """The facts about this machine that a manifest records."""
    facts: dict[str, str | int | bool] = {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "bf16_fast": bf16_fast(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts

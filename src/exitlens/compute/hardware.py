"""Device and number types, decided by what the hardware says it can do, never by timing a product.

A processor without bf16 instructions emulates bf16 products a hundred times slower than float32, so trying one
to see is not an option.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Literal

import torch

from exitlens.compute.names import DTYPE_NAMES, check_device_name, dtype_name
from exitlens.errors import InputError

__all__ = ["DTYPES", "bf16_fast", "cpu_info", "describe", "pick_device", "pick_dtype", "product_dtype"]

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


def pick_device(device: str | torch.device) -> torch.device:
    """``auto`` → cuda, else mps, else cpu. Raises :class:`InputError` for a device that is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = check_device_name(device)
    kind = device.split(":", maxsplit=1)[0]
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


def product_dtype(precision: str, device: torch.device, weight: torch.dtype) -> torch.dtype:
    """The type of the unembedding product.

    Args:
        precision: ``exact`` or ``fast``.
        device: Where the product runs.
        weight: Type of the unembedding.

    Returns:
        float64 for float64 models, bf16 where ``fast`` pays, else float32.

    Raises:
        InputError: An unknown precision.
    """
    if precision not in ("exact", "fast"):
        raise InputError(f"unknown precision {precision!r}: use exact or fast")
    if weight == torch.float64:
        return torch.float64
    if precision == "fast" and bf16_fast(device):
        return torch.bfloat16
    return torch.float32


def describe() -> dict[str, Any]:
    """The machine in a few words: processor, cores, accelerator, threads that torch uses."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": cpu_info("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name(0)
    return facts


def cpu_info(key: str) -> str:
    """What Linux says of the processor under ``key`` (``vendor_id``, ``model name``); an empty text elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""

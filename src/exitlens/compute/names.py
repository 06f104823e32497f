"""How are devices and dtypes written? Checked without importing torch, so that a slip is reported immediately."""

from __future__ import annotations

import re

from exitlens.errors import InputError
from exitlens.parsing import cut

__all__ = ["DTYPE_ALIASES", "DTYPE_NAMES", "check_device_name", "dtype_name"]

DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64")
DTYPE_ALIASES = {
    "fp32": "float32", "float": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp64": "float64",
    "double": "float64",
}  # fmt: skip
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,4})?")


def dtype_name(text: object) -> str:
    """The usual name of a dtype: ``bf16`` is ``bfloat16``; ``auto`` stays. Raises InputError for an unknown one."""
    name = DTYPE_ALIASES.get(str(text), str(text))
    if name != "auto" and name not in DTYPE_NAMES:
        raise InputError(
            f"unknown dtype {cut(text)!r}: use auto, {', '.join(DTYPE_NAMES)} (or {', '.join(DTYPE_ALIASES)})"
        )
    return name


def check_device_name(text: object) -> str:
    """``text`` when it is written as a device. Raises InputError."""
    name = str(text)  # a torch.device says its name so
    if not _DEVICE.fullmatch(name):
        raise InputError(f"unknown device {cut(name)!r}: use cpu, cuda, cuda:N, mps or auto")
    return name

"""Tensors with a typed header on disk: safetensors, so that nothing in a file is ever run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from exitlens.errors import ExitlensError, InputError
from exitlens.parsing import check_plain

__all__ = ["json_header", "read_tensors"]


def read_tensors(
    path: Path, *, error: type[ExitlensError] = InputError, missing: str = "check the path", damaged: str = ""
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file.

    Args:
        path: The file.
        error: What is raised.
        missing: The remedy where there is no such file.
        damaged: The remedy where it is not whole, or no safetensors file.

    Raises:
        ExitlensError: Of the kind ``error``, in one line.
    """
    if not path.is_file():
        if path.exists() and not path.is_dir():
            check_plain(path, error=error, holds="tensors")
        kind = "is a folder" if path.is_dir() else "no such file"
        raise error(f"{kind}: '{path}'; {missing}")
    try:
        with safe_open(path, framework="pt") as file:
            # Shapes are bounded by the file's own size: safetensors refuses a header that claims more.
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as why:
        first = (str(why).splitlines() or [type(why).__name__])[0][:80]
        remedy = f"; {damaged}" if damaged else ""
        raise error(f"'{path}' is not a readable safetensors file ({first}){remedy}") from None


def json_header(header: dict[str, str], entry: str) -> dict[str, Any] | None:
    """The JSON object in one entry of a header; None where there is none."""
    try:
        value = json.loads(header[entry])
    except (KeyError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

"""Kernels that numba compiles for this processor, where it is installed. They are compiled once and kept.

numba is optional: whoever asks has another way. Machine code lies in the cache folder, by the sources it was made from.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch

from exitlens.storage.cache_folder import cache_dir

__all__ = ["compiled_before", "kernels", "tile_registers"]

_LOG = logging.getLogger("exitlens")


@functools.cache
def kernels(module: str, *parts: str) -> Any | None:
    """A module of kernels, or None where numba is missing, does not load here, or ``EXITLENS_COMPILED=0`` says so.

    Args:
        module: Its full name.
        parts: Full names of modules that its kernels are made of, too.
    """
    if os.environ.get("EXITLENS_COMPILED") == "0" or importlib.util.find_spec("numba") is None:
        return None
    try:
        import numba

        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _folder(numba.__version__, (module, *parts))
        try:
            return importlib.import_module(module)
        finally:
            numba.config.CACHE_DIR = before
    except (
        ImportError,
        OSError,
        RuntimeError,
        AttributeError,
    ) as error:  # one that does not fit NumPy
        _LOG.warning("numba is here but does not load (%s): decoding takes about twice the time", str(error)[:80])
        return None


def compiled_before(module: str, *parts: str) -> bool:
    """Whether machine code of these kernels lies in the cache folder; else the first call takes half a minute."""
    import numba

    folder = _folder(numba.__version__, (module, *parts))
    return bool(folder) and any(Path(folder).rglob("*.nbi"))


def _folder(version: str, modules: tuple[str, ...]) -> str:
    """Where their machine code is kept; empty where nothing can be written, and they are compiled in each process."""
    digest = hashlib.sha256(version.encode())
    for name in modules:
        found = importlib.util.find_spec(name)
        digest.update(b"" if found is None or found.origin is None else Path(found.origin).read_bytes())
    folder = cache_dir() / "kernels" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""


@functools.cache
def tile_registers() -> bool:
    """Whether the processor multiplies tiles of bf16 (Intel AMX) and this process may: asked of the system once."""
    import llvmlite.binding

    known = llvmlite.binding.get_host_cpu_features()
    ask = getattr(torch.cpu, "_init_amx", None)  # a private name: a torch that renames it must cost speed alone
    return bool(known.get("amx-bf16") and known.get("amx-tile")) and ask is not None and bool(ask())

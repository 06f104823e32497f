"""Modules of kernels that numba compiles for this processor, where it is installed. They are compiled once and kept.

numba is optional: whoever asks has another way. Machine code lies in the cache folder, by the sources it was made from.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

import torch

from exitlens.storage.cache_folder import cache_dir

__all__ = ["MISSING", "compiled_before", "kernels", "problem", "tile_registers", "wide_vectors"]

MISSING = "pip install 'exitlens[numba]'"
_ALONE = threading.Lock()  # the folder is a setting of numba's that every thread sees


@functools.cache
def problem(module: str, *parts: str) -> str | None:
    """Why a module of kernels cannot be used here: the end of a note that begins with what is slower without it.

    Args:
        module: Its full name.
        parts: Full names of all modules of exitlens that its kernels are made of, too.

    Returns:
        None where it can be used; empty where ``EXITLENS_COMPILED=0`` says that it should not; :data:`MISSING` where
        numba is not installed; else why numba does not load.
    """
    if os.environ.get("EXITLENS_COMPILED") == "0":
        return ""
    if importlib.util.find_spec("numba") is None:
        return MISSING
    try:
        kernels(module, *parts)
    except (ImportError, AttributeError, OSError, RuntimeError, SystemError, TypeError, ValueError) as error:
        # A numba that does not fit this NumPy, a module of the user's own where numba expects another.
        return f"numba does not load ({str(error).partition(chr(10))[0][:80]})"
    return None


@functools.cache
def kernels(module: str, *parts: str) -> Any:
    """The module of kernels, which keeps its machine code in the cache folder. Ask :func:`problem` first.

    Args:
        module: Its full name.
        parts: Full names of all modules of exitlens that its kernels are made of, too.
    """
    import numba

    folder = _folder(numba.__version__, (module, *parts))
    with _ALONE:
        before = numba.config.CACHE_DIR
        try:
            # Where nothing can be written the kernels are compiled anew in each process: an empty name says so to them.
            numba.config.CACHE_DIR = folder
            return importlib.import_module(module)
        finally:
            numba.config.CACHE_DIR = before


def compiled_before(module: str, *parts: str) -> bool:
    """Whether machine code of these kernels lies in the cache folder; else the first call takes half a minute."""
    import numba

    folder = _folder(numba.__version__, (module, *parts))
    return bool(folder) and any(Path(folder).rglob("*.nbi"))


def _folder(version: str, modules: tuple[str, ...]) -> str:
    """Where their machine code is kept; empty where nothing can be written."""
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


@functools.cache
def wide_vectors() -> bool:
    """Whether a vector register holds 16 float32 numbers (AVX512), and there are 32 of them."""
    import llvmlite.binding

    return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))

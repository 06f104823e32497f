"""Whose weights are these? A hash of every byte: of the files where a model is files, else of its tensors.

Files are known again by size, times and inode, so that their bytes are read once: the hashes lie in the cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from exitlens.errors import RunError
from exitlens.storage.atomic import canonical, read_json, write_json
from exitlens.storage.cache_folder import cache_dir

__all__ = ["file_hash", "folder_hash", "is_plain", "model_hash"]

# sha256 releases the interpreter's lock and runs at about 1 GB/s a core: blocks are hashed side by side.
_BLOCK = 128 << 20
_READ = 4 << 20
_SETTLED = 1.0  # seconds after which a file's time of change tells a later change apart

# What decides the numbers of a folder: weights, sizes, tokenizer, end of text, code of its own.
_FILES = (
    "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.*", "merges.txt", "*.model", "*.tiktoken", "chat_template.*", "adapter_config.json", "*.py",
)  # fmt: skip
_NAMES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def file_hash(path: Path) -> str:
    """Hash of all bytes of a file, from the cache where its size, times and inode are those of the last time.

    The sha256 itself up to 128 MiB, above that the sha256 of the blocks' sha256, so that cores share the work.
    Raises OSError.
    """
    path = path.resolve()
    before = _state(path)
    entry = _entry(path)
    known = read_json(entry)
    if isinstance(known, dict) and known.get("state") == before and isinstance(known.get("hash"), str):
        return str(known["hash"])
    found = _hashed(path, before[0])
    # A file that changed a moment ago may change again within its clock's tick: it is hashed again the next time.
    if before == _state(path) and time.time() - max(before[1:3]) / 1e9 > _SETTLED:
        with contextlib.suppress(RunError, OSError):
            write_json(entry, {"state": before, "hash": found, "path": str(path)})
    return found


def is_plain(path: Path) -> bool:
    """Whether :func:`file_hash` of a file of this size is its sha256 and can be compared with a published one."""
    return path.stat().st_size <= _BLOCK


def folder_hash(folder: Path, weights: Iterable[Path]) -> str:
    """Hash of a model folder: ``weights`` and every file that decides numbers, by name and bytes. Raises OSError."""
    paths = {path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()} | set(weights)
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(f"{path.name}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


def model_hash(model: nn.Module) -> str:
    """Hash of a model in memory: its class, its configuration and every tensor's name, type, shape and bytes.

    Other than that of files, it tells float32 from bf16: the bytes differ.
    """
    digest = hashlib.sha256(f"{type(model).__name__}\n{canonical(_settings(model))}\n".encode())
    jobs: list[Callable[[], bytes]] = []
    for name, tensor in sorted(_stored(model), key=lambda pair: pair[0]):
        for part in _plain_parts(tensor):
            digest.update(f"{name} {part.dtype} {tuple(part.shape)} {part.device.type == 'meta'}\n".encode())
            jobs += [_job(block) for block in _blocks(part)]
    with ThreadPoolExecutor(_workers(len(jobs))) as pool:
        for found in pool.map(lambda job: job(), jobs):
            digest.update(found)
    return digest.hexdigest()


def _settings(model: Any) -> dict[str, Any]:
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    return {k: v for k, v in values.items() if k not in _NAMES}


def _blocks(part: torch.Tensor) -> Iterator[torch.Tensor]:
    if part.device.type == "meta" or not part.numel():
        return
    flat = part.detach().reshape(-1)
    yield from torch.split(flat, max(1, _BLOCK // flat.element_size()))


def _job(block: torch.Tensor) -> Callable[[], bytes]:
    def run() -> bytes:
        values: Any = block.cpu().contiguous()
        return hashlib.sha256(values.view(torch.uint8).numpy()).digest()

    return run


def _stored(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The entries of ``state_dict()``, without asking for it: asked, bitsandbytes lays 4-bit weights out anew."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), tensor


def _plain_parts(tensor: Any) -> list[torch.Tensor]:
    """The plain tensors that a quantised one of torchao's or quanto's kind is made of; itself where it is plain."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor] if isinstance(tensor, torch.Tensor) else []
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _plain_parts(getattr(tensor, name))]


def _state(path: Path) -> list[int]:
    """What changes when a file does: the time of its inode's change cannot be set back by hand."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _entry(path: Path) -> Path:
    name = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_dir() / "hashes" / f"{name}.json"


def _hashed(path: Path, size: int) -> str:
    starts = range(0, max(size, 1), _BLOCK)
    if len(starts) == 1:
        return _block_hash(path, 0).hex()
    with ThreadPoolExecutor(_workers(len(starts))) as pool:
        parts = list(pool.map(lambda start: _block_hash(path, start), starts))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _block_hash(path: Path, start: int) -> bytes:
    digest, left = hashlib.sha256(), _BLOCK
    buffer = memoryview(bytearray(_READ))
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while left and (n := stream.readinto(buffer[: min(left, _READ)])):
            digest.update(buffer[:n])
            left -= n
    return digest.digest()


def _workers(jobs: int) -> int:
    return max(1, min(jobs, os.cpu_count() or 1, 8))

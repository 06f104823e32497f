"""The unpacked copy of a GGUF file in the cache folder: ten times as fast to read, and never trusted blindly.

A copy's list of files, sizes and hashes is written last; a copy that is not what its list says is made again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from exitlens.errors import ExitlensError
from exitlens.models.checkpoint.identity import file_hash
from exitlens.storage.atomic import aside, read_json, sweep, write_json
from exitlens.storage.cache_folder import cache_dir

__all__ = ["alone", "copy_folder", "keep", "what_is_wrong"]

_LIST = "contents.json"


def copy_folder(digest: str, version: str) -> Path:
    """Where the copy of the GGUF file with this hash lies, unpacked by this version of transformers."""
    return cache_dir() / "converted" / f"{digest[:24]}-t{version}-checked"


def what_is_wrong(folder: Path) -> str | None:
    """None where every file has the size and hash on the list, and no file was added; else what does not fit."""
    said = read_json(folder / _LIST)
    if not isinstance(said, dict):
        return "no list of its files" if folder.is_dir() else "it is not there"
    try:
        here = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != _LIST}
        for name in sorted(said.keys() | here.keys()):
            if name not in here or name not in said or said[name].get("size") != here[name]:
                return f"{name} is not as it was written"
            if file_hash(folder / name) != said[name].get("hash"):
                return f"{name} is damaged"
    except (OSError, AttributeError, TypeError) as error:
        return str(error)[:120]
    return None


def keep(folder: Path, write: Callable[[Path], None]) -> bool:
    """Let ``write`` fill a folder aside, list what it wrote, and put it at ``folder`` whole; False where it cannot."""
    try:
        with aside(folder) as part:
            part.mkdir()
            write(part)
            files = sorted(part.iterdir())
            listed = {path.name: {"size": path.stat().st_size, "hash": file_hash(path)} for path in files}
            write_json(part / _LIST, listed)
            if folder.exists():
                shutil.rmtree(folder)
    except (OSError, ExitlensError):
        return False  # a full or read-only disk: the model is used as it is
    return True


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process unpacks a file; where the cache cannot be written, none need wait."""
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)  # half-unpacked copies of killed processes, hundreds of megabytes each
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()

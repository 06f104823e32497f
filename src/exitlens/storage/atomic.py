"""Files that appear under their name only when whole: written aside, flushed to disk, renamed.

A reader (or a run that resumes after a kill at any moment) therefore sees the old file, the new file or none, never
half of one. Parquet files are written with fixed options, so equal tables give equal bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save
from torch import Tensor

from exitlens.errors import RunError

__all__ = [
    "canonical",
    "key_of",
    "read_json",
    "sha256_file",
    "write_bytes",
    "write_json",
    "write_parquet",
    "write_table",
    "write_tensors",
]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_bytes(path: Path, payload: bytes) -> str:
    """Write ``payload`` to ``path`` whole or not at all; returns its sha256. Raises RunError when it cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            handle.write(payload)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        _forget(temporary)
        raise _unwritable(path, error, len(payload)) from error
    return hashlib.sha256(payload).hexdigest()


def write_json(path: Path, value: Any) -> str:
    """Write ``value`` as indented UTF-8 JSON; returns the sha256 of the bytes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    return write_bytes(path, text.encode("utf-8", "replace"))


def write_parquet(path: Path, frame: pd.DataFrame) -> str:
    """Write a table with fixed options (one row group order, no pandas index, no writer-dependent metadata)."""
    return write_table(path, pa.Table.from_pandas(_storable(frame), preserve_index=False))


def write_table(path: Path, table: Any) -> str:
    """Write an Arrow table as :func:`write_parquet` writes a frame; returns the sha256 of the bytes."""
    table = table.replace_schema_metadata(None)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=True, write_statistics=True, version="2.6")
    return write_bytes(path, sink.getvalue())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors as safetensors; returns the sha256 of the bytes."""
    return write_bytes(path, save({k: v.contiguous() for k, v in tensors.items()}, metadata=dict(metadata or {})))


def read_json(path: Path) -> Any | None:
    """The JSON value of a file, or None when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def sha256_file(path: Path) -> str | None:
    """sha256 of a file read in blocks (flat memory), or None when it cannot be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return None


def canonical(value: Any) -> str:
    """One spelling of a JSON value: sorted names, no spaces; equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def key_of(*parts: Any) -> str:
    """Sixteen hexadecimal digits that name ``parts`` (JSON values) by their content."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:16]


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """Half a surrogate pair has no UTF-8 form (JSON can carry one): write it as U+FFFD instead of failing."""
    changed: dict[str, pd.Series[Any]] = {}
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            continue
        changed[str(name)] = pd.Series([_whole(v) for v in column], index=column.index, dtype=object)
    return frame.assign(**changed) if changed else frame


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if not _encodable(value) else value
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return None
    return value


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    # A rename is only durable once the folder's own entry is on disk; some file systems refuse to open folders.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)


def _forget(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError, size: int) -> RunError:
    if error.errno in _NO_SPACE:
        return RunError(
            f"no space left to write '{path}' ({size:,} bytes): free some space and run the same command again, "
            "finished work is kept"
        )
    return RunError(f"cannot write '{path}': {error.strerror or error}; choose a folder you may write to with --out")


def guarded(action: Callable[[], Any], path: Path) -> Any:
    """Run ``action``; an OSError becomes the same one-line RunError as a failed write of ``path``."""
    try:
        return action()
    except OSError as error:
        raise _unwritable(path, error, 0) from error

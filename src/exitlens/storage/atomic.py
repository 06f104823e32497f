"""Files that appear under their name only when whole: written aside, flushed to disk, renamed.

A reader (or a run that resumes after a kill at any moment) therefore sees the old file, the new file or none, never
half of one. What a killed process left aside is removed when another one first writes into that folder. Parquet files
are written with fixed options, so equal tables give equal bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exitlens.errors import RunError
from exitlens.parsing import cut

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

__all__ = [
    "HOST",
    "alive",
    "aside",
    "canonical",
    "check_writable",
    "followers",
    "guarded",
    "key_of",
    "parquet_options",
    "read_json",
    "scratch",
    "sha256_file",
    "sweep",
    "text_hash",
    "write_bytes",
    "write_file",
    "write_folder",
    "write_json",
    "write_parquet",
    "write_table",
    "write_tensors",
]

# pathlib makes the part `s3:` of `s3://bucket`.
_SCHEME = re.compile(r"(?:s3a?|gc?s|azure?|abfss?|wasbs?|hdfs|webhdfs|memory|https?|s?ftp|file|oci|r2|b2|hf):", re.I)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Machines share home folders: a process id means something on its own machine only.
HOST = hashlib.sha256(platform.node().encode("utf-8", "surrogateescape")).hexdigest()[:6]
"""This machine, among those that share a place."""

followers: list[Callable[[Path, Path], None]] = []
"""Called with what was written aside and the name that it is about to take; one that raises keeps it from its name."""

_ASIDE = re.compile(r"\..*\.(?P<host>[0-9a-f]{6})-(?P<pid>\d{1,9})-[0-9a-f]{8}\.tmp")
_FOREIGN_SECONDS = 86400.0  # what another machine's process left aside is given up after a day
_open: set[str] = set()  # names that this process is writing to
_swept: set[Path] = set()  # folders that this process has cleared


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write a file or folder to; at the end it is flushed to disk and takes ``path``'s place.

    No two writers are ever given the same name. When the block raises, what was written is removed. Raises OSError.
    """
    with scratch(path) as part:
        yield part
        for written in (*(part.rglob("*") if part.is_dir() else ()), part):
            _flush(written)
        for follow in followers:
            follow(part, path)
        part.replace(path)
        # A rename is only durable once the folder's own entry is on disk.
        _flush(path.parent)


def write_folder(folder: Path, make: Callable[[Path], Any]) -> None:
    """Let ``make`` fill the folder that it is given, then put the files into ``folder``, each whole or not at all.

    Files of other names that ``folder`` holds stay. Raises RunError when it cannot be written.
    """

    def put() -> None:
        with scratch(folder / "files") as made:
            make(made)
            for file in sorted(path for path in made.rglob("*") if path.is_file()):
                with aside(folder / file.relative_to(made)) as part:
                    file.replace(part)

    guarded(put, folder)


def sweep(folder: Path, *, below: bool = False, alone: bool = False) -> None:
    """Remove what killed processes left aside in ``folder`` (and ``below`` it); what a live one writes is left.

    ``alone``: no other process may write here (the caller holds its lock), so whatever lies aside is abandoned.
    """
    with contextlib.suppress(OSError):
        for left in list(folder.rglob(".*.tmp") if below else folder.glob(".*.tmp")):
            if left.name not in _open and (alone or _abandoned(left)):
                _remove(left)


def write_file(path: Path, write: Callable[[Path], Any]) -> str:
    """Let ``write`` make the file under the name that it is given, then put it in place; returns its sha256.

    Raises RunError when it cannot be written.
    """

    def make() -> str:
        with aside(path) as part:
            write(part)
            with part.open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()

    digest: str = guarded(make, path)
    return digest


def write_bytes(path: Path, payload: bytes) -> str:
    """Write ``payload`` to ``path`` whole or not at all; returns its sha256. Raises RunError when it cannot."""
    return write_file(path, lambda part: part.write_bytes(payload))


def write_json(path: Path, value: Any) -> str:
    """Write ``value`` as indented UTF-8 JSON; returns the sha256 of the bytes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    return write_bytes(path, text.encode("utf-8", "replace"))


def write_parquet(path: Path, frame: pd.DataFrame) -> str:
    """Write a table with fixed options (one row group order, no pandas index, no writer-dependent metadata)."""
    import pyarrow as pa

    table = pa.Table.from_pandas(_storable(frame), preserve_index=False)
    # One type for text, whether pandas held it as Python strings or as Arrow's own (whose offsets have 64 bits).
    short = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in table.schema]
    return write_table(path, table.cast(pa.schema(short)) if table.nbytes < 1 << 31 else table)


def parquet_options(schema: Any) -> dict[str, Any]:
    """How every table is written: options of pyarrow's writer for an Arrow schema.

    Floats hardly repeat, so a dictionary of them costs a third of a file; the bytes of their exponents do, once they
    stand together. Everything else, above all words and ids, has a dictionary.
    """
    import pyarrow as pa

    floats: list[str] = []
    others: list[str] = []

    def leaves(kind: Any, path: str) -> None:
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            leaves(kind.value_type, f"{path}.list.element")
        else:
            # Half floats have no such encoding.
            (floats if pa.types.is_float32(kind) or pa.types.is_float64(kind) else others).append(path)

    for field in schema:
        leaves(field.type, field.name)
    return {
        "compression": "zstd", "use_dictionary": others, "use_byte_stream_split": floats, "write_statistics": True,
        "version": "2.6",
    }  # fmt: skip


def write_table(path: Path, table: Any) -> str:
    """Write an Arrow table as :func:`write_parquet` writes a frame; returns the sha256 of the bytes."""
    import pyarrow.parquet as pq

    options = parquet_options(table.schema)
    return write_file(path, lambda part: pq.write_table(table.replace_schema_metadata(None), part, **options))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors as safetensors; returns the sha256 of the bytes."""
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_file(path, lambda part: save_file(ready, part, metadata=dict(metadata or {})))


def check_writable(path: Path) -> Path:
    """``path`` itself when a file can be written there: asked before work of minutes. Raises RunError."""
    path = path.expanduser()
    if path.is_dir():
        raise RunError(f"cannot write '{path}': it is a folder; name a file in it")

    def probe() -> None:
        with contextlib.suppress(_Probed), aside(path) as part:
            part.touch(exist_ok=False)
            raise _Probed

    guarded(probe, path)
    return path


def read_json(path: Path) -> Any | None:
    """The JSON value of a file, or None when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
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


def text_hash(text: str) -> str:
    """Sixteen hexadecimal digits that name a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def guarded(action: Callable[[], Any], path: Path) -> Any:
    """Run ``action``; an OSError becomes a one-line RunError that says what ``path`` lacks."""
    try:
        return action()
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise RunError(
                f"no space left to write '{path}': free some space and run the same command again, finished work is "
                "kept"
            ) from error
        why = error.strerror or error
        raise RunError(f"cannot write '{path}': {why}; choose a folder you may write to with --out") from error


class _Probed(Exception):
    """Ends a trial of writing."""


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A name beside ``path`` that nobody else is given; whatever stands under it afterwards is removed.

    Raises RunError for an address: it would become a local folder of that name.
    """
    if any(_SCHEME.fullmatch(part) for part in path.parts):
        raise RunError(
            f"'{cut(path, 200)}' is an address, and this file is written to local paths alone: give a local path, and "
            "copy it from there"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _swept:
        _swept.add(path.parent)
        sweep(path.parent)
    part = path.with_name(f".{path.name[:80]}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    _open.add(part.name)
    try:
        yield part
    finally:
        _remove(part)
        _open.discard(part.name)


def _abandoned(left: Path) -> bool:
    """Whether the process that wrote ``left`` is gone; a file of another kind is nobody's to remove."""
    named = _ASIDE.fullmatch(left.name)
    if named is None:
        return False
    if named["host"] != HOST:
        return time.time() - left.lstat().st_mtime > _FOREIGN_SECONDS
    pid = int(named["pid"])
    return pid == os.getpid() or not alive(pid)


def alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    if os.name == "nt":
        return False  # an open file cannot be removed there anyway
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """Half a surrogate pair has no UTF-8 form (JSON can carry one): write it as U+FFFD instead of failing."""
    import pandas as pd

    changed: dict[str, pd.Series[Any]] = {}
    for name in frame.columns:
        column = frame[name]
        # Arrow holds nothing but whole UTF-8; to look at each of its strings would make millions of Python objects.
        whole = getattr(column.dtype, "storage", None) == "pyarrow"
        if not (whole or pd.api.types.is_numeric_dtype(column)):
            changed[str(name)] = pd.Series([_whole(v) for v in column], index=column.index, dtype=object)
    return frame.assign(**changed)


def _whole(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return value


def _flush(path: Path) -> None:
    # Some file systems refuse to open or to flush folders; the rename itself has then still happened.
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not folder:
            raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

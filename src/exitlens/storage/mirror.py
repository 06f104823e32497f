"""Folders and files on object storage, seen as local ones: a copy in the cache folder that follows every write.

    CACHE/objects/<key>/writing/     what a run writes; each file is an object before it has its name here
    CACHE/objects/<key>/passing-7/   what process 7, a worker of such a run, wrote; it keeps nothing of it
    CACHE/objects/<key>/reading/     what is only read; fetched anew where size or mark of the object changed
    CACHE/objects/<key>/file/        a single file

Everything here writes through :func:`exitlens.storage.atomic.aside`, so a run needs to know nothing of this: a file
below a writing folder is put as an object first, and takes its local name afterwards. What a kill leaves is therefore
either in the store or nowhere. The store is the truth: what it does not have is removed here when the folder is opened.
Files that need random access (Parquet, safetensors) are read from the copy.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from exitlens.errors import InputError, RunError
from exitlens.parsing import cut
from exitlens.storage import atomic
from exitlens.storage.cache_folder import cache_dir
from exitlens.storage.lease import FOLDER, Lease
from exitlens.storage.object_store import ObjectStore, Stamp, address_of

__all__ = [
    "brought",
    "catch_up",
    "check_target",
    "delete",
    "hold",
    "is_mirrored",
    "let_go",
    "local_file",
    "local_folder",
    "named",
    "passed",
    "portable",
    "present",
]

_BOUND = ("EXITLENS_CACHE_GIB", 50)
_GIB = 1 << 30
_AT_ONCE = 8  # requests in flight
_MARKS = ".marks.json"


@dataclass
class _Mirror:
    """A local folder that stands for an address."""

    root: Path
    store: ObjectStore
    writes: bool
    passes: bool = False
    lease: Lease | None = None
    marks: dict[str, str] = field(default_factory=dict)  # of what was fetched, by name

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def fetch(self, names: Sequence[str], found: dict[str, Stamp]) -> None:
        """Bring what is not here, or is here otherwise."""
        wanted = [name for name in names if not self._same(name, found[name])]
        _make_room(self.root, sum(found[name].size for name in names), str(self.store.address))

        def get(name: str) -> None:
            with atomic.scratch(self.root / name) as part:
                self.store.get(name, part)
                if name.endswith(".seal.json"):
                    os.utime(part, (0, 0))  # older than its files: their hashes are looked at, as nobody here took them
                part.replace(self.root / name)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(get, wanted))
        self.marks = {name: found[name].mark for name in names}
        (self.root / _MARKS).write_text(json.dumps(self.marks), encoding="utf-8")

    def _same(self, name: str, stamp: Stamp) -> bool:
        path = self.root / name
        try:
            if path.stat().st_size != stamp.size:
                return False
            # A file that this process or an earlier one wrote has no mark yet: most stores' marks are an MD5.
            if self.marks.get(name) == stamp.mark and not self.writes:
                return True
            with path.open("rb") as handle:
                digest = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).digest()
        except OSError:
            return False
        return stamp.mark in (digest.hex(), base64.b64encode(digest).decode())

    def refresh(self, only: Sequence[str] = ()) -> None:
        """Make the folder what the store holds (below ``only``), and nothing else."""
        self.root.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError, ValueError, TypeError):
            self.marks = dict(json.loads((self.root / _MARKS).read_bytes()))
        found = {
            name: stamp
            for name, stamp in self.store.listing().items()
            if not name.startswith(f"{FOLDER}/") and (not only or name.startswith(tuple(only)))
        }
        for path in sorted(self.root.rglob("*"), reverse=True):
            name = self.name(path)
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.rmdir()  # an empty folder is nothing in the store
            elif name not in found and name not in (_MARKS, ".lock") and not name.endswith(".tmp"):
                path.unlink(missing_ok=True)
        self.fetch(sorted(found), found)


_mirrors: dict[Path, _Mirror] = {}


def local_folder(path: str | os.PathLike[str], *, write: bool = False, only: Sequence[str] = ()) -> Path:
    """The local folder that stands for ``path``: itself, or the copy of an address.

    Args:
        path: A local path or an address.
        write: To be written to: it is filled by :func:`hold`, under the lease. Else it is fetched now.
        only: The beginnings of the names that are needed, where not all are.

    Raises:
        InputError: An address that cannot be used.
        MissingExtra: What reads it is not installed.
        RunError: The store cannot be reached or used.
    """
    address = address_of(os.fspath(path))
    if address is None:
        return Path(path).expanduser()
    part = "".join(only)
    root = _home(str(address)) / ("writing" if write else f"reading{atomic.key_of(part)[:6] if part else ''}")
    if root not in _mirrors:
        _mirrors[root] = _Mirror(root, ObjectStore(address), write)
    if not write:
        _mirrors[root].refresh(only)
    return root


def local_file(path: str | os.PathLike[str]) -> Path:
    """A file to read: itself, or the copy of an object, fetched where it changed. Raises as :func:`local_folder`."""
    address = address_of(os.fspath(path))
    if address is None:
        return Path(path).expanduser()
    parent, _, name = address.path.rpartition("/")
    if not parent:
        raise InputError(
            f"'{cut(address, 200)}' names a bucket and no object in it: write {address.scheme}://bucket/file"
        )
    root = _home(str(address)) / "file"
    mirror = _mirrors.get(root) or _Mirror(root, ObjectStore(type(address)(address.scheme, parent)), writes=False)
    _mirrors[root] = mirror
    stamp = mirror.store.listing(name).get(name)
    if stamp is None:
        raise InputError(f"no object '{cut(address, 200)}': check the address")
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError, ValueError, TypeError):
        mirror.marks = dict(json.loads((root / _MARKS).read_bytes()))
    mirror.fetch([name], {name: stamp})
    return root / name


def hold(folder: Path) -> None:
    """Take the lease of a writing folder and fill it with what the store holds; a folder of this machine is left alone.

    The caller holds the folder's own lock, so no other process here writes to it.
    """
    mirror = _mirrors.get(folder)
    if mirror is None or not mirror.writes:
        return
    lease = Lease(mirror.store)
    lease.acquire()
    try:
        mirror.lease = lease
        mirror.refresh()
    except BaseException:
        mirror.lease = None
        lease.release()
        raise


def let_go(folder: Path) -> None:
    """Give the lease of a writing folder back; harmless where none is held."""
    mirror = _mirrors.get(folder)
    if mirror is not None and mirror.lease is not None:
        lease, mirror.lease = mirror.lease, None
        lease.release()


def is_mirrored(path: Path) -> bool:
    """Whether ``path`` lies in the copy of an address."""
    return _of(path) is not None


def named(path: str | os.PathLike[str]) -> str:
    """What a user calls ``path``: its address where it lies in a copy of one."""
    place = Path(path)
    mirror = _of(place)
    if mirror is None:
        address = address_of(os.fspath(path))
        return str(place if address is None else address)
    name = mirror.name(place)
    return str(mirror.store.address) if name == "." else f"{mirror.store.address}/{name}"


def portable(path: Path) -> tuple[str, str]:
    """A path as another process may open it by :func:`brought`: a place, and a name below it."""
    mirror = _of(path)
    return (str(path), "") if mirror is None else (str(mirror.store.address), mirror.name(path))


def brought(place: str, name: str) -> Path:
    """The path that :func:`portable` told of. What is written there is put as an object, under its sender's lease.

    Nothing lies there but what is asked for by :func:`present`: a copy that this machine has from an earlier run may
    hold what the store does not.
    """
    address = address_of(place)
    if address is None:
        return Path(place)
    home = _home(str(address))
    root = home / f"passing-{os.getpid()}"
    if root not in _mirrors:
        for left in home.glob("passing-*"):
            if not atomic.alive(int(left.name.rpartition("-")[2])) or left == root:
                shutil.rmtree(left, ignore_errors=True)
        _mirrors[root] = _Mirror(root, ObjectStore(address), writes=True, passes=True)
    return root / name


def present(path: Path) -> Path:
    """``path``, fetched first where this process only passes files on and the store has it. Raises RunError."""
    mirror = _of(path)
    if mirror is not None and mirror.passes and not path.exists():
        name = mirror.name(path)
        stamp = mirror.store.listing(name).get(name)
        if stamp is not None:
            mirror.fetch([name], {name: stamp})
    return path


def passed() -> None:
    """Remove here what this process passed on to a store."""
    for mirror in _mirrors.values():
        if mirror.passes:
            shutil.rmtree(mirror.root, ignore_errors=True)


def catch_up(folder: Path) -> None:
    """Fetch what others put below a writing folder while this process held its lease. Raises RunError."""
    mirror = _of(folder)
    if mirror is None or not mirror.writes or mirror.passes:
        return
    found = mirror.store.listing(mirror.name(folder))
    # Of the files that are here already only seals change: a unit's files have names of their own.
    wanted = [name for name in sorted(found) if name.endswith(".seal.json") or not (mirror.root / name).exists()]
    mirror.fetch(wanted, found)


def delete(path: Path) -> None:
    """Remove a file or folder, in the store first where it is a copy. Raises OSError, RunError."""
    mirror = _of(path)
    if mirror is not None and mirror.writes:
        name = mirror.name(path)
        mirror.store.delete(found for found in mirror.store.listing() if found == name or found.startswith(f"{name}/"))
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_target(folder: str | os.PathLike[str], file: str) -> None:
    """Whether ``file`` can be written in ``folder``: asked before work of minutes. Raises RunError, InputError."""
    address = address_of(os.fspath(folder))
    if address is None:
        atomic.check_writable(Path(folder) / file)
        return
    store, trial = ObjectStore(address), f"{FOLDER}/trial-{atomic.HOST}-{os.getpid()}"
    store.listing(FOLDER)
    store.put_bytes(trial, b"")
    store.delete([trial])


def _of(path: Path) -> _Mirror | None:
    return next((mirror for root, mirror in _mirrors.items() if path.is_relative_to(root)), None)


def _follow(part: Path, path: Path) -> None:
    """Put what is about to take the name ``path`` into the store; called by everything that writes."""
    mirror = _of(path)
    if mirror is None or not mirror.writes:
        return
    if mirror.lease is not None:
        mirror.lease.check()
    files = sorted(file for file in part.rglob("*") if file.is_file()) if part.is_dir() else [part]
    for file in files:
        below = file.relative_to(part).as_posix() if file != part else ""
        mirror.store.put("/".join(filter(None, (mirror.name(path), below))), file)


atomic.followers.append(_follow)


def _home(address: str) -> Path:
    return (cache_dir() / "objects" / atomic.key_of(address)).absolute()


def _make_room(root: Path, needed: int, address: str) -> None:
    """Remove the copies that were used longest ago, down to the bound. Raises RunError where one alone is over it."""
    variable, standard = _BOUND
    given = os.environ.get(variable, str(standard))
    if not given.isdecimal() or not int(given[:9]) > 0:
        raise InputError(f"{variable} is {cut(given)!r}: give a positive number of GiB")
    most = int(given[:9]) * _GIB
    if needed > most:
        raise RunError(
            f"'{cut(address, 200)}' holds {needed / 1e9:.1f} GB, more than the local copies may take "
            f"({given[:9]} GiB in '{cache_dir()}'): {variable} raises it"
        )
    home = root.parent
    home.mkdir(parents=True, exist_ok=True)
    os.utime(home)  # used now
    in_use = {mirror.parent for mirror in _mirrors}
    idle = (other for other in home.parent.iterdir() if other != home and other not in in_use)
    others = sorted(idle, key=lambda other: other.stat().st_mtime)
    sizes = {other: sum(f.stat().st_size for f in other.rglob("*") if f.is_file()) for other in others}
    total = needed + sum(sizes.values())
    for other in others:
        if total <= most:
            return
        with contextlib.suppress(OSError):
            shutil.rmtree(other)
            total -= sizes[other]

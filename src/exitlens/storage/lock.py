"""One process per folder: a lock that the system drops when its holder dies, also when it is killed.

A folder that stands for an address on object storage is locked here, and by a lease there
(:mod:`exitlens.storage.lease`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
from pathlib import Path

from filelock import FileLock, Timeout

from exitlens.errors import RunError
from exitlens.storage.atomic import guarded
from exitlens.storage.mirror import hold, is_mirrored, let_go, local_folder, named
from exitlens.storage.object_store import address_of

__all__ = ["DirectoryLock", "writing_folder"]

_held: dict[Path, DirectoryLock] = {}  # of addresses that are written to until this process ends


class DirectoryLock:
    """Exclusive hold of ``folder/.lock`` from :meth:`acquire` until :meth:`release` or the death of the process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._lock = FileLock(self.path, timeout=0, thread_local=False)

    def acquire(self) -> None:
        """Take the lock. Raises RunError: another process has it (named), it is a link, it cannot be written."""
        if self.path.is_symlink():
            # filelock would refuse too, on systems that can; one that cannot would empty what the link points to.
            raise RunError(f"'{self.path}' is a symbolic link, which is never followed: remove it")
        if not guarded(self._take, self.path.parent):
            holder = self.path.read_text("utf-8", "replace")[:20].strip() or "?"
            raise RunError(
                f"'{named(self.path.parent)}' is in use by process {holder}: wait for it to end, or choose another "
                "folder with --out"
            )
        # For the message alone; Windows lets nobody write into a locked file.
        with contextlib.suppress(OSError):
            self.path.write_text(str(os.getpid()), "utf-8")
        try:
            hold(self.path.parent)
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        try:
            if self._lock.is_locked:
                let_go(self.path.parent)
        finally:
            self._lock.release()

    def _take(self) -> bool:
        try:
            self._lock.acquire()
        except Timeout:
            return False
        return True


def writing_folder(path: str | os.PathLike[str]) -> Path:
    """The local folder to write to for ``path``; an address is locked until the process ends.

    For folders that are no run directories, which :class:`DirectoryLock` holds for as long as a run lasts.
    Raises as :func:`~exitlens.storage.mirror.local_folder` does, and RunError where another process writes there.
    """
    folder = local_folder(path, write=True)
    if is_mirrored(folder) and address_of(os.fspath(path)) is not None and folder not in _held:
        guarded(lambda: folder.mkdir(parents=True, exist_ok=True), folder)
        lock = DirectoryLock(folder)
        lock.acquire()
        _held[folder] = lock
        atexit.register(lock.release)
    return folder

"""One process per folder: a lock that the system drops when its holder dies, also when it is killed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from filelock import FileLock, Timeout

from exitlens.errors import RunError
from exitlens.storage.atomic import guarded

__all__ = ["DirectoryLock"]


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
                f"'{self.path.parent}' is in use by process {holder}: wait for it to end, or choose another folder "
                "with --out"
            )
        # For the message alone; Windows lets nobody write into a locked file.
        with contextlib.suppress(OSError):
            self.path.write_text(str(os.getpid()), "utf-8")

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        self._lock.release()

    def _take(self) -> bool:
        try:
            self._lock.acquire()
        except Timeout:
            return False
        return True

"""One process per run directory: a lock that the system drops when its holder dies, also when it is killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

from exitlens.errors import RunError

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """Exclusive hold of ``folder/.lock`` from :meth:`acquire` until :meth:`release` or the death of the process.

    The file names the holder's process id for the message only; the hold itself is the system's advisory lock, so the
    file that a killed process leaves is taken over at once. Where there are no advisory locks (Windows) the process id
    decides: a dead one is taken over.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._handle: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock; raises RunError that names the holder when another process has it."""
        try:
            handle = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"cannot write '{self.path.parent}': {error.strerror or error}; choose a folder you may write to "
                "with --out"
            ) from error
        handle.seek(0)
        holder = handle.read().strip()
        if not _take(handle, holder):
            handle.close()
            raise RunError(
                f"'{self.path.parent}' is in use by process {holder or '?'}: wait for it to end, or choose another "
                "folder with --out"
            )
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()))
        handle.flush()
        self._handle = handle

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._handle is not None:
            self._handle.seek(0)
            self._handle.truncate()
            self._handle.close()
            self._handle = None

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


if sys.platform == "win32":

    def _take(_handle: IO[str], holder: str) -> bool:
        return not (holder.isdigit() and int(holder) != os.getpid() and _alive(int(holder)))

    def _alive(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _take(handle: IO[str], _holder: str) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

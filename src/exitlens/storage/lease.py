"""One writer per place on object storage: a lease that its holder renews, and that another may take over from the dead.

    ADDRESS/.lock/00007      who holds it, renewed every few seconds; the highest number counts

A number is made by a conditional put, so that of any writers at once the store picks one. Whoever finds a lease that is
held watches it: when it has not changed for :data:`HELD_SECONDS` of the watcher's *own* clock, its holder is gone and
the next number may be made. No times of two machines are ever compared, so their clocks may differ by any amount. A
holder that was stopped for long finds a higher number when it goes on, and writes nothing more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time

from exitlens.errors import RunError
from exitlens.parsing import cut
from exitlens.storage.atomic import HOST, alive
from exitlens.storage.object_store import ObjectStore

__all__ = ["FOLDER", "HELD_SECONDS", "Lease"]

FOLDER = ".lock"
HELD_SECONDS = 60.0
"""A lease that did not change for so long is given up by its holder."""

_LOG = logging.getLogger("exitlens")


class Lease:
    """Exclusive hold of an address, from :meth:`acquire` until :meth:`release` or the death of the process."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._owner = f"{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
        self._number = 0
        self._count = 0
        self._renewed = 0.0
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._lost: str | None = None

    def acquire(self) -> None:
        """Take the lease, watching one that is held for up to :data:`HELD_SECONDS`. Raises RunError: it is in use."""
        number = self._watched()
        self._number = number + 1
        name = self._name(self._number)
        made = self._store.create(name, self._payload())
        if made == "there":
            raise self._in_use("another process, just now")
        # A store that takes a second conditional put of the same object knows no conditions.
        if made == "unsupported" or self._store.create(name, self._payload(second=True)) != "there":
            _LOG.warning(
                "'%s': this store has no conditional puts, so nothing hinders two runs at once: start one at a "
                "time; units still count by their seals alone", self._store.address,
            )  # fmt: skip
            self._store.put_bytes(name, self._payload())
        self._renewed = time.monotonic()
        older = [f"{FOLDER}/{other:05d}" for other in self._numbers() if other < self._number]
        self.check()
        self._store.delete(older)
        threading.Thread(target=self._keep, daemon=True, name="exitlens-lease").start()

    def check(self) -> None:
        """Raises RunError where the lease is another's now; asks the store where it was not renewed for a while."""
        if self._lost is None and time.monotonic() - self._renewed > HELD_SECONDS / 2:
            self._renew()
        if self._lost is not None:
            raise RunError(self._lost)

    def release(self) -> None:
        """Let another process in at once."""
        self._stop.set()
        with self._guard:
            if self._lost is None and self._number:
                # Where the store does not answer, others find it unchanged and take it after their watch.
                with contextlib.suppress(RunError):
                    self._store.put_bytes(self._name(self._number), self._payload(state="released"))
                self._number = 0

    def _keep(self) -> None:
        while not self._stop.wait(HELD_SECONDS / 4):
            try:
                self._renew()
            except RunError:
                continue  # tried again at the next turn, and before the next object is written

    def _renew(self) -> None:
        with self._guard:
            if self._stop.is_set():
                return
            highest = max(self._numbers(), default=0)
            if highest > self._number:
                self._lost = (
                    f"'{cut(self._store.address, 200)}' was taken over by another process while this one was stopped "
                    "or cut off: nothing more is written; what was finished is kept"
                )
                return
            self._count += 1
            self._store.put_bytes(self._name(self._number), self._payload())
            self._renewed = time.monotonic()

    def _watched(self) -> int:
        """The highest number, once its holder is known to be gone or to have let go."""
        number = max(self._numbers(), default=0)
        if not number:
            return 0
        seen = self._store.read(self._name(number))
        begun = time.monotonic()
        while not _free(seen):
            if time.monotonic() - begun > HELD_SECONDS:
                break
            if time.monotonic() - begun < HELD_SECONDS / 20:
                _LOG.warning(
                    "'%s' is held by %s: watching for up to %.0f seconds whether it still lives",
                    self._store.address, _owner(seen), HELD_SECONDS,
                )  # fmt: skip
            time.sleep(HELD_SECONDS / 20)
            if self._store.read(self._name(number)) != seen or max(self._numbers(), default=0) > number:
                if _free(self._store.read(self._name(max(self._numbers(), default=number)))):
                    return max(self._numbers(), default=number)
                raise self._in_use(_owner(seen))
        return number

    def _in_use(self, owner: str) -> RunError:
        return RunError(
            f"'{cut(self._store.address, 200)}' is in use by {owner}: wait for it to end, or choose another address"
        )

    def _numbers(self) -> list[int]:
        names = (name.rpartition("/")[2] for name in self._store.listing(FOLDER))
        return [int(name) for name in names if name.isdecimal() and len(name) < 10]

    def _name(self, number: int) -> str:
        return f"{FOLDER}/{number:05d}"

    def _payload(self, *, state: str = "held", second: bool = False) -> bytes:
        value = {"owner": self._owner, "state": state, "count": self._count, "second": second}
        return json.dumps(value, sort_keys=True).encode()


def _free(raw: bytes | None) -> bool:
    """Whether a lease was let go, or its holder was a process of this machine that has died."""
    if raw is None:
        return True
    try:
        value = json.loads(raw)
        owner, state = str(value["owner"]), str(value["state"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # nobody's that we know: watched like any other
    host, _, rest = owner.partition("-")
    pid = rest.partition("-")[0]
    dead_here = host == HOST and pid.isdecimal() and len(pid) < 10 and not alive(int(pid))
    return state == "released" or dead_here


def _owner(raw: bytes | None) -> str:
    try:
        host, pid, *_ = str(json.loads(raw or b"{}")["owner"]).split("-")
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
    return f"process {cut(pid, 12)} of {'this machine' if host == HOST else f'machine {cut(host, 12)}'}"

"""How far a run is, told to whoever asks from another terminal: a small file in its directory, a second old at most."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from exitlens.errors import ExitlensError, RunError
from exitlens.runs.engine import Progress, Report
from exitlens.storage.atomic import alive, read_json, write_json
from exitlens.storage.mirror import local_folder

__all__ = ["BESIDE", "FILE", "Status", "StatusFile", "read_status"]

FILE = "status.json"
BESIDE = ".units"
"""Ends the name of the folder that lies beside a lens until it is whole."""
EVERY = 1.0  # seconds between two writings
OLD = 60.0  # seconds without news after which a run may have ended without a word


class Status(BaseModel):
    """What the file says. ``nodes``: records a second by machine; ``notes``: lines that were said to the user."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    state: str
    stage: str = ""
    done: int = 0
    total: int = 0
    rate: float | None = None
    left: float | None = None
    nodes: dict[str, float] = {}
    notes: list[str] = []
    host: str = ""
    pid: int = 0
    updated: float = 0.0

    def lines(self, now: float) -> list[str]:
        """It in words."""
        found = [self._state(now)]
        if self.stage:
            speed = "" if self.rate is None else f", {self.rate:.3g}/s"
            left = "" if self.left is None or self.state != "running" else f", {self.left:.0f} s left"
            found.append(f"{self.stage}: {self.done} of {self.total}{speed}{left}")
        found += [f"  {name}: {rate:.3g}/s" for name, rate in self.nodes.items()]
        return found + self.notes

    def _state(self, now: float) -> str:
        age = max(0.0, now - self.updated)
        where = f"process {self.pid} on {self.host}"
        if not self.pid:
            return f"{self.state} ({age:.0f} s ago)"
        if self.state != "running":
            return f"{self.state} ({where}, {age:.0f} s ago)"
        if os.name != "nt" and self.host == platform.node() and not alive(self.pid):  # Windows cannot be asked
            return f"stopped: {where} is gone; the same command continues from there"
        old = f", no news for {age:.0f} s" if age > OLD else ""
        return f"running ({where}{old})"


class StatusFile:
    """Keeps the file while a run goes on; use as a context manager. ``report``: who hears of progress besides."""

    def __init__(self, folder: Path, report: Report | None) -> None:
        self._path, self._report = folder / FILE, report
        self._last: Progress | None = None
        self._notes: list[str] = []
        self._written = 0.0

    def __enter__(self) -> StatusFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._last is not None:  # before a stage began, nobody has said whose folder it is
            self._write("done" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed")

    def __call__(self, progress: Progress) -> None:
        """Hear of progress."""
        self._last = progress
        if self._report is not None:
            self._report(progress)
        if progress.done >= progress.total or time.monotonic() - self._written > EVERY:
            self._write("running")

    def heard(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say``, whose last lines the file has too."""

        def both(line: str) -> None:
            self._notes = [*self._notes, line][-20:]
            say(line)

        return both

    def _write(self, state: str) -> None:
        last = self._last or Progress("", 0, 0, None, None)
        found = Status(
            state=state, stage=last.stage, done=last.done, total=last.total, rate=last.rate, left=last.left,
            nodes=dict(last.nodes), notes=self._notes, host=platform.node(), pid=os.getpid(), updated=time.time(),
        )  # fmt: skip
        self._written = time.monotonic()
        with contextlib.suppress(ExitlensError):  # a disk that is full stops the work where it matters, not here
            write_json(self._path, found.model_dump())


def read_status(folder: str | Path) -> Status:
    """How far the run in ``folder`` is, or the lens that is fitted into that file. Raises RunError where none said it.

    What a lens has beside it until it is whole is gone afterwards: then its file says that it is done.
    """
    beside = Path(f"{folder}{BESIDE}").expanduser()
    place = beside if beside.is_dir() else local_folder(folder, only=(FILE,))
    if place.is_file():
        return Status(state="done", updated=place.stat().st_mtime)
    value: Any = read_json(place / FILE)
    try:
        return Status.model_validate(value)
    except ValidationError:
        raise RunError(
            f"'{folder}' says nothing of a run ({FILE} is missing or damaged): name the run directory (--out) of "
            "exitlens run, probe or read, or the file of exitlens lens train"
        ) from None

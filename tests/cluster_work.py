"""Work for a cluster that needs no model: a worker that does it starts in a second. Nodes import it by its name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from exitlens.errors import ProbeError
from exitlens.storage.atomic import guarded, write_bytes
from exitlens.storage.sealed import Sealed


@dataclass(frozen=True)
class NoModel:
    """Loads nothing. ``fails``: says so in a line; ``fingerprint``: of what it loaded, on a node of that name."""

    fails: str = ""
    other_on: str = ""

    def load(self, threads: int) -> Any:
        if self.fails and os.environ.get("EXITLENS_NODE") in self.fails.split(","):
            raise ProbeError(f"no model here: {self.fails}")
        return SimpleNamespace(name="", fingerprint="f")

    def marks(self, lm: Any) -> Mapping[str, str]:
        return {"fingerprint": "other" if os.environ.get("EXITLENS_NODE") == self.other_on else "f"}

    @property
    def places(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class Unit:
    number: int
    size: int = 1

    @property
    def named(self) -> str:
        return f"unit {self.number}"


@dataclass(frozen=True)
class Write:
    """Writes a unit's number. ``how``: what goes wrong with unit 3, or on the second node."""

    units: Sealed
    seconds: float = 0.0
    how: str = ""
    once: Path | None = None

    def run(self, lm: Any, job: Unit, /) -> str:
        time.sleep(self.seconds * (1 + job.number % 3))
        if job.number == 3 and self._first():
            if self.how == "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
            elif self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.how == "fail":
                raise ValueError("record 3 is broken")
        if self.how == "full" and os.environ.get("EXITLENS_NODE") == "second":
            guarded(lambda: Path("/dev/full").write_bytes(b"x"), self.units.folder)
        key = f"{job.number:016x}"
        self.units.write(job.number, key, {"txt": lambda path: write_bytes(path, str(job.number).encode())}, {})
        return os.environ.get("EXITLENS_NODE", "")

    def _first(self) -> bool:
        if self.once is None:
            return True
        try:
            self.once.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class Nothing:
    """Computes for some seconds, and writes nothing."""

    seconds: float = 0.0

    def run(self, lm: Any, job: Unit, /) -> None:
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass

"""What runs on a worker: a model loaded once, units one after the other. What goes wrong is said, never thrown.

Exceptions stay on the worker, with their traceback in its log: what travels back is a kind and one line.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import platform
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from exitlens.errors import ExitlensError, RunError
from exitlens.parsing import cut
from exitlens.storage.mirror import passed
from exitlens.storage.object_store import ObjectStore, address_of

if TYPE_CHECKING:
    from exitlens.models.protocol import LayeredModel

__all__ = ["About", "Done", "Loaded", "Source", "Trouble", "Worker", "describe", "end_process"]

Kind = Literal["writing", "refused", "error"]
PUBLISH = 15.0  # seconds between two puts of a log, where the run directory is an address


class Source(Protocol):
    """How a worker comes to its model; picklable, a few words."""

    def load(self, threads: int) -> LayeredModel:
        """The model, loaded here; its products take so many threads."""
        ...

    def marks(self, lm: LayeredModel) -> Mapping[str, str]:
        """What must be equal wherever units of one run are made: weights, number types."""
        ...

    @property
    def places(self) -> Sequence[str]:
        """Files and folders that every machine has to see."""
        ...


@dataclass(frozen=True, slots=True)
class About:
    """A machine as one of its processes sees it. ``missing``: places that are not there; ``node``: Ray's id of it."""

    name: str
    pid: int
    versions: Mapping[str, str]
    missing: tuple[str, ...] = ()
    node: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker has its model: ``marks`` as :meth:`Source.marks`, and the seconds that it took."""

    marks: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong, in a line: with writing (another machine may do it), refused (ExitlensError), anything else."""

    kind: Kind
    line: str


@dataclass(frozen=True, slots=True)
class Done:
    """A unit's facts, and the seconds that it took."""

    result: Any
    seconds: float


def describe(places: Sequence[str] = ()) -> About:
    """This machine; cheap, no model and no torch."""
    import ray

    from exitlens.runs.directory import versions

    found = {**versions(), "ray": ray.__version__}
    missing = tuple(place for place in places if not Path(place).exists())
    return About(platform.node(), os.getpid(), found, missing, str(ray.get_runtime_context().get_node_id()))


def end_process(pid: int) -> None:
    """Kill a worker of this machine that answers no more; nothing but a process of Ray's is ever touched."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return
    if title.startswith(b"ray::"):
        os.kill(pid, 9)


class Worker:
    """One actor. ``threads``: of its products."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lm: Any = None
        self._task: tuple[int, Any] = (-1, None)
        self._log: tuple[Path, ObjectStore, str] | None = None  # here, and where it is put
        self._published = 0.0

    def about(self) -> About:
        """Who this is."""
        return describe()

    def load(
        self, source: Source, name: str, seen: tuple[str, str] | None, log: tuple[str, str] | None
    ) -> Loaded | Trouble:
        """Load the model and call it ``name``.

        ``seen``: a file of the run directory, which must be seen from here; ``log``: where what is said here goes; both
        as :func:`exitlens.storage.mirror.portable` has them.
        """
        try:
            if seen is not None and not _is_seen(*seen):
                return Trouble(
                    "refused",
                    f"machine {platform.node()} does not see '{_folder(*seen)}': give --out a folder on storage that "
                    "all machines share, under one path",
                )
            self._log = _open_log(log)
            begun = time.perf_counter()
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            self._lm = source.load(self.threads)
            self._lm.name = name
            seconds = time.perf_counter() - begun
            logging.getLogger("exitlens").info("model loaded in %.1f s", seconds)
            self.publish()
            return Loaded(source.marks(self._lm), seconds)
        except Exception as error:  # noqa: BLE001 - said in a line, where the run is
            return self._trouble(error)

    def publish(self) -> None:
        """Put the log into the run directory, where that is an address; a store that fails must not stop the work."""
        self._published = time.monotonic()
        if self._log is not None:
            path, store, name = self._log
            with contextlib.suppress(Exception):
                store.put(name, path)

    def run(self, number: int, task: Sequence[Any], unit: Any) -> Done | Trouble:
        """Do a unit: the task writes it and says what its seal says.

        ``task``: Ray's reference to it, in a list, as it is fetched once for all units of the task ``number``: a lens
        that it holds may be large.
        """
        begun = time.perf_counter()
        try:
            if self._task[0] != number:
                import ray

                self._task = number, ray.get(task[0])
            result = self._task[1].run(self._lm, unit)
        except Exception as error:  # noqa: BLE001 - said in a line, where the run is
            return self._trouble(error)
        finally:
            passed()
        if time.monotonic() - self._published > PUBLISH:
            self.publish()
        return Done(result, time.perf_counter() - begun)

    def _trouble(self, error: Exception) -> Trouble:
        found = _trouble(error)
        self.publish()
        return found


def _is_seen(place: str, name: str) -> bool:
    """Whether a file is seen from here. Raises RunError, MissingExtra for a store that cannot be asked."""
    address = address_of(place)
    return Path(place).is_file() if address is None else ObjectStore(address).read(name) is not None


def _folder(place: str, name: str) -> str:
    return cut(place if name else Path(place).parent, 200)


def _open_log(log: tuple[str, str] | None) -> tuple[Path, ObjectStore, str] | None:
    """Send what this process prints and logs to a file; a full disk must not stop it. Where that has to be put."""
    if log is None:
        return None
    try:
        address = address_of(log[0])
        if address is None:
            path = Path(log[0])
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            path = Path(tempfile.gettempdir()) / f"exitlens-log-{os.getpid()}-{secrets.token_hex(4)}"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600 if address else 0o644)
    except (OSError, ExitlensError):
        return None
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, force=True,
        format=f"%(asctime)s {platform.node()} {os.getpid()} %(name)s: %(message)s",
    )  # fmt: skip
    if address is None:
        return None
    atexit.register(path.unlink, missing_ok=True)
    return path, ObjectStore(address), log[1]


def _trouble(error: Exception) -> Trouble:
    traceback.print_exc()
    if isinstance(error, OSError) or (isinstance(error, RunError) and isinstance(error.__cause__, OSError)):
        return Trouble("writing", cut(str(error), 300))
    if isinstance(error, ExitlensError):
        return Trouble("refused", cut(str(error), 300))
    return Trouble("error", cut(f"{type(error).__name__}: {error}", 300))

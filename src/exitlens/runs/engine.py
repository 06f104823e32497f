"""Runs work on a model: jobs one by one, or a stage over batches of records, finished batches kept and resumed.

A stage is a frozen, picklable dataclass: its settings are its fields, ``run(lm, batch)`` is a pure function of them
and of the batch. A task writes what it makes itself, as a sealed unit, and returns a few facts about it: wherever it
runs, in this process or on one of many machines (:mod:`exitlens.runs.cluster`), nothing large travels, and a unit that
is done twice is the same bytes.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import pandas as pd

from exitlens.models.protocol import LayeredModel
from exitlens.report.text import continued
from exitlens.runs.directory import RunDirectory
from exitlens.storage.atomic import key_of, write_parquet
from exitlens.storage.joined_tables import JoinedTables
from exitlens.storage.sealed import Sealed
from exitlens.version import __version__

__all__ = [
    "Clock",
    "Engine",
    "LocalEngine",
    "Mapped",
    "Progress",
    "Report",
    "Stage",
    "Task",
    "batches",
    "map_stage",
]

_LOG = logging.getLogger("exitlens")

Job = TypeVar("Job")
Job_contra = TypeVar("Job_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
Record = TypeVar("Record")
Record_contra = TypeVar("Record_contra", contravariant=True)


class Stage(Protocol[Record_contra]):
    """A pure function from a batch of records to named tables."""

    name: ClassVar[str]
    version: ClassVar[int]

    def settings(self) -> dict[str, Any]:
        """What decides the results besides the model and the records, as a JSON value."""
        ...

    def identify(self, record: Record_contra) -> Any:
        """The part of a record that decides its results, as a JSON value."""
        ...

    def run(self, lm: LayeredModel, batch: Sequence[Record_contra]) -> dict[str, pd.DataFrame]:
        """Tables of one batch."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is: records done of total, records a second of this call, seconds left (None: unknown).

    ``nodes``: of several machines, the records a second of each by its name.
    """

    stage: str
    done: int
    total: int
    rate: float | None
    left: float | None
    nodes: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a stage made.

    Attributes:
        tables: Its tables, rows in the order of the records; read from disk each time that one is asked for.
        seconds: Seconds of work, also of earlier processes.
        batches: Number of batches.
        resumed: How many of them were finished before.
    """

    tables: JoinedTables
    seconds: float
    batches: int
    resumed: int


class Task(Protocol[Job_contra, Result_co]):
    """A pure function from one job to what it writes and to a small result; picklable.

    A job may have ``named`` (how a reader knows it, where it fails) and ``size`` (its records).
    """

    def run(self, lm: LayeredModel, job: Job_contra, /) -> Result_co:
        """The result of one job."""
        ...


class Engine(Protocol):
    """Where work runs: on which model, what is kept in which directory (None: nothing), who hears of progress."""

    lm: LayeredModel
    directory: RunDirectory | None

    @property
    def report(self) -> Report | None:
        """Who hears of progress."""
        ...

    def stream(self, task: Task[Job, Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result]]:
        """Run ``task`` on each job; jobs and results as they are finished, in any order, none kept.

        A job is taken from ``jobs`` when there is room for it, never all of them at once.
        """
        ...

    def map(
        self, stage: Stage[Record], records: Sequence[Record], *, batch_size: int, label: str | None = None
    ) -> Mapped:
        """Tables of ``stage`` over ``records``, batch by batch in their order; finished batches are not repeated.

        ``label`` names the stage in progress, on disk and in the manifest (default: its name).
        """
        ...


@dataclass
class LocalEngine:
    """Runs everything on one model in this process.

    Without a run directory, tables go through a temporary folder that ends with the last of them.
    """

    lm: LayeredModel
    directory: RunDirectory | None = None
    report: Report | None = None

    def stream(self, task: Task[Job, Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result]]:
        """See :class:`Engine`: a job is run when its result is asked for."""
        for job in jobs:
            yield job, task.run(self.lm, job)

    def map(
        self, stage: Stage[Record], records: Sequence[Record], *, batch_size: int, label: str | None = None
    ) -> Mapped:
        """See :class:`Engine`."""
        return map_stage(self, stage, records, batch_size=batch_size, label=label)


def map_stage(
    engine: Engine,
    stage: Stage[Record],
    records: Sequence[Record],
    *,
    batch_size: int,
    label: str | None = None,
    shared: Path | None = None,
) -> Mapped:
    """:meth:`Engine.map` of any engine, by its :meth:`Engine.stream`.

    ``shared``: where units go that no run directory keeps; by default a temporary folder of this machine.
    """
    label = label or stage.name
    settings = [stage.name, stage.version, stage.settings(), engine.lm.fingerprint]
    spool = _Spool(shared)
    units = Sealed(spool.folder) if engine.directory is None else engine.directory.units(label)
    count = -(-len(records) // batch_size)
    if engine.directory is not None:
        engine.directory.stage_state(label, "running", batches=count)
    clock = Clock(label, len(records), engine.report)
    keys: list[str] = []
    made: dict[int, tuple[float, tuple[str, ...]]] = {}  # seconds and names of the files, by batch
    by: Counter[str] = Counter()  # batches by the version of exitlens that made them
    finished = units.finished()

    def unfinished() -> Iterator[_Batch]:
        for index, group in enumerate(batches(records, batch_size)):
            keys.append(key_of(settings, [stage.identify(r) for r in group]))
            seal = finished(index, keys[-1])
            if seal is None or not isinstance(seal.facts.get("seconds"), float):
                yield _Batch(index, keys[-1], group, f"{label}, records {index * batch_size} and on")
            else:
                made[index] = seal.facts["seconds"], tuple(seal.files)
                by[str(seal.facts.get("version", "unknown"))] += 1
                clock.skipped(len(group))

    fresh = 0
    for batch, done in engine.stream(_Kept(stage, units), unfinished()):
        made[batch.index] = done
        by[__version__] += 1
        fresh += 1
        clock.worked(len(batch.records))
    units.catch_up()
    total = sum(made[index][0] for index in range(count))
    if engine.directory is not None:
        made_by = dict(sorted(by.items()))
        engine.directory.stage_state(label, "done", seconds=round(total, 3), batches=count, made_by=made_by)
        if fresh and (said := continued(label, made_by)):
            _LOG.warning("%s", said)
    found: dict[str, list[Path]] = {}
    for index, key in enumerate(keys):
        for name in made[index][1]:
            found.setdefault(name.removesuffix(".parquet"), []).append(units.path(index, key, name))
    return Mapped(JoinedTables(found, spool), total, count, count - fresh)


class _Spool:
    """A temporary folder ``within`` another, made when it is asked for, that goes with the last reference to it."""

    def __init__(self, within: Path | None = None) -> None:
        self.within = within

    @cached_property
    def folder(self) -> Path:
        made = Path(tempfile.mkdtemp(prefix="exitlens-", dir=self.within))
        weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
        return made


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch of records that is not finished; ``key`` names its contents."""

    index: int
    key: str
    records: list[Any]
    named: str

    @property
    def size(self) -> int:
        return len(self.records)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A stage's run on a batch, its tables written as a unit; the seconds that it took and the names of its files."""

    stage: Stage[Any]
    units: Sealed

    def run(self, lm: LayeredModel, job: _Batch, /) -> tuple[float, tuple[str, ...]]:
        begun = time.perf_counter()
        tables = self.stage.run(lm, job.records)
        seconds = time.perf_counter() - begun
        facts = {"seconds": seconds, "records": len(job.records), "version": __version__}
        files = {f"{name}.parquet": partial(write_parquet, frame=frame) for name, frame in tables.items()}
        return seconds, tuple(self.units.write(job.index, job.key, files, facts).files)


class Clock:
    """Turns finished records into :class:`Progress`; the rate counts only what this process worked on."""

    def __init__(self, stage: str, total: int, report: Report | None) -> None:
        self.stage, self.total, self.report = stage, total, report
        self.done = self.fresh = 0
        self.begun = time.perf_counter()
        self._tell()

    def worked(self, n: int) -> None:
        """``n`` records were computed."""
        self.fresh += n
        self.skipped(n)

    def skipped(self, n: int) -> None:
        """``n`` records were found finished."""
        self.done += n
        self._tell()

    def _tell(self) -> None:
        if self.report is None:
            return
        spent = time.perf_counter() - self.begun
        rate = self.fresh / spent if self.fresh and spent > 0 else None
        left = (self.total - self.done) / rate if rate else None
        self.report(Progress(self.stage, self.done, self.total, rate, left))


def batches(records: Sequence[Record], size: int) -> Iterator[list[Record]]:
    """``records`` in runs of ``size``, the last one shorter."""
    for start in range(0, len(records), size):
        yield list(records[start : start + size])

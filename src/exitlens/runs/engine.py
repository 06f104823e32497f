"""Runs work on a model: jobs one by one, or a stage over batches of records, finished batches kept and resumed.

A stage is a frozen, picklable dataclass: its settings are its fields, ``run(lm, batch)`` is a pure function of them
and of the batch. Another engine (Ray) may run the same stages and jobs with a model loaded once per worker.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import pandas as pd

from exitlens.models.protocol import LayeredModel
from exitlens.runs.directory import RunDirectory
from exitlens.storage.atomic import key_of, write_parquet
from exitlens.storage.joined_tables import JoinedTables
from exitlens.storage.sealed import Sealed
from exitlens.version import __version__

__all__ = ["Clock", "Engine", "LocalEngine", "Mapped", "Progress", "Report", "Stage", "Task", "batches"]

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
    """How far a stage is: records done of total, records a second of this process, seconds left (None: unknown)."""

    stage: str
    done: int
    total: int
    rate: float | None
    left: float | None


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
    """A pure function from one job to its result; picklable."""

    def run(self, lm: LayeredModel, job: Job_contra, /) -> Result_co:
        """The result of one job."""
        ...


class Engine(Protocol):
    """Where work runs: on which model, what is kept in which directory (None: nothing), who hears of progress."""

    lm: LayeredModel
    directory: RunDirectory | None
    report: Report | None

    def stream(self, task: Task[Job, Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result]]:
        """Run ``task`` on each job; jobs and results in the order of the jobs, none kept.

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
        label = label or stage.name
        settings = [stage.name, stage.version, stage.settings(), self.lm.fingerprint]
        keys = [key_of(settings, [stage.identify(r) for r in group]) for group in batches(records, batch_size)]
        spool = _Spool()
        units = Sealed(spool.folder) if self.directory is None else self.directory.units(label)
        if self.directory is not None:
            self.directory.stage_state(label, "running", batches=len(keys))
        clock = Clock(label, len(records), self.report)
        made: dict[int, tuple[float, tuple[str, ...]]] = {}  # seconds and names of the files, by batch
        by: Counter[str] = Counter()  # batches by the version of exitlens that made them
        resumed = 0

        def unfinished() -> Iterator[_Batch]:
            nonlocal resumed
            for index, (key, group) in enumerate(zip(keys, batches(records, batch_size), strict=True)):
                seal = units.whole(index, key)
                if seal is None or not isinstance(seal.facts.get("seconds"), float):
                    yield _Batch(index, key, group)
                else:
                    made[index] = seal.facts["seconds"], tuple(seal.files)
                    by[str(seal.facts.get("version", "unknown"))] += 1
                    resumed += 1
                    clock.skipped(len(group))

        for batch, (tables, seconds) in self.stream(_Timed(stage), unfinished()):
            facts = {"seconds": seconds, "records": len(batch.records), "version": __version__}
            files = {f"{name}.parquet": partial(write_parquet, frame=frame) for name, frame in tables.items()}
            units.write(batch.index, batch.key, files, facts)
            made[batch.index] = seconds, tuple(files)
            by[__version__] += 1
            clock.worked(len(batch.records))
        total = sum(made[index][0] for index in range(len(keys)))
        if self.directory is not None:
            made_by = dict(sorted(by.items()))
            self.directory.stage_state(label, "done", seconds=round(total, 3), batches=len(keys), made_by=made_by)
        found: dict[str, list[Path]] = {}
        for index, key in enumerate(keys):
            for name in made[index][1]:
                found.setdefault(name.removesuffix(".parquet"), []).append(units.path(index, key, name))
        return Mapped(JoinedTables(found, spool), total, len(keys), resumed)


class _Spool:
    """A temporary folder, made when it is asked for, that goes with the last reference to it."""

    @cached_property
    def folder(self) -> Path:
        made = Path(tempfile.mkdtemp(prefix="exitlens-"))
        weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
        return made


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch of records that is not finished; ``key`` names its contents."""

    index: int
    key: str
    records: list[Any]


@dataclass(frozen=True, slots=True)
class _Timed:
    """A stage's run on a batch, with the seconds that it took where it ran."""

    stage: Stage[Any]

    def run(self, lm: LayeredModel, job: _Batch, /) -> tuple[Mapping[str, pd.DataFrame], float]:
        begun = time.perf_counter()
        tables = self.stage.run(lm, job.records)
        return tables, time.perf_counter() - begun


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

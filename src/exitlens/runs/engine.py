"""Maps a stage over batches of records, in this process: progress, finished batches kept, resumed after a kill.

A stage is a frozen, picklable dataclass: its settings are its fields, ``run(lm, batch)`` is a pure function of them
and of the batch. Another engine (Ray) may map the same stages with a model loaded once per worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import pandas as pd

from exitlens.models.protocol import LayeredModel
from exitlens.runs.directory import RunDirectory
from exitlens.storage.atomic import key_of

__all__ = ["Clock", "Engine", "Mapped", "Progress", "Report", "Stage", "batches"]

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
    """Tables of all batches in order, seconds of work (also of earlier processes), batches, and how many were kept."""

    tables: dict[str, pd.DataFrame]
    seconds: float
    batches: int
    resumed: int


@dataclass
class Engine:
    """Runs stages on one model in this process. Without a run directory nothing is kept on disk."""

    lm: LayeredModel
    directory: RunDirectory | None = None
    report: Report | None = None
    _identity: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self._identity = self.lm.fingerprint

    def map(
        self, stage: Stage[Record], records: Sequence[Record], *, batch_size: int, label: str | None = None
    ) -> Mapped:
        """Tables of ``stage`` over ``records``, batch by batch in their order; finished batches are not repeated.

        ``label`` names the stage in progress, on disk and in the manifest (default: its name).
        """
        label = label or stage.name
        groups = list(batches(records, batch_size))
        settings = [stage.name, stage.version, stage.settings(), self._identity]
        keys = [key_of(settings, [stage.identify(r) for r in group]) for group in groups]
        clock = Clock(label, len(records), self.report)
        collected: list[dict[str, pd.DataFrame]] = []
        seconds, resumed = 0.0, 0
        if self.directory is not None:
            self.directory.stage_state(label, "running", batches=len(groups))
        for index, (group, key) in enumerate(zip(groups, keys, strict=True)):
            unit = self.directory.load_unit(label, index, key) if self.directory is not None else None
            if unit is None:
                begun = time.perf_counter()
                tables = stage.run(self.lm, group)
                took = time.perf_counter() - begun
                if self.directory is not None:
                    self.directory.store_unit(label, index, key, tables, {"seconds": took, "records": len(group)})
                    # Read back what was written: a resumed run must see exactly the same values and types.
                    stored = self.directory.load_unit(label, index, key)
                    tables = stored[0] if stored is not None else tables
                clock.worked(len(group))
            else:
                tables, took = unit[0], float(unit[1].get("seconds", 0.0))
                resumed += 1
                clock.skipped(len(group))
            seconds += took
            collected.append(tables)
        if self.directory is not None:
            self.directory.stage_state(label, "done", seconds=round(seconds, 3), batches=len(groups))
        return Mapped(_join(collected), seconds, len(groups), resumed)


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


def _join(parts: Sequence[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    names = sorted({name for part in parts for name in part})
    joined: dict[str, pd.DataFrame] = {}
    for name in names:
        frames = [part[name] for part in parts if name in part]
        # Tables without rows carry no types; leaving them out keeps the types of the others.
        filled = [frame for frame in frames if len(frame)] or frames[:1]
        joined[name] = pd.concat(filled, ignore_index=True)
    return joined

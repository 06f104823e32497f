"""The engine on Ray: units given to workers as they ask for them, tried again where something goes wrong.

A worker has one unit running and one waiting, so that it never stands still and never has a queue; units are taken
from their source when there is room for them. What a unit needs to be done again is its job alone: the worker that
makes it writes it (:mod:`exitlens.storage.sealed`), and only facts come back.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from exitlens.errors import UnitsFailed
from exitlens.models.protocol import LayeredModel
from exitlens.parsing import cut
from exitlens.runs.cluster.connection import Cluster
from exitlens.runs.cluster.worker import Done, Source, Trouble
from exitlens.runs.cluster.workers import Given, Settings, Slot, Workers
from exitlens.runs.directory import RunDirectory
from exitlens.runs.engine import Mapped, Progress, Report, Stage, Task, map_stage

__all__ = ["RayEngine"]

Job = TypeVar("Job")
Result = TypeVar("Result")
Record = TypeVar("Record")

DEPTH = 2  # units that a worker has
TRIES = {"error": 3, "refused": 2, "writing": 4, "late": 3, "died": 10}
"""How often a unit may fail in each way. A worker may die of anything, so a death says little of its unit."""
_NUMBERS = itertools.count()
LEAST_DEADLINE, FIRST_DEADLINE, SLACK = 120.0, 3600.0, 20.0  # seconds, seconds, times the longest unit so far


@dataclass(slots=True)
class _Attempt:
    """A unit on its way: how often it failed, in which way, and who is not to try it again."""

    job: Any
    failed: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    avoid: set[str] = field(default_factory=set)

    @property
    def named(self) -> str:
        return str(getattr(self.job, "named", self.job))


class RayEngine:
    """Runs units on the workers of a cluster, see :class:`exitlens.runs.engine.Engine`; use as a context manager.

    Args:
        cluster: The connection.
        source: How workers come to the model.
        lm: The same model here: tokens and checks are this process's, and what no unit does.
        settings: How work is spread.
        directory: The run directory; all machines see it under its path.
        report: Who hears of progress.
        say: Takes lines for the user.
        logs: Folder for what workers say; by default ``logs`` in the run directory.
        seen: A file that every machine must see; by default the run directory's manifest.
        shared: Where units go that no run directory keeps.
    """

    def __init__(
        self,
        cluster: Cluster,
        source: Source,
        lm: LayeredModel,
        settings: Settings | None = None,
        *,
        directory: RunDirectory | None = None,
        report: Report | None = None,
        say: Callable[[str], None] = lambda _line: None,
        logs: Path | None = None,
        seen: Path | None = None,
        shared: Path | None = None,
    ) -> None:
        self.lm, self.cluster = lm, cluster
        self.settings = settings or Settings()
        self._source, self._report, self._say, self._shared, self._logs = source, report, say, shared, logs
        self._seen = seen
        self._workers: Workers | None = None
        self._done: dict[str, int] = {}
        self._begun = time.monotonic()
        self.directory = directory

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; finished units are kept. The connection stays."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    @property
    def report(self) -> Report | None:
        """The user's, told the rate of every machine as well."""
        return None if self._report is None else self._tell

    def map(
        self, stage: Stage[Record], records: Sequence[Record], *, batch_size: int, label: str | None = None
    ) -> Mapped:
        """See :class:`exitlens.runs.engine.Engine`."""
        return map_stage(self, stage, records, batch_size=batch_size, label=label, shared=self._shared)

    def stream(self, task: Task[Job, Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result]]:
        """See :class:`exitlens.runs.engine.Engine`.

        Raises:
            UnitsFailed: At the end, when all others are done: units that failed wherever they were tried.
            RunError: No worker can be had, or none can write.
        """
        source = iter(jobs)
        first = next(source, None)
        if first is None:
            return  # nothing to do needs no workers
        workers = self._open()
        self._begun = time.monotonic()
        self._done = {}
        try:
            yield from _Stream(self, workers, task, _before(first, source)).run()
        finally:
            self._done = {}  # what comes next may be this process's work alone

    def pids(self) -> list[int]:
        """Process ids of the workers that have their model, each on its own machine."""
        return [slot.pid for slot in self._workers.ready()] if self._workers is not None else []

    def count(self, node: str, size: int) -> None:
        """``size`` records were done on a machine."""
        self._done[node] = self._done.get(node, 0) + size

    def say(self, line: str) -> None:
        """A line for the user."""
        self._say(line)

    def _tell(self, progress: Progress) -> None:
        spent = max(time.monotonic() - self._begun, 1e-9)
        if self._report is not None:
            self._report(replace(progress, nodes={name: n / spent for name, n in sorted(self._done.items())}))

    def _open(self) -> Workers:
        if self._workers is None:
            directory = self.directory
            logs = self._logs or (None if directory is None else directory.path / "logs")
            self._workers = Workers(
                self.cluster, self._source, self.settings, name=self.lm.name, marks=dict(self._source.marks(self.lm)),
                seen=self._seen or (None if directory is None else directory.path / "manifest.json"), logs=logs,
                say=self._say,
            )  # fmt: skip
        return self._workers


def _before(first: Job, rest: Iterator[Job]) -> Iterator[Job]:
    yield first
    yield from rest


class _Stream:
    """One task over its jobs."""

    def __init__(self, engine: RayEngine, workers: Workers, task: Any, jobs: Iterator[Any]) -> None:
        self.engine, self.workers, self.jobs = engine, workers, jobs
        self.ray = engine.cluster.ray
        self.task, self.number = [self.ray.put(task)], next(_NUMBERS)
        self.again: deque[_Attempt] = deque()
        self.failures: list[_Attempt] = []
        self.ended = False
        self.longest = 0.0

    def run(self) -> Iterator[tuple[Any, Any]]:
        try:
            while True:
                self.workers.keep_up()
                self._give()
                busy = {given.ref: slot for slot in self.workers.ready() for given in slot.given}
                if not busy and self.ended and not self.again:
                    break
                starting = {slot.ref: slot for slot in self.workers.starting()}
                refs = [*busy, *starting]
                # Without a worker and without one that starts there is nothing to wait for but the cluster.
                done = self.ray.wait(refs, num_returns=1, timeout=1.0)[0] if refs else self._pause()
                for ref in done:
                    if ref in starting:
                        self.workers.started(starting[ref])
                    else:
                        yield from self._take(busy[ref])
                self._look_for_late()
        finally:
            # Whatever ended this early, workers must not go on with units that nobody waits for.
            for slot in self.workers.ready():
                if slot.given:
                    self.workers.end(slot)
        if self.failures:
            raise UnitsFailed(_failed(self.failures))

    def _pause(self) -> list[Any]:
        time.sleep(0.2)
        return []

    def _give(self) -> None:
        """One unit to each worker that has none, then a second to wait behind it."""
        for depth in range(DEPTH):
            for slot in self.workers.ready():
                if len(slot.given) > depth:
                    continue
                attempt = self._next(slot)
                if attempt is None:
                    continue
                if not slot.given:
                    slot.since = time.monotonic()
                slot.given.append(Given(slot.actor.run.remote(self.number, self.task, attempt.job), attempt))

    def _next(self, slot: Slot) -> _Attempt | None:
        """A unit that failed elsewhere, before new ones; nobody is given one again that failed there, if others can."""
        others = [other for other in self.workers.ready() if other is not slot]
        for attempt in list(self.again):
            here = attempt.avoid & _places(slot)
            if not here or not any(not attempt.avoid & _places(other) for other in others):
                self.again.remove(attempt)
                return attempt
        if self.ended:
            return None
        job = next(self.jobs, None)
        if job is None:
            self.ended = True
            return None
        return _Attempt(job)

    def _take(self, slot: Slot) -> Iterator[tuple[Any, Any]]:
        """The results of a worker that are there; of one that is gone, what it had is given to others."""
        while slot.given:
            given = slot.given[0]
            if not self.ray.wait([given.ref], timeout=0)[0]:
                return
            slot.given.popleft()
            attempt = given.attempt
            try:
                answer = self.ray.get(given.ref)
            except self.ray.exceptions.RayTaskError as error:  # it could not even be begun
                answer = Trouble("error", cut(str(error).strip().splitlines()[-1], 300))
            except self.ray.exceptions.RayError as error:
                self._lost(slot, attempt, "died", f"its worker ended ({type(error).__name__})")
                return
            slot.since = time.monotonic()
            if isinstance(answer, Done):
                self.longest = max(self.longest, answer.seconds)
                self.workers.well(slot.node)
                self.engine.count(self.workers.name_of(slot.node), int(getattr(attempt.job, "size", 1)))
                yield attempt.job, answer.result
            else:
                self._trouble(slot, attempt, answer)

    def _trouble(self, slot: Slot, attempt: _Attempt, trouble: Trouble) -> None:
        name = self.workers.name_of(slot.node)
        if trouble.kind != "writing":
            attempt.avoid.add(f"worker {slot.number}")
            self._failed(attempt, trouble.kind, f"{name}: {trouble.line}")
            return
        attempt.avoid.add(slot.node)
        if self.workers.strike(slot.node):
            self.again.appendleft(attempt)
            for lost in self.workers.put_aside(slot.node, f"cannot write: {trouble.line}"):
                self.again.extendleft(given.attempt for given in lost.given)
                lost.given.clear()
            return
        self.engine.say(f"{attempt.named} could not be written on {name} ({trouble.line}); it is done elsewhere")
        self._failed(attempt, "writing", f"{name}: {trouble.line}")

    def _lost(self, slot: Slot, attempt: _Attempt, how: str, line: str) -> None:
        """A worker is gone: the unit it was at failed, those behind it were never begun."""
        name = self.workers.name_of(slot.node)
        self.again.extendleft(given.attempt for given in slot.given)
        slot.given.clear()
        self.workers.end(slot)
        self._failed(attempt, how, f"{name}: {line}")

    def _look_for_late(self) -> None:
        """End workers that hang. Until one unit is done nobody knows how long they take."""
        given = self.engine.settings.deadline
        limit = given or (max(LEAST_DEADLINE, SLACK * self.longest) if self.longest else FIRST_DEADLINE)
        now = time.monotonic()
        for slot in self.workers.ready():
            if slot.given and now - slot.since > limit:
                if self.ray.wait([slot.given[0].ref], timeout=0)[0]:
                    continue
                late = slot.given.popleft().attempt
                self.engine.say(
                    f"{late.named} has no answer from {self.workers.name_of(slot.node)} after {limit:.0f} s: that "
                    "worker is ended, the unit is done elsewhere (--deadline gives units more time)"
                )
                self._lost(slot, late, "late", f"no answer after {limit:.0f} s")

    def _failed(self, attempt: _Attempt, how: str, line: str) -> None:
        attempt.failed[how] = attempt.failed.get(how, 0) + 1
        attempt.reason = line
        if attempt.failed[how] < TRIES[how]:
            self.again.append(attempt)
            return
        self.failures.append(attempt)
        self.engine.say(f"{attempt.named} failed {attempt.failed[how]} times and is left out ({line})")


def _places(slot: Slot) -> set[str]:
    return {slot.node, f"worker {slot.number}"}


def _failed(failures: Sequence[_Attempt]) -> str:
    shown = "; ".join(f"{each.named} ({each.reason})" for each in failures[:5])
    more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
    return (
        f"{len(failures)} units failed wherever they were tried, all others are finished: {shown}{more}; mend or leave "
        "out their records, and run the same command again (what workers said is in logs/)"
    )

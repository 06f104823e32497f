"""The workers of a cluster: started, loaded, compared, put aside and replaced; Ray finds the room for each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exitlens.errors import ModelError, RunError
from exitlens.runs.cluster.connection import Cluster, differing
from exitlens.runs.cluster.worker import About, Loaded, Source, Trouble, Worker, describe, end_process
from exitlens.storage.mirror import is_mirrored, portable

__all__ = ["Given", "Settings", "Slot", "Workers"]

LOOK_AGAIN = 5.0  # seconds between two looks at what the cluster has
SAY_WAITING = 20.0  # seconds without a worker after which that is said, and again after each
LOADING = 3600.0  # seconds after which a worker that still loads its model is given up
DEATHS = 6  # workers that die one after the other before any has its model
LAST_WORDS = 5.0  # seconds for workers to put their logs on object storage before they end
STRIKES = 3  # troubles of one machine, one after the other, after which it is put aside


@dataclass(frozen=True, slots=True)
class Settings:
    """How work is spread.

    Attributes:
        count: Workers; None: as many as the cluster has room for, also when it grows or shrinks.
        threads: Of each worker [threads, one processor each].
        gpus: Of each worker; 0 runs on processors.
        deadline: Seconds that a unit may take; None: 20 times the longest so far, at least two minutes.
    """

    count: int | None = None
    threads: int = 1
    gpus: int = 0
    deadline: float | None = None


@dataclass(slots=True)
class Given:
    """A unit that a worker has: Ray's reference to its result, and what was tried before."""

    ref: Any
    attempt: Any


@dataclass(slots=True)
class Slot:
    """A place for a worker. ``ref``: of what it is asked while it starts; ``given``: its units, the first one running.

    ``since``: when what it does now began.
    """

    number: int
    actor: Any
    ref: Any
    since: float
    node: str = ""
    pid: int = 0
    state: str = "starting"
    given: deque[Given] = field(default_factory=deque)


class Workers:
    """The workers of one run. ``marks``: what each has in common with the model here; ``say`` takes lines."""

    def __init__(
        self,
        cluster: Cluster,
        source: Source,
        settings: Settings,
        *,
        name: str,
        marks: dict[str, str],
        seen: Path | None,
        logs: Path | None,
        say: Callable[[str], None],
    ) -> None:
        self.cluster, self.source, self.settings = cluster, source, settings
        self.name, self.marks, self.seen, self.logs, self.say = name, marks, seen, logs, say
        self.slots: dict[int, Slot] = {}
        self.names: dict[str, str] = {}
        self._aside: dict[str, str] = {}  # machines that are given nothing more, and why
        self._strikes: dict[str, int] = {}
        self._deaths = 0
        self._looked = 0.0
        self._wanted = 0
        self._idle_since = time.monotonic()
        self._ray = cluster.ray
        self._kind = self._ray.remote(Worker)
        self._source_ref = self._ray.put(source)
        self._versions = describe().versions

    # what there is

    def ready(self) -> list[Slot]:
        """Workers that have their model."""
        return [slot for slot in self.slots.values() if slot.state == "ready"]

    def starting(self) -> list[Slot]:
        """Workers that do not have it yet."""
        return [slot for slot in self.slots.values() if slot.state != "ready"]

    def name_of(self, node: str) -> str:
        """What a machine is called."""
        if node not in self.names:
            self.names = {found.id: found.name for found in self.cluster.nodes()}
        return self.names.get(node, node[:8])

    # starting and ending them

    def keep_up(self) -> None:
        """Start workers where there should be more. Raises RunError, ModelError where there can be none."""
        now = time.monotonic()
        if now - self._looked > LOOK_AGAIN:
            self._looked = now
            self._wanted = self._room()
        for number in range(self._wanted):
            if number not in self.slots:
                self._start(number)
        for slot in self.starting():
            if slot.state == "loading" and now - slot.since > LOADING:
                self.say(f"{self.name_of(slot.node)}: no model after {LOADING:.0f} s, another worker is started")
                self.end(slot)
        if self.ready():
            self._idle_since = now
        elif now - self._idle_since > SAY_WAITING:
            self._idle_since = now
            self._say_waiting()

    def started(self, slot: Slot) -> None:
        """What a starting worker was asked is answered: go on to the next step."""
        try:
            answer = self._ray.get(slot.ref)
        except self._ray.exceptions.RayError as error:
            self.end(slot)
            self._deaths += 1
            self._looked = min(self._looked, time.monotonic() - LOOK_AGAIN + min(0.2 * self._deaths, 2.0))
            if self._deaths >= DEATHS:
                raise RunError(
                    f"{self._deaths} workers one after the other ended while they loaded the model "
                    f"({type(error).__name__}; out of memory?): give fewer --workers, or machines with more memory; "
                    "what they said is in the run's logs/"
                ) from None
            return
        if isinstance(answer, About):
            slot.node, slot.pid = answer.node, answer.pid
            wrong = differing(self._versions, answer.versions)
            if wrong:
                self._put_aside(slot.node, f"has {wrong}: install the same versions on every machine", RunError)
                return
            log = None if self.logs is None else portable(self.logs / f"worker-{slot.number:03d}.log")
            seen = None if self.seen is None else portable(self.seen)
            slot.ref = slot.actor.load.remote(self._source_ref, self.name, seen, log)
            slot.state, slot.since = "loading", time.monotonic()
            return
        if isinstance(answer, Trouble):
            self.end(slot)
            if answer.kind == "refused" or self.strike(slot.node):
                self._put_aside(slot.node, f"cannot load the model: {answer.line}", ModelError)
            return
        self._loaded(slot, answer)

    def end(self, slot: Slot) -> None:
        """End a worker for good, also one that answers no more."""
        self.slots.pop(slot.number, None)
        self._ray.kill(slot.actor, no_restart=True)
        if slot.pid:
            asked = self._ray.remote(num_cpus=0, max_retries=0)(end_process)
            asked.options(scheduling_strategy=self.cluster.on(slot.node)).remote(slot.pid)

    def close(self) -> None:
        """End all of them; what they have finished is kept."""
        if self._ray.is_initialized():
            if self.logs is not None and is_mirrored(self.logs):
                asked = [slot.actor.publish.remote() for slot in self.ready() if not slot.given]
                self._ray.wait(asked, num_returns=len(asked), timeout=LAST_WORDS) if asked else None
            for slot in list(self.slots.values()):
                self._ray.kill(slot.actor, no_restart=True)
        self.slots.clear()

    def strike(self, node: str) -> bool:
        """A machine could not do what others may be able to; whether that was once too often."""
        self._strikes[node] = self._strikes.get(node, 0) + 1
        return self._strikes[node] >= STRIKES

    def well(self, node: str) -> None:
        """A machine finished a unit."""
        self._strikes.pop(node, None)

    def put_aside(self, node: str, why: str) -> list[Slot]:
        """Give a machine nothing more; its workers, ended. Raises RunError when it was the last one."""
        lost = [slot for slot in self.slots.values() if slot.node == node]
        self._put_aside(node, why, RunError)
        return lost

    # the rest

    def _room(self) -> int:
        """How many workers there should be."""
        if self.settings.count is not None:
            return self.settings.count
        usable = [node for node in self.cluster.nodes() if node.id not in self._aside]
        if self.settings.gpus:
            return max(1, sum(int(node.gpus // self.settings.gpus) for node in usable))
        return max(1, sum(int(node.cpus // self.settings.threads) for node in usable))

    def _start(self, number: int) -> None:
        more: dict[str, Any] = {}
        if self._aside:
            more["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._aside))})"}
        actor = self._kind.options(
            num_cpus=self.settings.threads if not self.settings.gpus else 1,
            num_gpus=self.settings.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            **more,
        ).remote(self.settings.threads)
        self.slots[number] = Slot(number, actor, actor.about.remote(), time.monotonic())

    def _loaded(self, slot: Slot, found: Loaded) -> None:
        for name, mine in self.marks.items():
            theirs = str(found.marks.get(name))
            if theirs != mine:
                self.end(slot)
                self._put_aside(
                    slot.node, f"loads another model as '{self.name}': {name} {theirs[:16]} instead of {mine[:16]}; "
                    "give every machine the same files and the same kind of processor", ModelError,
                )  # fmt: skip
                return
        slot.state, slot.since = "ready", time.monotonic()
        self._deaths = 0

    def _put_aside(self, node: str, why: str, error: type[RunError | ModelError]) -> None:
        name = self.name_of(node)
        self._aside[node] = why
        for slot in [slot for slot in self.slots.values() if slot.node == node]:
            self.end(slot)
        left = [found for found in self.cluster.nodes() if found.id not in self._aside and self._fits(found)]
        if not left:
            raise error(f"{name} {why}")
        self.say(f"{name} {why}; it is given nothing more, the other machines go on")
        self._looked = 0.0

    def _fits(self, node: Any) -> bool:
        return bool(node.gpus >= self.settings.gpus if self.settings.gpus else node.cpus >= self.settings.threads)

    def _say_waiting(self) -> None:
        waiting = sum(slot.state == "starting" for slot in self.slots.values())
        if not waiting:
            return
        each = f"{self.settings.gpus} GPU" if self.settings.gpus else f"{self.settings.threads} CPU"
        self.say(
            f"waiting for room for {waiting} workers of {each} each; the cluster has "
            f"{sum(n.gpus for n in self.cluster.nodes()):g} GPU and {sum(n.cpus for n in self.cluster.nodes()):g} CPU"
        )

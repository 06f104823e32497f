"""A cluster of two nodes on this machine whose workers are killed at random, until the bytes are those of one process.

    python benchmarks/chaos.py --kills 100          # tiny model, about ten minutes on two cores
    python benchmarks/chaos.py --kills 100 --bare   # units that only write: two minutes
    python benchmarks/chaos.py --overhead           # what the engine itself takes a unit, and 1 to 8 workers

Workers die by SIGKILL, each at a random moment, whatever they are at; then every file is compared with that of a run in
this process. The last line says what was killed and what was the same.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cluster_work import NoModel, Nothing, Unit, Write
from tests.ray_nodes import QUIET, RayNodes

from exitlens.runs.cluster.address import parse_engine
from exitlens.runs.cluster.connection import connect
from exitlens.runs.cluster.engine import RayEngine
from exitlens.runs.cluster.workers import Settings
from exitlens.storage.sealed import Sealed

BARE: Any = SimpleNamespace(name="none", fingerprint="f")


class Killer(threading.Thread):
    """Kills a worker every so often; ``kills``: how many are left."""

    def __init__(self, engine: RayEngine, kills: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.engine, self.left, self.seconds, self.over = engine, kills, seconds, threading.Event()
        self.chance = random.Random(0)

    def run(self) -> None:
        while self.left and not self.over.wait(self.chance.uniform(0, 2 * self.seconds)):
            pids = self.engine.pids()
            if pids:
                try:
                    os.kill(self.chance.choice(pids), signal.SIGKILL)
                except ProcessLookupError:  # one that is dead already, and not yet known to be
                    continue
                self.left -= 1


def until_all_are_killed(killer: Killer, least: int) -> Iterator[Unit]:
    """Units for as long as there is somebody to kill."""
    number = 0
    while killer.left or number < least:
        yield Unit(number)
        number += 1


def bare(cluster: Any, folder: Path, kills: int, workers: int) -> None:
    units = Sealed(folder / "units")
    with RayEngine(cluster, NoModel(), BARE, Settings(workers)) as engine:
        killer = Killer(engine, kills, 0.5)
        killer.start()
        begun = time.monotonic()
        done = sorted(job.number for job, _ in engine.stream(Write(units, 0.1), until_all_are_killed(killer, 200)))
        seconds = time.monotonic() - begun
    alone = Sealed(folder / "alone")
    for number in done:
        Write(alone).run(None, Unit(number))
    same = sum((units.folder / p.name).read_bytes() == p.read_bytes() for p in alone.folder.iterdir())
    total = len(list(alone.folder.iterdir()))
    each_once = done == list(range(len(done)))
    print(
        f"{kills} workers killed in {seconds:.0f} s; {len(done)} units, each finished once: {each_once}; "
        f"{same} of {total} files the same as in one process, {len(list(units.folder.iterdir())) - total} more or fewer"
    )


def reading(cluster: Any, folder: Path, kills: int, workers: int) -> None:
    from tests import tiny

    from exitlens.data.texts import TextFile
    from exitlens.runs.engine import LocalEngine
    from exitlens.studies.corpus.read import CorpusSettings, read_corpus
    from exitlens.studies.engines import ModelSource

    source = ModelSource(str(tiny.save(folder / "model")), "cpu", "float32")
    text = folder / "text.txt"
    text.write_text("\n".join(f"The capital of France is Paris, and {i} + 2 = {i + 2}." for i in range(6 * kills)))
    lm = source.load(1)
    how = CorpusSettings(shard_tokens=64, stats=("entropy", "kl"))
    read_corpus(LocalEngine(lm), TextFile(text), folder / "alone", how)
    out = folder / "killed"
    with RayEngine(cluster, source, lm, Settings(workers), logs=out / "logs", seen=out / "manifest.json") as engine:
        killer = Killer(engine, kills, 1.0)
        killer.start()
        begun, calls = time.monotonic(), 0
        while killer.left or not calls:
            # Where a reading ends before the last kill, the next one begins in the middle of it.
            for seal in sorted((out / "seals").glob("*.json"))[::2] if calls else ():
                seal.unlink()
            read_corpus(engine, TextFile(text), out, how)
            calls += 1
        killer.over.set()
    names = [f"{part}/{p.name}" for part in ("shards", "seals") for p in (folder / "alone" / part).iterdir()]
    same = sum((out / name).read_bytes() == (folder / "alone" / name).read_bytes() for name in names)
    more = sum(len(list((out / part).iterdir())) for part in ("shards", "seals")) - len(names)
    print(
        f"{kills - killer.left} workers killed in {time.monotonic() - begun:.0f} s of {calls} readings; "
        f"{same} of {len(names)} files the same as in one process, {more} more or fewer"
    )


def overhead(cluster: Any) -> None:
    for workers in (1, 2, 4, 8):
        with RayEngine(cluster, NoModel(), BARE, Settings(workers)) as engine:
            list(engine.stream(Nothing(), (Unit(i) for i in range(20 * workers))))  # every worker is there
            time.sleep(2.0)
            count, begun = 2000, time.perf_counter()
            for _ in engine.stream(Nothing(), (Unit(i) for i in range(count))):
                pass
            each = 1e3 * (time.perf_counter() - begun) / count
        print(f"{workers} workers: {each:.2f} ms a unit that does nothing")
    for workers in (1, 2):
        with RayEngine(cluster, NoModel(), BARE, Settings(workers)) as engine:
            list(engine.stream(Nothing(0.05), (Unit(i) for i in range(20 * workers))))
            count, begun = 100 * workers, time.perf_counter()
            for _ in engine.stream(Nothing(0.05), (Unit(i) for i in range(count))):
                pass
            rate = count / (time.perf_counter() - begun) / workers
        print(f"{workers} workers: {rate:.2f} units of 50 ms of work a second and worker")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--overhead", action="store_true")
    given = parser.parse_args()
    os.environ.update({name: value for name, value in QUIET.items() if name.startswith("RAY_")})
    with RayNodes() as nodes, tempfile.TemporaryDirectory() as folder:
        nodes.start("head", 8)
        nodes.start("second", 8)
        with connect(parse_engine(f"ray://{nodes.address}")) as cluster:
            end = time.monotonic() + 60
            while len(cluster.nodes()) < 2 and time.monotonic() < end:
                time.sleep(0.1)
            if given.overhead:
                overhead(cluster)
            else:
                (bare if given.bare else reading)(cluster, Path(folder), given.kills, given.workers)


if __name__ == "__main__":
    main()

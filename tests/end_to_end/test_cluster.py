"""A real cluster of two nodes on this machine: the same bytes as one process, whatever happens to workers and nodes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import s3fs
from tests import s3_server, tiny
from tests.cluster_work import NoModel, Unit, Write
from tests.ray_nodes import QUIET, RayNodes

from exitlens import cli
from exitlens.errors import ModelError, RunError, UnitsFailed
from exitlens.runs.cluster.address import parse_engine
from exitlens.runs.cluster.connection import Cluster, connect
from exitlens.runs.cluster.engine import RayEngine
from exitlens.runs.cluster.workers import Settings
from exitlens.storage.sealed import Sealed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.wrong_types,  # units that need no model are run beside a name in its place
    pytest.mark.filterwarnings("ignore"),  # Ray opens sockets that it leaves to the end
]


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """The environment of an S3 server with one bucket, "bucket"."""
    with s3_server.server() as port:
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield environment


@pytest.fixture(scope="module")
def nodes(store: dict[str, str]) -> Iterator[RayNodes]:
    with RayNodes() as started:
        started.start("head", 8, **store)
        started.start("second", 8, **store)
        yield started


@pytest.fixture(scope="module")
def cluster(nodes: RayNodes) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            if name.startswith("RAY_"):
                patch.setenv(name, value)
        with connect(parse_engine(f"ray://{nodes.address}")) as connected:
            until(lambda: len(connected.nodes()) == 2, "a second node")
            yield connected


def until(there: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, f"no {what} within {seconds:.0f} s"
        time.sleep(0.05)


class Work:
    """Units written by workers, with what was said and where they were made."""

    def __init__(self, cluster: Cluster, folder: Path, workers: int, source: NoModel | None = None, **how: Any) -> None:
        self.units, self.said, self.on = Sealed(folder / "units"), list[str](), Counter[str]()
        self.taken = self.done = self.ahead = 0
        settings = Settings(workers, deadline=how.pop("deadline", None))
        self.task = Write(self.units, **how)
        lm: Any = SimpleNamespace(name="none", fingerprint="f")
        self.engine = RayEngine(
            cluster, source or NoModel(), lm, settings, say=self.said.append, logs=folder / "logs"
        )  # fmt: skip

    def run(self, count: int, each: Callable[[Work], None] = lambda _work: None) -> None:
        def jobs() -> Iterator[Unit]:
            for number in range(count):
                self.taken += 1
                self.ahead = max(self.ahead, self.taken - self.done)
                yield Unit(number)

        with self.engine:
            for _, node in self.engine.stream(self.task, jobs()):
                self.done += 1
                self.on[node] += 1
                each(self)

    def contents(self) -> list[tuple[str, bytes]]:
        self.units.catch_up()  # as whoever reads them does: what a killed process was writing goes
        return sorted((path.name, path.read_bytes()) for path in self.units.folder.iterdir())


def expected(folder: Path, count: int) -> list[tuple[str, bytes]]:
    """What one process writes."""
    units = Sealed(folder / "alone")
    for number in range(count):
        Write(units).run(None, Unit(number))
    return sorted((path.name, path.read_bytes()) for path in units.folder.iterdir())


@pytest.mark.parametrize("workers", [1, 8])
def test_the_same_bytes_by_any_number_of_workers(cluster: Cluster, tmp_path: Path, workers: int) -> None:
    work = Work(cluster, tmp_path, workers, seconds=0.01)
    work.run(60)
    assert work.contents() == expected(tmp_path, 60)
    assert work.done == 60
    assert work.ahead <= 2 * workers + 1  # none is taken before there is room for it
    assert not work.said


def test_workers_killed_at_random(cluster: Cluster, tmp_path: Path) -> None:
    chance = random.Random(0)
    killed: set[int] = set()

    def kill(work: Work) -> None:
        ready = work.engine.pids()
        if ready and work.done % 6 == 0 and len(killed) < 6:
            pid = chance.choice(ready)
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)

    work = Work(cluster, tmp_path, 3, seconds=0.02)
    work.run(60, kill)
    assert len(killed) == 6
    assert work.contents() == expected(tmp_path, 60)
    assert work.done == 60


@pytest.mark.parametrize("how", ["hang", "die"])
def test_a_unit_whose_worker_hangs_or_dies_is_done_elsewhere(cluster: Cluster, tmp_path: Path, how: str) -> None:
    work = Work(cluster, tmp_path, 2, how=how, once=tmp_path / "once", deadline=2.0)
    work.run(12)
    assert work.contents() == expected(tmp_path, 12)
    if how == "hang":
        assert "unit 3 has no answer from" in work.said[0]
        assert "--deadline" in work.said[0]


def test_a_unit_that_always_fails_is_named_when_the_others_are_done(cluster: Cluster, tmp_path: Path) -> None:
    work = Work(cluster, tmp_path, 2, how="fail")
    with pytest.raises(UnitsFailed, match=r"^1 units failed .* unit 3 \(.*ValueError: record 3 is broken\)"):
        work.run(12)
    assert work.done == 11
    assert "ValueError: record 3 is broken" in "".join(p.read_text() for p in (tmp_path / "logs").iterdir())


def test_a_full_disk_on_one_node(cluster: Cluster, tmp_path: Path) -> None:
    work = Work(cluster, tmp_path, 4, how="full", seconds=0.3)
    work.run(24)
    assert work.contents() == expected(tmp_path, 24)
    assert set(work.on) == {"head"}
    assert any("no space left to write" in line for line in work.said)


def test_a_model_that_some_nodes_cannot_load_and_one_that_none_can(cluster: Cluster, tmp_path: Path) -> None:
    work = Work(cluster, tmp_path, 4, NoModel(fails="second"), seconds=0.3)
    work.run(24)
    assert set(work.on) == {"head"}
    with pytest.raises(ModelError, match="cannot load the model: no model here"):
        Work(cluster, tmp_path / "none", 2, NoModel(fails="head,second")).run(4)


def test_nodes_that_load_other_weights_are_not_used(cluster: Cluster, tmp_path: Path) -> None:
    work = Work(cluster, tmp_path, 4, NoModel(other_on="second"), seconds=0.3)
    work.run(24)
    assert set(work.on) == {"head"}
    assert work.contents() == expected(tmp_path, 24)


def test_what_a_node_does_not_see_is_refused_before_anything_is_loaded(cluster: Cluster) -> None:
    cluster.check(cluster.nodes(), [])
    with pytest.raises(RunError, match=r"does not see '/nowhere/model': put it where every machine"):
        cluster.check(cluster.nodes(), ["/nowhere/model"])


def command(*options: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from exitlens.cli import main; sys.exit(main())", *options]


def test_commands_give_the_files_of_one_process_also_when_the_driver_is_killed(nodes: RayNodes, tmp_path: Path) -> None:
    environment = {**os.environ, **QUIET}
    model = tiny.save(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"The capital of France is Paris, and {i} + 2 = {i + 2}." for i in range(400)))
    reading = ["--text", str(text), "--model", str(model), "--shard-tokens", "128", "-q"]
    there = ["--engine", f"ray://{nodes.address}", "--workers", "2"]

    def run(out: str, *more: str) -> None:
        subprocess.run(
            command("read", *reading, "--out", str(tmp_path / out), *more), env=environment, check=True, timeout=120,
            capture_output=True,
        )  # fmt: skip

    run("alone")
    driver = subprocess.Popen(
        command("read", *reading, "--out", str(tmp_path / "killed"), *there), env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: len(list((tmp_path / "killed" / "seals").glob("*.json"))) > 3, "finished shard", 90)
    driver.kill()
    driver.wait()
    run("killed", *there)
    for folder in ("shards", "seals"):
        alone = sorted((tmp_path / "alone" / folder).iterdir())
        killed = sorted((tmp_path / "killed" / folder).iterdir())
        assert [p.name for p in alone] == [p.name for p in killed]
        assert [p.read_bytes() for p in alone] == [p.read_bytes() for p in killed]
    assert "model loaded" in (tmp_path / "killed" / "logs" / "worker-000.log").read_text()


def ended(driver: subprocess.Popen[str], number: int) -> tuple[int, str]:
    driver.send_signal(number)
    _, said = driver.communicate(timeout=60)
    return driver.returncode, said


def workers(run: Path) -> list[int]:
    """The processes that last loaded a model, one of each log; earlier drivers' are among them until theirs has."""
    logs = [log.read_text().rpartition(" exitlens: model loaded")[0].split() for log in run.glob("logs/worker-*.log")]
    return [int(words[-1]) for words in logs if words]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def study(folder: Path) -> list[str]:
    """A run of a tiny model over a dozen questions and two dozen statements, without where it goes."""
    config = tiny.save(folder / "model", spread=0.15) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 4096}))
    with (folder / "q.jsonl").open("w") as out:
        for i in range(12):
            row = {"question": f"What is {i} + 2?", "best": str(i + 2), "correct": [str(i + 2)], "incorrect": ["one"]}
            out.write(json.dumps(row) + "\n")
    with (folder / "s.jsonl").open("w") as out:
        for i in range(24):
            said, topic = f"The thing{i // 2} has {i % 2 + 3} legs.", f"t{i // 12}"
            row = {"statement": said, "label": i % 2, "topic": topic, "entity": f"thing{i // 2}"}
            out.write(json.dumps(row) + "\n")
    return [
        "run", "--only", "entropy,probes", "--model", str(config.parent), "--data", str(folder / "q.jsonl"),
        "--statements", str(folder / "s.jsonl"), "--setting", "zero-shot", "--kinds", "mass-mean", "--protocol",
        "grouped-k-fold", "--batch-size", "1", "--max-new-tokens", "4", "--judges", "margin:rouge",
        "--bertscore-model", "none", "--no-figures", "--device", "cpu", "--dtype", "float32",
    ]  # fmt: skip


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """The files of those patterns by name, of which there is one at least of each."""
    found = {pattern: sorted(folder.glob(pattern)) for pattern in patterns}
    assert all(found.values()), found
    return {path.relative_to(folder).as_posix(): path.read_bytes() for paths in found.values() for path in paths}


def test_a_run_is_the_same_whoever_is_killed(nodes: RayNodes, tmp_path: Path) -> None:
    environment, studies = {**os.environ, **QUIET}, study(tmp_path)
    killed, there = tmp_path / "killed", ["--engine", f"ray://{nodes.address}", "--workers", "2"]

    def begin(*how: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(*studies, "--out", str(killed), *how), env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def seals(count: int) -> None:
        until(
            lambda: len(list(killed.glob("work/*/*.seal.json"))) >= count or driver.poll() is not None,
            f"unit {count}", 300,
        )  # fmt: skip
        assert driver.poll() is None, driver.communicate()

    driver = begin(*there)
    seals(2)
    assert ended(driver, signal.SIGKILL)[0] == -signal.SIGKILL
    made = len(list(killed.glob("work/*/*.seal.json")))
    driver = begin("--engine", "ray", "--workers", "1")  # a Ray of its own
    seals(made + 2)
    code, said = ended(driver, signal.SIGTERM)
    assert code == 130
    assert said.endswith("\ninterrupted; finished work is kept, the same command continues from there\n")
    assert "interrupted" in (killed / "status.json").read_text()
    assert not (killed / "report.html").exists()
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("work/*/*.seal.json")}
    driver = begin(*there)
    seals(len(kept) + 1)
    os.kill(next(worker for worker in workers(killed) if alive(worker)), signal.SIGKILL)
    assert driver.wait(timeout=300) == 0, driver.stderr.read() if driver.stderr else ""
    assert driver.stderr is not None
    driver.stderr.close()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing finished was done again
    assert cli.main([*studies, "--out", str(tmp_path / "alone"), "-q"]) == 0
    files = ("tables/*", "states/*/shards/*.safetensors", "states/*/index.parquet", "work/*/*.parquet")
    assert contents(killed, *files) == contents(tmp_path / "alone", *files)


def test_machines_that_share_a_bucket_and_nothing_else(nodes: RayNodes, store: dict[str, str], tmp_path: Path) -> None:
    studies = study(tmp_path)
    environment = {**os.environ, **QUIET, **store, "EXITLENS_CACHE": str(tmp_path / "cache")}
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"The capital of France is Paris, and {i} + 2 = {i + 2}." for i in range(80)))
    reading = ["read", "--text", str(text), "--model", str(tmp_path / "model"), "--shard-tokens", "256"]
    there = ["--engine", f"ray://{nodes.address}", "--workers", "2", "-q"]
    for options in (
        [*studies, "--out", "s3://bucket/run", "--states", "s3://bucket/states"],
        [*reading, "--out", "s3://bucket/read"],
    ):
        done = subprocess.run(
            command(*options, *there), env=environment, check=False, timeout=280, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert cli.main([*studies, "--out", str(tmp_path / "run"), "--states", str(tmp_path / "states"), "-q"]) == 0
    assert cli.main([*reading, "--out", str(tmp_path / "read"), "-q"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.items():
            patch.setenv(name, value)
        bucket = s3fs.S3FileSystem(skip_instance_cache=True)
        bucket.get("bucket", str(tmp_path / "bucket"), recursive=True)
    for made in (
        "run/tables/*",
        "states/*/shards/*.safetensors",
        "run/work/*/*.parquet",
        "read/shards/*",
        "read/seals/*",
    ):
        assert contents(tmp_path / "bucket", made) == contents(tmp_path, made)
    for log in contents(tmp_path / "bucket", "run/logs/*", "read/logs/*").values():
        assert b"model loaded" in log
    assert not list(nodes.folder.glob("home-*/cache/objects/*/passing-*/*"))  # they keep nothing of what they put


def test_a_node_of_another_version_is_refused(cluster: Cluster, nodes: RayNodes, tmp_path: Path) -> None:
    other = tmp_path / "other" / "exitlens-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: exitlens\nVersion: 9.9.9\n")
    nodes.start("old", 1, PYTHONPATH=os.pathsep.join([str(other.parent), QUIET["PYTHONPATH"]]))
    until(lambda: len(cluster.nodes()) == 3, "a third node")
    with pytest.raises(RunError, match=r"^machine \S+ has exitlens 9\.9\.9, this machine has .*install the same"):
        cluster.check(cluster.nodes(), [])
    nodes.kill("old")
    until(lambda: len(cluster.nodes()) == 2, "end of the third node")


# Last: the second node is gone afterwards.
def test_a_node_that_is_killed(cluster: Cluster, nodes: RayNodes, tmp_path: Path) -> None:
    def kill(work: Work) -> None:
        if work.on["second"] == 3 and nodes.alive("second"):
            nodes.kill("second")

    work = Work(cluster, tmp_path, 6, seconds=0.1)
    work.run(90, kill)
    assert not nodes.alive("second")
    assert work.contents() == expected(tmp_path, 90)
    assert work.done == 90

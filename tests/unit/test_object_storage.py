"""Runs, stores and texts on object storage, against a real S3 server that fails, is slow, and sees writers killed."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import tiny
from tests.commands import call, done
from tests.s3_server import Proxy, server
from tests.unit.run_folders import decoding_tables, run_folder
from tests.unit_writer import fill

import exitlens.models
from exitlens.errors import InputError, MissingExtra, RunError
from exitlens.runs.directory import RunDirectory
from exitlens.runs.hidden_states import Origin, StateStore
from exitlens.storage import lease, lock, mirror, object_store
from exitlens.storage.lease import Lease
from exitlens.storage.mirror import local_file, local_folder, named
from exitlens.storage.object_store import ObjectStore, address_of

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

_buckets = itertools.count()


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with server() as port:
        found = Proxy(port)
        yield found
        found.close()


@pytest.fixture
def bucket(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a new bucket; caches and leases are those of a machine that was never here."""
    for name, value in {
        "AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
        "EXITLENS_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    proxy.rule, proxy.hidden, proxy.seen = lambda _method, _path, _number: None, set(), []
    monkeypatch.setattr(object_store, "PAUSES", (0.01, 0.02, 0.02))
    s3fs.S3FileSystem.clear_instance_cache()
    elsewhere(monkeypatch, tmp_path, "cache")
    name = f"bucket-{next(_buckets)}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: str) -> None:
    """What follows happens on a machine that holds no copy."""
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / cache))
    for held in lock._held.values():
        held.release()
    lock._held.clear()
    mirror._mirrors.clear()


def objects(address: str) -> dict[str, bytes]:
    """Every object below an address, leases left out."""
    store = ObjectStore(address_of(address))
    return {name: store.read(name) for name in store.listing() if not name.startswith(".lock/")}


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def results(found: dict[str, bytes]) -> dict[str, bytes]:
    """What the work decides; the manifest holds times and places."""
    return {name: raw for name, raw in found.items() if name.split("/")[0] in ("shards", "seals", "tables", "work")}


# ---- the same bytes


def test_a_reading_of_a_text_in_a_bucket_into_a_bucket_is_the_local_one(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = tiny.save(tmp_path / "m"), tmp_path / "t.txt"
    text.write_text("How many whiskers?\nNone.\nThe capital of France is Paris.\n" * 5)
    ObjectStore(address_of(bucket)).put("texts/t.txt", text)
    read = ("read", "--model", model, "--stats", "entropy,kl", "--shard-tokens", "64")
    done(capsys, *read, "--text", text, "--out", tmp_path / "local")
    found = done(capsys, *read, "--text", f"{bucket}/texts/t.txt", "--out", f"{bucket}/run")
    assert (found["out"], found["files"]) == (f"{bucket}/run", f"{bucket}/run/shards/*.parquet")
    there = objects(f"{bucket}/run")
    assert results(there) == results(files(tmp_path / "local"))
    assert f"{bucket}/texts/t.txt".encode() in there["manifest.json"]
    elsewhere(monkeypatch, tmp_path, "other")
    again = done(capsys, *read, "--text", f"{bucket}/texts/t.txt", "--out", f"{bucket}/run")
    assert (again["fresh_tokens"], again["by_layer"]) == (0, found["by_layer"])
    assert not list(Path().glob("s3:*"))


def test_states_are_stored_in_a_bucket_and_read_on_another_machine(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Origin("m", "f", "float32", 4, (0, 1), "last", "zero-shot", "p")
    rows = pd.DataFrame(
        {"id": list("abc"), "label": [1, 0, 1], "topic": "t", "group": "g", "hash": list("xyz"), "n_tokens": 3}
    )
    states = {layer: torch.arange(12, dtype=torch.float32).reshape(3, 4) + layer for layer in (0, 1)}
    made = {}
    for place in (tmp_path / "local", f"{bucket}/states"):
        store = StateStore.open(place, origin)
        store.plan(rows)
        assert store.unfinished() == [0]
        store.write(0, states, pd.DataFrame({"position": [1, 2, 3]}))
        store.finish()
        made[str(place)] = store.states((0, 1))
    assert objects(f"{bucket}/states") == files(tmp_path / "local")
    elsewhere(monkeypatch, tmp_path, "other")
    found = StateStore.read(f"{bucket}/states")
    assert np.array_equal(found.layer(1, ["c", "a"]), states[1][[2, 0]].numpy())
    assert StateStore.open(f"{bucket}/states", origin).unfinished() == []


def test_runs_in_buckets_are_compared_into_a_bucket(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ObjectStore(address_of(bucket))
    for name, value in (("0", 0.25), ("1", 0.75)):
        made = run_folder(tmp_path / name, decoding_tables([value] * 20))
        for file, raw in files(made).items():
            store.put_bytes(f"{name}/{file}", raw)
    found = done(capsys, "compare", f"{bucket}/0", f"{bucket}/1", "--out", f"{bucket}/both", "--no-figures")
    assert found["report"] == f"{bucket}/both/report.html"
    there = objects(f"{bucket}/both")
    assert b"</html>" in there["report.html"]
    assert any(name.startswith("tables/") for name in there)


def test_a_run_in_memory_works_as_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(monkeypatch, tmp_path, "cache")
    with RunDirectory.open("memory://here/run", {"a": 1}) as directory:
        fill(directory)
    with RunDirectory.open(tmp_path / "local", {"a": 1}) as local:
        fill(local)
    assert results(objects("memory://here/run")) == results(files(tmp_path / "local"))
    assert len(RunDirectory.read("memory://here/run").tables()["all"]) == 60


def test_a_fresh_start_removes_the_objects_of_the_run_and_no_others(bucket: str) -> None:
    with RunDirectory.open(f"{bucket}/run", {"a": 1}) as directory:
        fill(directory)
    ObjectStore(address_of(bucket)).put_bytes("run-of-another/manifest.json", b"{}")
    with pytest.raises(RunError, match=rf"'{bucket}/run' belongs to another run: its a is 1"):
        RunDirectory.open(f"{bucket}/run", {"a": 2})
    with RunDirectory.open(f"{bucket}/run", {"a": 2}, fresh=True):
        pass
    assert list(objects(f"{bucket}/run")) == ["manifest.json"]
    assert objects(f"{bucket}/run-of-another")


def test_a_place_with_other_objects_is_no_run_directory(bucket: str) -> None:
    ObjectStore(address_of(bucket)).put_bytes("mine/letter.txt", b"dear")
    for fresh in (False, True):
        with pytest.raises(RunError, match=r"is not a run directory and is not empty \(it holds 'letter.txt'\)"):
            RunDirectory.open(f"{bucket}/mine", {"a": 1}, fresh=fresh)
    assert objects(f"{bucket}/mine") == {"letter.txt": b"dear"}


# ---- failing, slow, killed


def test_failing_slow_and_dropped_requests_are_repeated(
    bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PAUSES", (0.01,) * 8)

    def rule(_method: str, _path: str, number: int) -> int | None:
        luck = random.Random(number).random()
        if luck < 0.04:
            raise ConnectionError
        time.sleep(0.3 if luck > 0.95 else 0)
        return 503 if luck < 0.1 else 500 if luck < 0.16 else None

    proxy.rule = rule
    with RunDirectory.open(f"{bucket}/run", {"a": 1}) as directory:
        fill(directory)
    proxy.rule = lambda _method, _path, _number: None
    with RunDirectory.open(tmp_path / "local", {"a": 1}) as local:
        fill(local)
    assert results(objects(f"{bucket}/run")) == results(files(tmp_path / "local"))


def test_a_store_that_keeps_failing_ends_in_one_line_and_loses_nothing(bucket: str, proxy: Proxy) -> None:
    with RunDirectory.open(f"{bucket}/run", {"a": 1}) as directory:
        fill(directory, 2)
        proxy.rule = lambda method, path, _number: 503 if method == "PUT" and "00003" in path else None
        with pytest.raises(
            RunError, match=r"cannot write 's3://.*00003.*\(4 tries\); what is finished is kept"
        ) as said:
            fill(directory)
        assert "\n" not in str(said.value)
        assert not list(directory.path.rglob("00003*"))  # nothing is here that is not there
    proxy.rule = lambda _method, _path, _number: None
    with RunDirectory.open(f"{bucket}/run", {"a": 1}) as directory:
        assert directory.units("stage").whole(2, "k") is not None
        fill(directory)


def test_a_writer_that_is_killed_at_any_put_ends_with_the_same_bytes(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    running: list[subprocess.Popen[bytes]] = []
    left = [9, 17, 14]  # the put at which the first, second and third writer is killed

    def rule(method: str, _path: str, _number: int) -> None:
        if method == "PUT" and left:
            left[0] -= 1
            if not left[0]:
                left.pop(0)
                running[-1].send_signal(signal.SIGKILL)
                raise ConnectionError

    proxy.rule = rule
    codes = []
    writer = str(Path(__file__).parents[1] / "unit_writer.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    while not codes or codes[-1] != 0:
        assert len(codes) < 6
        with subprocess.Popen([sys.executable, writer, f"{bucket}/run", "8"], env=environment) as process:
            running.append(process)
            try:
                codes.append(process.wait(timeout=250))
            finally:
                process.kill()
    assert codes == [-signal.SIGKILL] * 3 + [0]
    with RunDirectory.open(tmp_path / "local", {"a": 1}) as local:
        fill(local, 8)
    assert results(objects(f"{bucket}/run")) == results(files(tmp_path / "local"))


def test_a_request_that_is_answered_too_late_is_repeated(
    bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_READ_SECONDS", 0.5)
    s3fs.S3FileSystem.clear_instance_cache()
    waits = [2.0]

    def rule(method: str, _path: str, _number: int) -> None:
        time.sleep(waits.pop() if method == "PUT" and waits else 0)

    proxy.rule = rule
    store = ObjectStore(address_of(bucket))
    store.put_bytes("a.txt", b"a")
    assert store.read("a.txt") == b"a"
    waits.extend([2.0] * 10)
    begun = time.monotonic()
    with pytest.raises(
        RunError, match=r"cannot write 's3://.*b\.txt': the store cannot be reached .*\(4 tries\)"
    ) as said:
        store.put_bytes("b.txt", b"b")
    assert "\n" not in str(said.value)
    assert time.monotonic() - begun < 10


# ---- workers on other machines


def test_what_workers_on_other_machines_wrote_is_brought_and_kept(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Origin("m", "f", "float32", 4, (0,), "last", "zero-shot", "p")
    rows = pd.DataFrame({"id": ["a"], "label": 1, "topic": "t", "group": "g", "hash": ["x"], "n_tokens": 3})
    found = pd.DataFrame({"position": [1]})

    def elsewhere_written(store: StateStore, layer: int) -> None:
        """By a worker with a cache of its own, which holds what an earlier run left there."""
        sent, key = pickle.dumps(store.writer()), store.key(store.planned(0))
        here = dict(mirror._mirrors)
        monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "worker"))
        pickle.loads(sent).write(0, key, ["a"], {layer: torch.full((1, 4), float(layer))}, found)  # noqa: S301
        left = files(tmp_path / "worker")
        assert any(name.endswith("seal.json") for name in left)
        mirror.passed()
        assert not files(tmp_path / "worker")
        mirror._mirrors.clear()
        mirror._mirrors.update(here)
        monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "cache"))

    store = StateStore.open(f"{bucket}/states", origin)
    store.plan(rows)
    elsewhere_written(store, 0)
    assert len(store.finish()) == 1
    assert store.layer(0).tolist() == [[0.0] * 4]
    more = StateStore.open(f"{bucket}/states", replace(origin, layers=(0, 1)))
    assert more.missing(0) == (1,)
    elsewhere_written(more, 1)
    more.finish()
    assert more.states((0, 1))[:, 0, 0].tolist() == [0.0, 1.0]
    assert {name.partition(".")[2] for name in objects(f"{bucket}/states") if name.startswith("shards/")} == {
        "safetensors", "1.safetensors", "rows.parquet", "seal.json"
    }  # fmt: skip


# ---- one writer


def test_one_of_many_writers_at_once_gets_the_lease(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HELD_SECONDS", 2.0)
    leases = [Lease(ObjectStore(address_of(f"{bucket}/run"))) for _ in range(6)]
    got: list[Lease] = []
    refused: list[RunError] = []

    def take(one: Lease) -> None:
        try:
            one.acquire()
            got.append(one)
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=take, args=(one,)) for one in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)
    assert all("is in use by" in str(error) for error in refused)
    got[0].release()
    after = Lease(ObjectStore(address_of(f"{bucket}/run")))
    begun = time.monotonic()
    after.acquire()  # what was let go is not watched
    assert time.monotonic() - begun < 2.0
    after.release()


def test_a_lease_that_does_not_change_is_taken_over_whatever_the_clocks_say(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "HELD_SECONDS", 0.8)
    monkeypatch.setattr(lease, "HOST", "ffffff")  # of another machine, whose processes cannot be looked up
    stopped = Lease(ObjectStore(address_of(f"{bucket}/run")))
    monkeypatch.setattr(stopped, "_keep", lambda: None)  # it was stopped, so it does not renew
    stopped.acquire()
    monkeypatch.setattr(lease, "HOST", "000000")
    monkeypatch.setattr(time, "time", lambda: -1e9)  # this machine's calendar is in 1938
    waiter = Lease(ObjectStore(address_of(f"{bucket}/run")))
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING, "exitlens"):
        waiter.acquire()
    assert 0.8 <= time.monotonic() - begun < 20
    assert "of machine ffffff: watching for up to" in caplog.text
    with pytest.raises(RunError, match="was taken over by another process"):
        stopped.check()
    waiter.check()
    waiter.release()


def test_a_stopped_writer_writes_nothing_more(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDirectory.open(f"{bucket}/run", {"a": 1}) as directory:
        fill(directory, 2)
        held = mirror._mirrors[directory.path].lease
        assert held is not None
        ObjectStore(address_of(f"{bucket}/run")).put_bytes(f".lock/{held._number + 1:05d}", b"{}")
        monkeypatch.setattr(held, "_renewed", -1e9)
        before = objects(f"{bucket}/run")
        with pytest.raises(RunError, match="was taken over by another process"):
            fill(directory)
        assert objects(f"{bucket}/run") == before


def test_a_run_that_is_held_here_is_refused_at_once(bucket: str) -> None:
    used = rf"'{bucket}/run' is in use by process {os.getpid()}"
    with RunDirectory.open(f"{bucket}/run", {"a": 1}), pytest.raises(RunError, match=used):
        RunDirectory.open(f"{bucket}/run", {"a": 1})


def test_a_store_without_conditional_puts_is_named_and_the_seals_count(
    bucket: str, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.hidden = {"if-none-match"}
    with caplog.at_level(logging.WARNING, "exitlens"), RunDirectory.open(f"{bucket}/run", {"a": 1}) as directory:
        fill(directory)
    assert f"'{bucket}/run': this store has no conditional puts" in caplog.text
    store = ObjectStore(address_of(f"{bucket}/run"))
    store.delete(["work/stage/00002-k.seal.json"])
    store.put_bytes("work/stage/00003-k.a.parquet", b"half")
    with RunDirectory.open(f"{bucket}/run", {"a": 1}) as directory:
        units = directory.units("stage")
        assert [units.whole(n, "k") is None for n in range(5)] == [False, False, True, True, False]


# ---- what cannot be used


@pytest.mark.parametrize(
    "kind", ["bucket", "permission", "clock", "credentials", "key", "network", "scheme", "none", "extra"]
)
def test_what_cannot_be_used_is_one_line_before_a_model_is_loaded(
    kind: str, bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def load(*_args: object, **_options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(exitlens.models, "load", load)
    out, said = f"{bucket}/run", ""
    if kind == "bucket":
        out, said = "s3://no-such-bucket/run", "no such bucket 'no-such-bucket'; create it"
    elif kind == "permission":
        proxy.rule, said = lambda method, _path, _number: 403 if method == "PUT" else None, "no permission on bucket"
    elif kind == "clock":
        proxy.rule, said = (
            lambda _method, _path, _number: "RequestTimeTooSkewed",
            "clock is too far from the store",
        )
    elif kind == "credentials":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        s3fs.S3FileSystem.clear_instance_cache()
        said = "no valid credentials"
    elif kind == "key":
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        s3fs.S3FileSystem.clear_instance_cache()
        said = "no valid credentials"
    elif kind == "network":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        s3fs.S3FileSystem.clear_instance_cache()
        said = "the store cannot be reached"
    elif kind == "scheme":
        out, said = "az://account/run", "az:// is not read here; use s3://, gs://, memory:// or a local path"
    elif kind == "none":
        out, said = "s3://", "names no bucket"
    else:
        monkeypatch.setattr(object_store.importlib.util, "find_spec", lambda _name: None)
        said = "needs s3fs: pip install 'exitlens[s3]'"
    text = tmp_path / "t.txt"
    text.write_text("a text\n")
    for command in (("read", "--text", text), ("run", "--only", "layers", "--limit", "1")):
        code, printed, err = call(capsys, *command, "--out", out, "-q")
        assert (code, printed) == (2, ""), err
        assert err.count("\n") == 1
        assert said in err, err
        assert out[:20] in err.replace("s3:/b", "s3://b").replace("az:/a", "az://a")
    assert not list(Path().glob("*:*"))


@pytest.mark.parametrize(
    "command",
    [
        ("lens", "train", "--text", "TEXT", "--out", "s3://b/lens.safetensors"),
        ("exits", "train", "--text", "TEXT", "--out", "s3://b/heads.safetensors"),
        ("read", "--text", "s3://", "--out", "OUT"),
        ("read", "--text", "ftp://host/file.txt", "--out", "OUT"),
        ("run", "--only", "layers", "--data", "s3://b/data.csv", "--out", "OUT"),
    ],
)
def test_where_no_address_is_read_or_written_it_is_refused_and_no_folder_is_made(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEXT").write_text("a text\n")
    code, _, err = call(capsys, *command, "-q")
    assert code == 2
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*:*"))


def test_addresses_are_told_from_paths() -> None:
    assert str(address_of("s3://bucket/a/b/")) == str(address_of(Path("s3://bucket/a/b"))) == "s3://bucket/a/b"
    for local in ("runs/first", "/abs", "C:/Users/x", "C:\\x", "org/name@main", "a:b", "~", "s3", "s3:x"):
        assert address_of(local) is None
    assert address_of("gs://bucket") is not None
    for bad in ("S3://bucket/x", "http://x/y", "file:///tmp/x", "s3:///", "s3://b/../c", "s3://b/a\\b"):
        with pytest.raises(InputError):
            address_of(bad)
    assert named(Path("runs/x")) == str(Path("runs/x"))


# ---- the copy


def test_a_text_is_fetched_again_only_where_it_changed(bucket: str, proxy: Proxy) -> None:
    store = ObjectStore(address_of(bucket))
    store.put_bytes("t.txt", b"one")
    assert local_file(f"{bucket}/t.txt").read_bytes() == b"one"
    proxy.seen.clear()
    assert local_file(f"{bucket}/t.txt").read_bytes() == b"one"
    assert not [path for method, path in proxy.seen if method == "GET" and path.endswith("/t.txt")]
    store.put_bytes("t.txt", b"two")  # as long as before
    assert local_file(f"{bucket}/t.txt").read_bytes() == b"two"
    with pytest.raises(InputError, match=r"no object 's3://.*/gone\.txt'"):
        local_file(f"{bucket}/gone.txt")
    with pytest.raises(InputError, match="names a bucket and no object"):
        local_file(bucket)


def test_copies_stay_within_their_bound(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_GIB", 1 << 10)
    monkeypatch.setenv("EXITLENS_CACHE_GIB", "3")
    store = ObjectStore(address_of(bucket))
    for name in ("a", "b", "c"):
        store.put_bytes(f"{name}.txt", name.encode() * 1400)
        assert len(local_file(f"{bucket}/{name}.txt").read_bytes()) == 1400
        mirror._mirrors.clear()  # another process, later
        time.sleep(0.02)
    kept = sorted(path.name for path in (tmp_path / "cache" / "objects").rglob("*.txt"))
    assert kept == ["b.txt", "c.txt"]
    store.put_bytes("d.txt", b"d" * 4000)
    with pytest.raises(RunError, match="EXITLENS_CACHE_GIB raises it"):
        local_file(f"{bucket}/d.txt")
    monkeypatch.setenv("EXITLENS_CACHE_GIB", "much")
    with pytest.raises(InputError, match="EXITLENS_CACHE_GIB is 'much'"):
        local_file(f"{bucket}/a.txt")


def test_objects_with_names_that_lead_elsewhere_are_refused(bucket: str, tmp_path: Path) -> None:
    store = ObjectStore(address_of(bucket))
    store._fs.call_s3("put_object", Bucket=bucket[5:], Key="run/../../x", Body=b"x")
    with pytest.raises(RunError, match="no path of files: remove it"):
        local_folder(f"{bucket}/run")


def test_only_what_a_reader_needs_is_fetched(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDirectory.open(f"{bucket}/run", {"a": 1}) as directory:
        fill(directory)
    elsewhere(monkeypatch, tmp_path, "other")
    found = RunDirectory.read(f"{bucket}/run")
    assert sorted(files(found.path)) == [".marks.json", "manifest.json", "tables/all.parquet"]
    assert len(found.tables()["all"]) == 60


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known: Any = object_store.importlib.util.find_spec
    monkeypatch.setattr(object_store.importlib.util, "find_spec", lambda n: None if n == "gcsfs" else known(n))
    with pytest.raises(MissingExtra, match=r"needs gcsfs: pip install 'exitlens\[gcs\]'"):
        local_folder("gs://bucket/run")

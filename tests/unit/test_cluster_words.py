"""What `--engine` takes and refuses without a cluster, and what a run says of itself to another terminal."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from tests import tiny

from exitlens import cli
from exitlens.errors import InputError, MissingExtra, RunError
from exitlens.runs.cluster.address import EngineSettings, RayAddress, parse_engine
from exitlens.runs.cluster.connection import connect, differing
from exitlens.runs.engine import Progress
from exitlens.runs.status import Status, StatusFile, read_status
from exitlens.storage.atomic import write_json


def test_words() -> None:
    assert parse_engine("local") is None
    assert parse_engine("ray") == RayAddress()
    assert parse_engine("ray://head") == RayAddress("head", 6379)
    assert parse_engine("ray://10.0.0.1:7000") == RayAddress("10.0.0.1", 7000)
    assert parse_engine("ray://[::1]:7000") == RayAddress("[::1]", 7000)


@pytest.mark.parametrize("text", ["", "rai", "ray:", "ray://", "ray://a b", "ray://h:0", "ray://h:65536", "http://h:1"])
def test_other_words_are_refused_with_the_value(text: str) -> None:
    with pytest.raises(InputError, match=r"unknown: use local, ray") as caught:
        parse_engine(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["run", "--engine", "rai"], "--engine 'rai' is unknown"),
        (["probe", "--engine", "ray://h:0"], "--engine 'ray://h:0' is unknown"),
        (["read", "--text", "x", "--out", "y", "--engine", "spark"], "--engine 'spark' is unknown"),
        (["read", "--text", "x", "--out", "y", "--workers", "2"], "--workers 2 is for --engine ray"),
        (["read", "--text", "x", "--out", "y", "--deadline", "0"], "--deadline 0 is too small"),
        (["lens", "train", "--self-text", "8", "--engine", "ray"], "--engine ray is for --method jacobian"),
        (["run", "--status", "nowhere"], "'nowhere' says nothing of a run"),
    ],
)
def test_commands_refuse_in_a_line(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(options) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_no_cluster_at_the_address_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers, and nobody else can take it
        port = taken.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(RunError, match=rf"no Ray cluster answers at '127.0.0.1:{port}'.*--engine ray for this"):
            connect(RayAddress("127.0.0.1", port))
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b""])
def test_another_server_at_the_address_is_said_at_once(reply: bytes) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer() -> None:
            asked, _ = server.accept()
            with asked:
                asked.recv(100)
                asked.sendall(reply)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(RunError, match="is no Ray cluster: give the address"):
            connect(RayAddress("127.0.0.1", server.getsockname()[1]))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")  # set by what is tested, and put back afterwards
    with pytest.raises(MissingExtra, match=r"pip install 'exitlens\[ray\]'"):
        connect(RayAddress())


def test_versions_that_differ_are_named() -> None:
    mine = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.8.0"}
    assert differing(mine, {**mine, "python": "3.11.2"}) == ""
    assert differing(mine, {**mine, "python": "3.12.0"}) == "python 3.12.0, this machine has python 3.11.7"
    assert differing(mine, {**mine, "torch": "2.9.0"}) == "torch 2.9.0, this machine has torch 2.8.0"
    assert differing(mine, {"python": "3.11.7", "ray": "2.60.0"}).startswith("torch not installed")


def test_settings_of_workers_need_workers() -> None:
    EngineSettings("ray", 2, 10.0).check()
    EngineSettings().check()
    with pytest.raises(InputError, match="--deadline 3 is for --engine ray"):
        EngineSettings(deadline=3.0).check()
    with pytest.raises(InputError, match="--workers -1 is too small"):
        EngineSettings("ray", -1).check()


def test_a_run_tells_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Progress] = []
    said: list[str] = []
    with StatusFile(tmp_path, heard.append) as status:
        status.heard(said.append)("unit 3 is done elsewhere")
        assert not (tmp_path / "status.json").exists()  # the folder may not be ours before a stage begins
        status(Progress("reading", 5, 10, 2.0, 2.5, {"a": 1.5, "b": 0.5}))
        found = read_status(tmp_path)
        lines = found.lines(found.updated + 1)
        assert lines[0].startswith(f"running (process {os.getpid()} on ")
        assert lines[1:] == ["reading: 5 of 10, 2/s, 2 s left", "  a: 1.5/s", "  b: 0.5/s", "unit 3 is done elsewhere"]
        assert cli.main(["run", "--status", str(tmp_path)]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == lines[1:]
    assert said == ["unit 3 is done elsewhere"]
    assert [p.done for p in heard] == [5]
    assert read_status(tmp_path).state == "done"


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_a_run_that_ends_early_says_how(tmp_path: Path, error: type[BaseException], state: str) -> None:
    def fails() -> None:
        with StatusFile(tmp_path, None) as status:
            status(Progress("reading", 5, 10, None, None))
            raise error

    with pytest.raises(error):
        fails()
    assert read_status(tmp_path).state == state


def test_a_run_that_was_killed_is_told_from_one_that_is_quiet(tmp_path: Path) -> None:
    with StatusFile(tmp_path, None) as status:
        status(Progress("reading", 5, 10, None, None))
        live = read_status(tmp_path)
    assert "no news for 100 s" in live.lines(live.updated + 100)[0]
    gone = live.model_copy(update={"pid": 4_194_303})
    assert gone.lines(live.updated)[0].startswith("stopped: process 4194303")
    assert "running" in Status(state="running", host="another", pid=1, updated=5.0).lines(6.0)[0]


@pytest.mark.parametrize("value", [None, [], {"state": 1}, {"state": "running", "pid": "x"}, {"more": 1}])
def test_a_damaged_status_is_refused(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "status.json", value)
    with pytest.raises(RunError, match="says nothing of a run"):
        read_status(tmp_path)


def test_a_lens_that_is_fitted_tells_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text, lens = tiny.save(tmp_path / "m"), tmp_path / "t.txt", tmp_path / "lens.safetensors"
    text.write_text("\n".join(f"The capital of France is Paris, and {i} + 2 = {i + 2}." for i in range(40)))
    train = ["lens", "train", "--method", "jacobian", "--text", str(text), "--model", str(model), "--out", str(lens)]
    train += ["--length", "16", "--skip", "2", "--tokens", "600", "-q"]
    status = ["run", "--status", str(lens)]
    assert cli.main([*train, "--minutes", "0.00001"]) == 0  # one text, and its time is over
    capsys.readouterr()
    assert cli.main(status) == 0
    said = capsys.readouterr().out
    assert "texts pulled back: " in said
    assert "the same command goes on with the other" in said
    assert (tmp_path / "lens.safetensors.units" / "status.json").is_file()
    assert cli.main(train) == 0
    assert not (tmp_path / "lens.safetensors.units").exists()
    capsys.readouterr()
    assert cli.main(status) == 0
    assert capsys.readouterr().out.startswith("done (")

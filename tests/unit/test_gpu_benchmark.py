"""The command for a GPU, in tiny sizes on the CPU: every part gives rows, and one that fails costs no other."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("machine", "model", "kernel", "read", "memory", "decoding", "exits", "jacobian", "extraction")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)  # it puts its own folders first
    yield module
    sys.path[:] = before


def test_every_part_runs_in_tiny_sizes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "benchmarks/gpu.py",
        "--small",
        "--device",
        "cpu",
        "--limit",
        "3600",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=400)
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert tuple(found["parts"]) == PARTS
    # Triton comes with GPU builds of torch; its interpreter does not take every version of NumPy.
    failed = {name: part["error"] for name, part in found["parts"].items() if "error" in part}
    assert set(failed) <= {"kernel"}, failed
    assert done.returncode == bool(failed), done.stderr[-2000:]
    assert all(part["rows"] for name, part in found["parts"].items() if name not in failed)
    assert found["torch"] in text
    assert "only show that the script runs" in text
    assert {row["blocks"] for row in found["parts"]["decoding"]["rows"]} == {"our own"}
    halves = [row["blocks run"] for row in found["parts"]["exits"]["rows"] if row["what"].startswith("fixed")]
    assert halves == [0.5, 0.5]
    jacobian = found["parts"]["jacobian"]["rows"][0]
    assert jacobian["way"] == "native"
    assert jacobian["texts a minute"] > 0
    assert found["parts"]["extraction"]["rows"][0]["MB"] == pytest.approx(64 * 5 * 32 * 4 / 1e6)


class _Bench(SimpleNamespace):
    def begin(self, seconds: float) -> None:
        self.rows: list[Any] = []
        self.seconds = seconds

    def forget(self) -> None:
        self.forgotten = True


def test_a_part_that_fails_or_hangs_leaves_a_line_and_what_it_had(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = _Bench()

    def fails(bench: Any) -> None:
        bench.rows.append({"what": "before", "ms": 1.0})
        raise ValueError("no such\nkernel")

    found = script.run("fails", fails, bench, 5.0, tmp_path)
    assert found["error"] == "ValueError: no such kernel"
    assert found["rows"] == [{"what": "before", "ms": 1.0}]
    assert "raise ValueError" in (tmp_path / "tracebacks.txt").read_text(encoding="utf-8")
    monkeypatch.setattr(script, "GRACE", 0.05)
    found = script.run("hangs", lambda _bench: time.sleep(30), bench, 0.05, tmp_path)
    assert found["error"].startswith("TimeUp: it ran longer")
    assert found["seconds"] < 20
    assert "no time was left" in script.run("late", fails, bench, 0.0, tmp_path)["error"]


def test_the_table_shows_what_is_missing_and_escapes(script: ModuleType) -> None:
    rows = [{"what": "a|b", "ms": 1.23456}, {"what": "c", "TB/s": 3.0}]
    keys = ("card", "date", "driver", "torch", "triton", "transformers", "python", "exitlens")
    about: dict[str, Any] = {**dict.fromkeys(keys, "1"), "small": False}
    text = script.markdown({**about, "parts": {"read": {"what": "of layers", "rows": rows, "seconds": 1.0}}})
    assert "| a\\|b | 1.235 | — |" in text
    assert "| c | — | 3 |" in text
    assert "only show" not in text


def test_unknown_parts_and_a_missing_device_are_told_at_once(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which it sets for the CPU
    for given, said in ((["--parts", "speed"], "unknown part 'speed'"), (["--device", "tpu"], "invalid choice")):
        with pytest.raises(SystemExit) as stopped:
            script.main([*given, "--small"] if "--device" in given else [*given, "--device", "cpu"])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err

"""`exitlens run` as a user runs it: killed and resumed, repeated, refused in one line, fed odd text."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests import tiny

QUESTIONS = [
    ("How many whiskers does a human have?", "none", ["two", "four"]),
    ("What is the capital of France? <script>alert(1)</script>", "Paris", ["Rome", "Lima"]),
    ("Emoji 🦔 and שלום \u202e and NUL \x00?", "yes 🦔", ["no", "perhaps"]),
    ("What is 2 + 2?", "4", ["5", "22"]),
    ("Is a false statement true?", "No, it is not.", ["Yes, it is.", "Yes and no."]),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, questions and statements."""
    folder = tmp_path_factory.mktemp("work")
    model = tiny.model("llama", spread=0.15)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as out:
        for question, best, wrong in QUESTIONS:
            row = {"question": question, "best": best, "correct": [best], "incorrect": wrong}
            out.write(json.dumps(row) + "\n")
    with (folder / "statements.jsonl").open("w", encoding="utf-8") as out:
        for i in range(36):
            row = {
                "statement": f"The thing{i // 2} 🦔 has {i % 2 + 3} legs.",
                "label": i % 2,
                "topic": f"t{i // 12}",
                "entity": f"thing{i // 2}",
                "pair": f"p{i // 2}",
            }
            out.write(json.dumps(row) + "\n")
    return folder


def arguments(work: Path, out: Path, *more: str) -> list[str]:
    return [
        "run", "--model", str(work / "model"), "--data", str(work / "questions.jsonl"),
        "--statements", str(work / "statements.jsonl"), "--out", str(out), "--max-new-tokens", "6",
        "--batch-size", "1", "--bertscore-model", "none", "--judges", "margin:rouge,choice", "--no-figures",
        "--device", "cpu", "--dtype", "float32", *more,
    ]  # fmt: skip


def command(work: Path, out: Path, *more: str) -> list[str]:
    code = "import sys; from exitlens.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *arguments(work, out, *more)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["src", *sys.path])}


def run(work: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(work, out, *more), capture_output=True, text=True, check=False, env=environment(), timeout=250
    )


def digests(out: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted((out / "tables").iterdir())}


@pytest.fixture(scope="module")
def whole(work: Path) -> Path:
    """A run that nobody disturbed."""
    done = run(work, work / "whole")
    assert done.returncode == 0, done.stderr
    assert str(work / "whole" / "report.html") in done.stdout
    return work / "whole"


def test_every_study_leaves_its_tables_and_a_report(whole: Path) -> None:
    tables = digests(whole)
    for name in ("layers", "layers_top", "layers_picks", "entropy_tokens", "entropy_layers", "answers", "judgements",
                 "probes", "probe_curves", "scores", "decoding"):  # fmt: skip
        assert f"{name}.parquet" in tables
    manifest = json.loads((whole / "manifest.json").read_text(encoding="utf-8"))
    assert {stage["state"] for stage in manifest["stages"].values()} == {"done"}
    assert manifest["finished"]
    assert manifest["model"]["n_layers"] == 3
    report = (whole / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in report
    assert "&lt;script&gt;alert(1)" in report


def test_odd_text_comes_through_unchanged(whole: Path) -> None:
    answers = pd.read_parquet(whole / "tables/answers.parquet")
    asked = set(answers["question"])
    assert {question for question, _, _ in QUESTIONS} == asked
    assert answers.groupby("decoder").size().to_dict() == {"vanilla": 5, "dola:high": 5, "dola:low": 5}
    tokens = pd.read_parquet(whole / "tables/entropy_tokens.parquet")
    counted = tokens[tokens["layer"] == 0].groupby("question_id").size()
    vanilla = answers[answers["decoder"] == "vanilla"].set_index("question_id")["n_tokens"]
    assert counted.to_dict() == vanilla[vanilla > 0].to_dict()


def test_a_misspelt_model_blocks_nothing(work: Path, tmp_path: Path) -> None:
    for name in ("no-such-model", "another-such-model"):
        done = run(work, tmp_path / "out", "--model", name)
        assert done.returncode == 2
        assert f"no model named '{name}'" in done.stderr
        assert "belongs to another run" not in done.stderr


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(work: Path, whole: Path) -> None:
    out = work / "killed"
    for pattern in (
        "work/generate-vanilla/*.seal.json",
        "work/generate-dola-high/*.seal.json",
        "tables/scores.parquet",
    ):
        process = subprocess.Popen(
            command(work, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and not list(out.glob(pattern)) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert list(out.glob(pattern)), f"killed before there was {pattern}"
        assert not (out / "report.html").exists()
    kept = {
        p: p.stat().st_mtime_ns for p in [*out.glob("work/*/*.seal.json"), *out.glob("states/*/shards/*.seal.json")]
    }
    again = run(work, out)
    assert again.returncode == 0, again.stderr
    assert digests(out) == digests(whole)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "a finished batch was computed again"


def test_damaged_units_are_redone_and_a_second_run_gives_the_same_bytes(work: Path, whole: Path) -> None:
    before = digests(whole)
    unit = next(iter(sorted((whole / "work" / "generate-vanilla").glob("*.answers.parquet"))))
    unit.write_bytes(unit.read_bytes()[:100])
    shard = next(iter(sorted((whole / "states" / "zero-shot" / "shards").glob("*.safetensors"))))
    shard.write_bytes(b"")
    (whole / "tables" / "decoding.parquet").unlink()
    for name in ("answers", "layers"):
        (whole / "tables" / f"{name}.parquet").write_bytes(b"PAR1 half")
    assert run(work, whole).returncode == 0
    assert digests(whole) == before
    apart = run(work, work / "apart", "--only", "entropy")
    assert apart.returncode == 0, apart.stderr
    assert run(work, work / "apart", "--only", "layers,probes,decoding,exits").returncode == 0
    assert digests(work / "apart") == before


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--seed", "9"], "belongs to another run: its seed is 0, this one's is 9"),
        (["--only", "entrpy"], "'entrpy': did you mean 'entropy'"),
        (["--decoders", "dolla"], "unknown decoder 'dolla'"),
        (["--judges", "me"], "no judge 'me'"),
        (["--probed-layers", "77"], "layer 77 is out of range"),
        (["--layers", "0,99", "--fresh"], "layer 99 is out of range"),
        (["--data", "gone.csv"], "gone.csv"),
        (["--limit", "0"], "'--limit': give 1 or more"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_loses_nothing(
    work: Path, whole: Path, more: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from exitlens.cli import main

    out = whole if more[0] == "--seed" else work / f"refused-{more[0].strip('-')}"
    before = digests(whole)
    code = main(arguments(work, out, *more, "-q"))
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert digests(whole) == before


def test_a_folder_that_cannot_hold_a_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from exitlens.cli import main

    for out, expected in ((work / "questions.jsonl" / "run", "cannot write"), (work, "not a run directory")):
        assert main(arguments(work, out, "-q")) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert "--out" in error


def test_json_holds_the_findings_and_the_tables(work: Path, whole: Path) -> None:
    done = run(work, whole, "--json", "-q")
    assert done.returncode == 0
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["report"] == str(whole / "report.html")
    table = pd.read_parquet(whole / "tables/decoding.parquet")
    assert [row["mean"] for row in found["tables"]["decoding"]] == table["mean"].tolist()

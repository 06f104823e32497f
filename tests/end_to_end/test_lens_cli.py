"""`exitlens read`, `exitlens lens` and `exitlens look` with a tuned lens, as a user types them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tests import tiny
from tests.commands import call, done

from exitlens.cli import main

# typer hands its own context class over, and bad options are wrong types on purpose.
pytestmark = pytest.mark.wrong_types


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lens")
    model = tiny.model("llama", spread=0.15)
    model.config.max_position_embeddings = 1024  # room for the worked examples
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.save(folder / "other", "llama", spread=0.15, seed=1)
    rows = [{"text": f"The capital of France is Paris, and {i} + 2 = {i + 2}. None of it is true."} for i in range(40)]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "long.txt").write_text("What is true? " * 600)
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXITLENS_CACHE", str(work / "cache"))


def test_read_prints_means_and_where_the_files_are(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("read", "--text", work / "t.jsonl", "-m", work / "model", "--stats", "entropy,kl,top-k,saturation")
    found = done(capsys, *common, "-o", work / "out", "--shard-tokens", "200")
    frame = pd.read_parquet(work / "out" / "shards")
    assert found["tokens"] * 4 == len(frame)
    assert found["shards"] > 2
    assert [row["layer"] for row in found["by_layer"]] == [0, 1, 2, 3]
    assert found["by_layer"][3]["kl"] == 0
    assert found["by_layer"][1]["entropy"] == pytest.approx(frame[frame["layer"] == 1]["entropy"].mean(), rel=1e-5)
    code, out, err = call(capsys, *common, "-o", work / "out", "--shard-tokens", "200")
    assert code == 0
    assert "all read before; mean saturation layer" in out
    assert out.splitlines()[-1] == f"{found['shards']} files: {work / 'out' / 'shards' / '*.parquet'}"
    assert "loading" in err
    code, out, err = call(capsys, *common, "-o", work / "out", "-q")
    assert code == 2
    assert err.count("\n") == 1
    assert "its shard_tokens is 200, this one's is 2048; choose another folder with --out" in err


def test_read_killed_for_real_ends_with_the_same_bytes(work: Path) -> None:
    def start(out: str) -> subprocess.Popen[bytes]:
        run = "import sys; from exitlens.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", run, "read", "--text", "t.jsonl", "-m", "model", "--stats", "entropy"]
        command += ["-o", out, "--shard-tokens", "40", "-q"]
        return subprocess.Popen(command, cwd=work, env={**os.environ, "HF_HUB_OFFLINE": "1"})

    with start("whole") as whole:
        assert whole.wait(250) == 0
    with start("killed") as process:
        until = time.monotonic() + 250
        while len(list((work / "killed" / "seals").glob("*.json"))) < 2 and time.monotonic() < until:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    first = work / "killed" / "shards" / "00000.parquet"
    before = first.stat().st_mtime_ns
    with start("killed") as process:
        assert process.wait(250) == 0
    assert first.stat().st_mtime_ns == before

    def content(name: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted((work / name).glob("[st]*/*")) if p.suffix != ".tmp"}

    assert content("killed") == content("whole")
    assert len(content("whole")) > 10


def test_a_lens_is_trained_shown_and_used(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m = ("-m", work / "model")
    code, _, err = call(capsys, "look", "The capital", *m, "--lens", "tuned", "-q")
    assert code == 2
    assert "no tuned lens for" in err
    assert "exitlens lens train --model" in err
    train = ("lens", "train", *m, "--text", work / "t.jsonl", "--steps", "20")
    made = done(capsys, *train)
    assert Path(made["path"]).parent == work / "cache" / "lenses"
    assert [row["layer"] for row in made["layers"]] == [0, 1, 2, 3]
    assert all(row["after"] < row["before"] for row in made["layers"][:3])
    assert made["layers"][3]["after"] == made["layers"][3]["before"] == 0
    assert made["provenance"]["source"].startswith("t.jsonl sha256:")
    assert done(capsys, "lens", "train", *m, "--self-text", "12", "--steps", "4", "--name", "mine")["name"] == "mine"
    own = work / "lens.safetensors"
    assert done(capsys, *train, "--out", own)["path"] == str(own)
    assert {row["name"] for row in json.loads(_printed(capsys, "lens", "list", "--json"))["lenses"]} > {"mine"}
    _, out, _ = call(capsys, "lens", "show", "mine")
    assert "12 texts by the model itself" in out
    assert re.search(r"nats per token to the last layer, on \d+ held-out tokens", out)
    shown = json.loads(_printed(capsys, "lens", "show", str(own), "--json"))
    assert [row["chosen"] for row in shown["layers"]][-1] == "model"

    plain, *tuned = (
        done(capsys, "look", "The capital of", *m, "--lens", lens)[0]["map"]
        for lens in ("logit", "tuned", str(own), f"tuned:{own}", "mine")
    )
    assert tuned[0] == [{**row, "lens": tuned[0][0]["lens"]} for row in tuned[1]]
    assert tuned[1] == tuned[2]
    for rows in tuned:
        assert [row for row in rows if row["layer"] == 3] == [
            {**row, "lens": rows[0]["lens"]} for row in plain if row["layer"] == 3
        ]
        assert [r["probability"] for r in rows if r["layer"] == 0] != [
            r["probability"] for r in plain if r["layer"] == 0
        ]
    (found,) = done(capsys, "look", "What is true?", *m, "--choices", "two,four", "--lens", "mine", "--layers", "0,3")
    assert [row["lens"] for row in found["layers"]] == ["mine"] * 4
    assert found["map"] is None
    read = done(capsys, "read", "--text", work / "t.jsonl", *m, "--lens", "mine", "--stats", "kl", "-o", work / "tuned")
    assert read["lens"] == "mine"
    code, _, err = call(capsys, "read", "--text", work / "t.jsonl", *m, "--stats", "kl", "-o", work / "tuned", "-q")
    assert code == 2
    assert "its lens is 'mine " in err
    code, _, err = call(capsys, "look", "A", "-m", work / "other", "--lens", "mine", "-q")
    assert code == 2
    assert "lens 'mine' was trained for model" in err


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code, out, err = call(capsys, *arguments)
    assert code == 0, err
    return out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_map_fits_the_terminal(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "The capital \x1b[2J of France is"
    call_it = ("look", text, "-m", str(work / "model"), "-q")
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = call(capsys, *call_it)
    assert "\x1b" not in out
    assert "␛" in out
    lines = out.splitlines()
    assert max(map(len, lines[:-2])) <= 60
    assert sum(line.startswith("layer ") for line in lines) > 1
    assert [line.split()[0] for line in lines[1:5]] == ["3", "2", "1", "0"]
    for environment, option, coloured in (({}, (), True), ({"NO_COLOR": "1"}, (), False), ({}, ("--no-color",), False)):
        out_file = Terminal()
        with monkeypatch.context() as patch:
            patch.delenv("NO_COLOR", raising=False)
            patch.setenv("TERM", "xterm-256color")
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdout", out_file)
            assert main([*call_it, *option]) == 0
        assert ("\x1b[38;5;" in out_file.getvalue()) == coloured
        assert "\x1b[2J" not in out_file.getvalue()


def test_map_and_choices_together(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m = ("-m", work / "model", "--layers", "0,3")
    (found,) = done(capsys, "look", "What is true?", *m, "--choices", "two,four", "--map", "--out", work / "kept")
    shown = "".join(row["context"] for row in found["map"] if row["layer"] == 3)
    # Only the question, not the worked examples before it.
    assert "What is true?" in shown
    assert shown.count("Q:") <= 1
    assert (work / "kept" / "look-001-map.parquet").is_file()
    (plain,) = done(capsys, "look", "What is true?", *m, "--no-map")
    assert plain["map"] is None
    assert plain["prompt"] == "What is true?"
    _, out, _ = call(capsys, "look", "What is true?", *m, "--no-map", "-q")
    assert "top next tokens" in out


def test_models_check_says_how_fast(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = done(capsys, "models", "check", work / "model")
    assert found["reading_tokens_per_second"] > 0
    assert found["unembedding_in_blocks"] > 0
    assert sum(found["reading_time_shares"].values()) == pytest.approx(1.0)
    _, out, _ = call(capsys, "models", "check", work / "model", "-q")
    assert re.search(r"reading time shares +forward pass \d+%, unembedding product \d+%, statistics \d+%", out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("read", "--text", "empty.txt"), "'empty.txt' holds no text"),
        (("read", "--text", "none.txt"), "no such data file or folder: 'none.txt'; check the path"),
        (("read", "--text", "long.txt"), "over the context of 1024: shorten it, or ask for long='split'"),
        (
            ("read", "--text", "long.txt", "--overlap", "1024"),
            "overlap 1024 does not fit a context of 1024: use 0 to 1023",
        ),
        (("read", "--text", "t.jsonl", "--field", "body"), "no field 'body'"),
        (("read", "--text", "t.jsonl", "--stats", "mood"), "unknown statistic 'mood': use entropy"),
        (("read", "--text", "t.jsonl", "--stats", ","), "no statistic was asked for"),
        (("read", "--text", "t.jsonl", "--stats", "top_k", "--top-k", "999"), "top_k 999 is out of range"),
        (("read", "--text", "t.jsonl", "--layers", "0,9"), "has layers 0 (embeddings) to 3"),
        (("read", "--text", "t.jsonl", "--lens", "focal"), "no lens 'focal': use logit, raw, tuned, jacobian, a file"),
        (("read", "--text", "t.jsonl", "--long", "fold"), "'--long': 'fold' is not one of 'refuse', 'split'"),
        (("read", "--text", "t.jsonl", "--split", "words"), "'--split': 'words' is not one of 'lines', 'paragraphs'"),
        (("read", "--text", "t.jsonl", "--precision", "rough"), "'--precision': 'rough' is not one of 'fast', 'exact'"),
        (("read", "--text", "t.jsonl", "-o", "t.jsonl/out"), "cannot write 't.jsonl/out/manifest.json'"),
        (("lens", "train", "--text", "empty.txt"), "'empty.txt' holds no text"),
        (("lens", "train", "--text", "one.txt"), "'one.txt' gives 0 pieces of 2 tokens or more"),
        (("lens", "train"), "give one of --text FILE and --self-text N"),
        (("lens", "train", "--text", "t.jsonl", "--minutes", "0"), "--minutes 0 leaves no time"),
        (("lens", "train", "--text", "t.jsonl", "--name", "raw"), "'raw' cannot be the name of a lens"),
        (("lens", "train", "--text", "t.jsonl", "--out", "t.jsonl/x"), "cannot write 't.jsonl/x'"),
        (("lens", "show", "none"), "no lens 'none'"),
        (("lens", "show", "t.jsonl"), "'t.jsonl' is not a readable safetensors file"),
        (("look", "A", "--lens", "focal"), "no lens 'focal'"),
        (("look", "A", "--lens", "tuned:none.safetensors"), "no lens 'tuned:none.safetensors'"),
    ],
)
def test_bad_input_is_one_line(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(work)
    (work / "one.txt").write_text("a\nb\n")
    more: list[str | Path] = [] if arguments[1] == "show" else ["-m", work / "model", "-q"]
    if arguments[0] == "read" and "-o" not in arguments:
        more += ["-o", work / "bad"]
    code, out, err = call(capsys, *arguments, *more)
    assert code == 2
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line

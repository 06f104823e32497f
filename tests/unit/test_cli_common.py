"""The command line's shared parts: exit codes, one-line errors, tables and JSON, text that cannot drive a terminal."""

from __future__ import annotations

import io
import json
import math
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.cells import cell_len

import exitlens
from exitlens import cli, progress
from exitlens.cli import console
from exitlens.errors import DataError

HOSTILE = "a\x1b[2J\x00b\n[red]c[/red]\u202etxt\ud800"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_are_written_out() -> None:
    assert console.safe(HOSTILE) == "a\\x1b[2J\\x00b\\n[red]c[/red]\\u202etxt\\ud800"
    kept = "naïve שלום 日本 🧑‍🚀 ½"
    assert console.safe(kept) == kept


def test_what_we_warn_of_is_one_line_and_other_libraries_keep_theirs() -> None:
    usual = warnings.formatwarning
    ours = str(Path(exitlens.__file__).parent / "probes" / "protocols.py")
    with cli._plain_warnings():
        assert warnings.formatwarning("folds\x1b leak", UserWarning, ours, 7) == "warning: folds\\x1b leak\n"
        assert "torch.py:7" in warnings.formatwarning("slow", UserWarning, "/else/torch.py", 7)
        assert "protocols.py:7" in warnings.formatwarning("old", DeprecationWarning, ours, 7)
    assert warnings.formatwarning is usual


def test_table_in_a_pipe_is_whole_and_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    console.print_table(
        ["name", console.Column("p", ".3f"), "n"],
        [[long, 0.12345, 7], [HOSTILE, None, None], ["日本", np.float32(1.5), np.int64(12)]],
        title="title",
        note="[bold]note",
    )
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "title"
    assert lines[5:] == ["[bold]note", ""]
    assert lines[2] == long + "  0.123   7"
    assert "[red]c[/red]" in lines[3]
    assert lines[3].endswith("–   –")
    assert lines[4] == "日本" + " " * 296 + "  1.500  12"


def test_table_in_a_terminal_fits_and_reads_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    console.print_table(["layer", console.Column("text", shrink=True)], [[1, HOSTILE], [2, "y" * 200]])
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())  # colours are ours
    assert "[red]c[/red]" in text
    assert "\x1b" not in text
    assert text.startswith("layer ")
    assert "…" in text
    assert max(map(len, text.splitlines())) <= 60


NAMES = ("probability", "classifier, all heads", "日本語の方針")
EXITS = ["policy", "threshold", "agreement", "agreement low", "agreement high", "layers saved", "flops saved", "time"]


def printed(monkeypatch: pytest.MonkeyPatch, width: int, columns: list[str], rows: list[list[object]]) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    console.print_table([console.Column(name, ".3f") for name in columns], rows)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_a_table_in_a_terminal_keeps_its_label_column_and_says_what_had_no_room(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    rows = [[name, 0.9, 0.887, 0.843, 0.922, 0.154, -2.046, 2.12] for name in NAMES]
    lines = printed(monkeypatch, width, EXITS, rows)
    text = "\n".join(lines)
    assert all(name in text for name in NAMES)
    assert max(map(cell_len, lines)) <= width
    whole = " ".join(text.split())
    if width >= 60:  # an interval is one column
        assert "0.887 [0.843, 0.922]" in text
        assert "low" not in text
    assert ("no room for" in whole) == (width < 100)
    if width == 80:
        assert "no room for time" in whole


LEGEND = "† interval too narrow: fewer than 15 units"
FEW = [["a", 1.0, 0.5, 2.0, 1.0], ["b", 1.0, 0.5, 2.0, 1.0], ["c", 1.0, None, None, 1.0], ["d†", 1.0, 0.5, 2.0, 1.0]]


def test_a_too_narrow_interval_is_marked_in_its_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = ["name", *(console.Column(name, ".3f") for name in ("x", "x low", "x high", "high"))]
    console.print_table(heads, FEW, n=[14, 15, 2, None])
    piped = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in piped[1:5]] == ["2.000†", "2.000", "–", "2.000"]
    assert len({line.index("2.000") for line in piped if "2.000" in line}) == 1  # the digits stay below each other
    assert piped[5:] == [LEGEND]
    assert len({cell_len(line) for line in piped[:5]}) == 1
    for n in ([15, 15, 2, None], ()):
        console.print_table(heads, FEW, n=n)
        assert "too narrow" not in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    console.print_table(heads, FEW, note="a note", n=[14, 15, 2, None])
    drawn = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).split())
    assert drawn.count("1.000 [0.500, 2.000]") == 3
    assert drawn.count("[0.500, 2.000]†") == 1
    assert drawn.index("a note") < drawn.index(LEGEND)


def test_a_missing_interval_is_left_out_and_other_columns_that_end_in_low_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = printed(
        monkeypatch,
        100,
        ["name", "x", "low", "high", "y low"],
        [["a", 1.0, None, None, 2.0], ["b", 1.0, 0.5, 2.0, 3.0]],
    )
    text = "\n".join(lines)
    assert "x [95%]" in text
    assert "1.000 [0.500, 2.000]" in text
    assert "y low" in text
    assert "[–" not in text


def test_json_keeps_full_precision(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Result:
        mean: float
        where: Path

    value = 0.1 + 0.2
    console.print_json(
        {
            "r": Result(value, Path("a/b")),
            "bad": [math.nan, math.inf],
            "np": np.array([[1.5]]),
            "torch": torch.tensor(2),
            1: np.bool_(True),
            "text": HOSTILE,
        }
    )
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {
        "r": {"mean": value, "where": "a/b"},
        "bad": [None, None],
        "np": [[1.5]],
        "torch": 2,
        "1": True,
        "text": HOSTILE,
    }


def test_progress_shows_rate_in_a_terminal_and_nothing_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    with progress.progress("working", total=4, quiet=True) as tick:
        tick(4)
    assert err.getvalue() == ""
    with progress.progress("[b]working", total=4) as tick:
        tick()
        tick(3)
    assert "[b]working" in err.getvalue()
    assert "4/4" in err.getvalue()


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with progress.progress("working", total=4) as tick:
        tick(1)
        assert err.getvalue() == ""
        monkeypatch.setattr(progress._Lines, "every", 0.0)
        tick(1)
    assert err.getvalue().startswith("working: 2 of 4, ")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exitlens", "look", "x", "--lens", "bad"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no lens 'bad'")


def test_a_run_says_what_its_statements_do_not_allow_before_it_loads_a_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "exitlens.models.checkpoint.loading.load", lambda *_args, **_more: pytest.fail("a model was loaded")
    )
    options = ["--kinds", "mass-mean", "--limit-statements", "8", "--out", str(tmp_path / "run")]
    assert cli.main(["run", "--only", "entropy,probes", *options]) == 2
    assert "leave-one-topic-out needs 20 with 4 of each label" in capsys.readouterr().err


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"exitlens {exitlens.__version__}\n"
    for argv in (["--nope"], ["nope"], ["models", "list", "--nope"], ["models", "pull"]):
        assert cli.main(argv) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (DataError("no rows in 'a\x1b[2J.csv'"), 2, "error: no rows in 'a\\x1b[2J.csv'\n"),
        (PermissionError(13, "Permission denied", "/root/x"), 2, "error: cannot use '/root/x': Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    says: str,
) -> None:
    def build() -> typer.Typer:
        app = typer.Typer(pretty_exceptions_enable=False)

        @app.command()
        def fails() -> None:
            raise raised

        return app

    monkeypatch.setattr(cli, "build", build)
    monkeypatch.delenv("EXITLENS_DEBUG", raising=False)
    if isinstance(raised, BrokenPipeError):
        monkeypatch.setattr(cli, "_stop_writing", lambda: None)  # it would silence the test run itself
    assert cli.main([]) == code
    err = capfd.readouterr().err
    assert err.lstrip().startswith(says)
    assert "Traceback" not in err


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> typer.Typer:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "build", build)
    with pytest.raises(ZeroDivisionError):
        cli.main([])


def test_reader_that_goes_away() -> None:
    shown = """
import sys, typer
from exitlens import cli, progress
from exitlens.cli import console
app = typer.Typer(pretty_exceptions_enable=False)
@app.command()
def lines() -> None:
    for _ in range(9999):
        console.echo("x" * 99)
cli.build = lambda: app
sys.exit(cli.main([]))
"""
    with subprocess.Popen([sys.executable, "-c", shown], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (1, b"")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from exitlens.cli import main; main(['--help']);"
        "print(sorted({'torch', 'transformers', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "models" in done.stdout


def test_models_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path))
    assert cli.main(["models", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["cache"] == str(tmp_path)
    assert {row["name"]: row["here"] for row in listed["models"]} == {"smollm2-135m": "no", "all-minilm-l6-v2": "no"}
    assert cli.main(["models", "list"]) == 0
    assert "Apache-2.0" in capsys.readouterr().out
    assert cli.main(["models", "check", "all-minilm-l6-v2"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: 'all-minilm-l6-v2' is not on this machine")


SCRIPT = "import sys; from exitlens.cli import main; sys.exit(main())"


@pytest.mark.parametrize("target", [">&-", "> /dev/full", ">&- 2>&-"])
def test_an_output_that_cannot_be_written(target: str) -> None:
    command = f"{sys.executable} -c '{SCRIPT}' models list {target}"
    done = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == ("2>" not in target)
    assert "2>" in target or "standard output" in done.stderr


def test_a_second_interrupt_changes_nothing() -> None:
    shown = """
import signal, sys, time
from exitlens import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
def build():
    def command(**_):
        try:
            print("begun", file=sys.stderr, flush=True)
            time.sleep(30)
        finally:
            time.sleep(0.3)
    return command
cli.build = build
code = cli.main()
time.sleep(0.5)
sys.exit(code)
"""
    with subprocess.Popen([sys.executable, "-c", shown], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.strip().count("\n") == 0, said


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--out", ""], ["run", "--out="], ["read", "--text", "x", "--out", ""], ["look", "hi", "-o", ""],
        ["generate", "--model", "", "hi"], ["exits", "train", "--out", ""],
        ["probe", "--out", ""], ["exits", "--out="], ["probe", "--save", ""], ["layers", "-o", ""],
    ],
)  # fmt: skip
def test_an_option_that_is_given_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert "is given ''" in said
    assert said.count("\n") == 1

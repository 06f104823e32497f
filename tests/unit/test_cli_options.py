"""Options mean the same everywhere, help fits a screen, and what needs no model is refused before one is loaded."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

import exitlens.models
from exitlens import cli
from exitlens.cli.help import ELSEWHERE
from exitlens.compute.hardware import DTYPES, pick_dtype
from exitlens.compute.names import DTYPE_ALIASES
from exitlens.errors import ExitlensError, LayerError
from exitlens.models.checkpoint.shape import check_depth, known_depth
from exitlens.studies.config import RunConfig, load_config
from exitlens.studies.run import run


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its path, but lm-eval's, whose options are the harness's own."""
    waiting = [("", get_command(cli.build()))]
    while waiting:
        path, command = waiting.pop()
        waiting += [(f"{path} {name}".strip(), each) for name, each in getattr(command, "commands", {}).items()]
        if path not in ("", "lm-eval"):
            yield path, command


COMMANDS = dict(commands())
RUNNABLE = [
    path for path, command in COMMANDS.items() if not hasattr(command, "commands") or path in ("probe", "exits")
]


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: str, columns: int = 100) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main([*path.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("path", COMMANDS)
def test_help_fits_a_screen(path: str) -> None:
    # In a process of its own: under the run-time type checks of this one the metavariables are others, and shorter.
    code = "import sys; from exitlens.cli import main; sys.exit(main())"
    for columns in (80, 100):
        command = [sys.executable, "-c", code, *path.split(), "--help"]
        environment = os.environ | {"COLUMNS": str(columns)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
        lines = done.stdout.splitlines()
        assert max(map(len, lines)) <= columns
        assert not [line for line in lines if line.endswith("-")], "an option's name is cut in two"
        assert len(lines) <= (44 if columns == 100 else 54)


@pytest.mark.parametrize("path", RUNNABLE)
def test_help_says_what_json_prints_and_common_options_come_first(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(capsys, monkeypatch, path)
    if path != "serve":
        assert "--json prints" in " ".join(text.split())
        assert "\n  --json " in text
    options = text.index("\nOptions:")
    headings = [
        i for i, line in enumerate(text.splitlines()) if line and not line.startswith(" ") and line.endswith(":")
    ]
    assert headings
    assert "\n  -h, --help" in text[options:]


def test_a_heading_that_points_elsewhere_points_to_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(capsys, monkeypatch, "run").splitlines()
    there = [line.partition(ELSEWHERE)[2].rstrip("):") for line in lines if ELSEWHERE in line]
    assert len(there) >= 4
    for each in there:
        for command in each.split(", "):
            assert command.removeprefix("exitlens ") in COMMANDS
    assert "Where the model runs" in shown(capsys, monkeypatch, "models check")  # what a heading names is told there


def test_run_has_every_setting_and_takes_it_as_the_file_does() -> None:
    names = {param.name for param in COMMANDS["run"].params}
    assert set(RunConfig.model_fields) <= names
    for name, field in RunConfig.model_fields.items():
        (param,) = [each for each in COMMANDS["run"].params if each.name == name]
        assert param.default is None
        assert param.help
        assert param.help.lower().startswith(str(field.description).lower()[:20])


def test_a_shared_option_has_one_help_and_one_short_name() -> None:
    shared = ("--model", "--device", "--dtype", "--revision", "--trust-remote-code", "--seed", "--json", "--quiet")
    helps: dict[str, set[str]] = {}
    for path, command in COMMANDS.items():
        for param in command.params:
            for name in set(param.opts) & set(shared):
                if (path, name) != ("probe predict", "--model"):  # there it is the probe's own
                    helps.setdefault(name, set()).add(f"{sorted(param.opts)} {param.help}")
    assert set(helps) == set(shared)
    assert {name: len(found) for name, found in helps.items()} == dict.fromkeys(shared, 1)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_args: object, **_options: object) -> None:
        raise AssertionError("a model was loaded before the command was checked")

    monkeypatch.setattr(exitlens.models, "load", load)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("look", "A", "--layers", "3,x"), "'x' in layers '3,x'"),
        (("look", "A", "--layers", "15/20/24"), "'15/20/24' is not a layer"),
        (("look", "A", "--lens", "focal"), "no lens 'focal'"),
        (("look", "A", "--choices", "a,b, a"), "choice 'a' is given twice"),
        (("look", "A", "--choices", "a"), "1 choice given ('a')"),
        (("look", "A", "--choices", "a,,b"), "choice number 2 is empty"),
        (("look", "A", "--rule", "best"), "'best' is not one of"),
        (("look", "A", "--dtype", "int8"), "unknown dtype 'int8': use auto, float32"),
        (("look", "A", "--device", "tpu"), "unknown device 'tpu'"),
        (("look", "A", "--top", "none"), "invalid value for '--top': give a whole number (given: 'none')"),
        (("look", "A", "--top", "0"), "invalid value for '--top': give 1 or more (given: '0')"),
        (("look", "A", "B"), "'B' is one argument too many: put a text in quotes"),
        (("look", "A", "--out", "/dev/null"), "cannot write '/dev/null/look.parquet'"),
        (("generate", ""), "the text is empty: there is nothing to continue"),
        (("generate", "A", "--repetition-penalty", "0"), "repetition_penalty 0.0 is out of range"),
        (("generate", "A", "--repetition-penalty", "nan"), "repetition_penalty nan is out of range"),
        (("generate", "A", "--repetition-penalty", "inf"), "repetition_penalty inf is out of range"),
        (("decoding", "--decoders", "vanilla@inf"), "repetition penalty 'inf' in decoder"),
        (("entropy", "--judges", "similarity:nan"), "threshold 'nan' of judge 'similarity:nan' is no number"),
        (("entropy", "--judges", "similarity:2"), "threshold '2' of judge 'similarity:2' is no number from -1 to 1"),
        (("exits", "train", "--self-text", "4", "--out", "."), "cannot write '.': it is a folder"),
        (("score", "p.json", "--out", "."), "cannot write '.': it is a folder"),
        (("serve", "--max-tokens", "0"), "'--max-tokens': give 1 or more"),
        (("generate", "A", "--seed", str(10**30)), "'--seed': give 9223372036854775807 or less"),
        (("layers", "--seed", str(10**30)), "--seed is '1000000000000000000000000000000': give 9223372036854775807"),
        (("score",), "missing argument 'PREDICTIONS'"),
        (("probe", "--save", "."), "cannot write '.': it is a folder"),
        (("layers", "--column", "x"), "error: --column 'x' is no role and column"),
        (("run", "--only", "none-such"), "no study is named 'none-such': choose from layers"),
        (("look", "A", "--prompts", "p.jsonl"), "give one question"),
        (("look", "--prompts", "none.jsonl"), "none.jsonl"),
        (("look", "A", "--modle", "m"), "no such option: --modle (Possible options: "),
        (("lok", "A"), "Did you mean 'look'"),
        (("read", "--text", "x.txt"), "missing option '--out'"),
        (("read", "--text", "none.txt", "-o", "o"), "no such data file or folder: 'none.txt'"),
        (("read", "--text", "none.txt", "-o", "o", "--stats", "mood"), "unknown statistic 'mood'"),
        (("generate", "A", "--decoder", "dolla"), "did you mean dola"),
        (("generate", "A", "--exit", "probability:2"), "threshold 2.0 is out of range"),
        (("generate", "A", "--exit", "fixed:5/4"), "'5/4' is not a layer"),
        (("generate", "A", "--speculate", "half"), "draft 'half' is not understood"),
        (("generate", "A", "--exit-cache", "no"), "'no' is not one of"),
        (("layers", "--layers", "0,y"), "'y' in layers"),
        (("layers", "--lens", "focal"), "no lens 'focal'"),
        (("entropy", "--judges", "me"), "no judge 'me'"),
        (("decoding", "--decoders", "vanilla,dolla"), "did you mean dola"),
        (("probe", "--kinds", "tree"), "unknown kind of probe 'tree'"),
        (("probe", "--kinds", "lda", "--protocol", "none-such"), "unknown protocol 'none-such'"),
        (("probe", "--probed-layers", "half"), "'half' is not a layer"),
        (("probe", "--layers", "1;2"), "'1;2' is not a layer"),
        (("probe", "--data", "none.csv"), "none.csv"),
        (("probe", "predict", "x.txt", "--probe", "none.safetensors"), "none.safetensors"),
        (("exits", "--layers", "1,,2"), "'' in layers"),
        (("exits", "--delta", "1.5"), "--delta is '1.5': "),
        (("exits", "--heads", "none.safetensors"), "none.safetensors"),
        (("exits", "train", "-o", "h.safetensors", "--self-text", "4", "--layers", "all-2"), "'all-2' is not a layer"),
        (("run", "--only", "entrpy"), "did you mean 'entropy'"),
        (("run", "--seed", "x"), "(given: 'x')"),
        (("serve", "--decoder", "dolla"), "did you mean dola"),
    ],
)  # fmt: skip
def test_what_needs_no_model_is_refused_before_one_is_loaded(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.splitlines()[-1].startswith("error: ")
    assert err.count("\n") <= 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("look", "A", "--layers", "3,x"),
        ("look", "A", "--dtype", "int8"),
        ("generate", "A", "--exit", "probability:2"),
        ("probe", "--probed-layers", "half"),
        ("run", "--only", "entrpy"),
        ("run", "--mc", "both"),
    ],
)
def test_a_slip_costs_no_import_of_torch(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys; from exitlens.cli import main; code = main(sys.argv[1:]);"
        "print('torch' in sys.modules); sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith("error: ")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10  # a second, whatever else runs


def test_the_depth_that_a_folder_states_is_used_before_loading(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 12}))
    assert known_depth(str(tmp_path)) == 12
    assert check_depth(str(tmp_path), "12").resolve(12) == (12,)
    with pytest.raises(LayerError, match="layer 13 is out of range"):
        check_depth(str(tmp_path), "13")
    for text in ("{", "[]", '{"n_layer": "12"}', '{"n_layer": 0}'):
        (tmp_path / "config.json").write_text(text)
        assert known_depth(str(tmp_path)) is None
    assert known_depth("smollm2-135m") == 30
    assert known_depth("org/name") is None


@pytest.mark.parametrize("command", [["generate", "Hi"], ["serve"]])
def test_a_decoder_of_layers_that_a_model_lacks_is_refused_before_loading(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 12}))
    for decoder, refused in (("static:13", True), ("dola:3/40", True), ("dola:3/4", False)):
        assert cli.main([*command, "--model", str(tmp_path), "--decoder", decoder]) == 2  # there are no weights
        assert ("out of range" in capsys.readouterr().err) == refused


@pytest.mark.parametrize(
    "given",
    [
        {"only": ("layers",), "layers": "13"},
        {"only": ("probes",), "probed_layers": "1/2,13"},
        {"only": ("probes",), "probe_layers": "1-13"},
        {"only": ("exits",), "exit_layers": "0"},
        {"only": ("decoding",), "decoders": ("vanilla", "static:13@1.2")},
    ],
)
def test_a_run_refuses_layers_before_anything_is_loaded_or_made(tmp_path: Path, given: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 12}))  # no weights: nothing here could be loaded
    with pytest.raises(LayerError, match="out of range"):
        run(RunConfig(model=str(tmp_path), out=str(tmp_path / "run"), **given))
    assert not (tmp_path / "run").exists()
    # What another study would read is not looked at.
    with pytest.raises(ExitlensError) as refused:
        run(RunConfig(model=str(tmp_path), out=str(tmp_path / "run"), **{**given, "only": ("entropy",)}))
    assert not isinstance(refused.value, LayerError)


@pytest.mark.parametrize("alias", DTYPE_ALIASES)
def test_a_short_dtype_is_the_long_one(alias: str) -> None:
    import torch

    assert pick_dtype(alias, torch.device("cpu")) is DTYPES[DTYPE_ALIASES[alias]]
    assert load_config(None, {"dtype": alias}).dtype == DTYPE_ALIASES[alias]


def completed(words: str, **environment: str) -> list[str]:
    """What the shell would be offered after ``words``, by the completion machinery itself."""
    code = "import sys; from exitlens.cli import main; sys.exit(main())"
    told = {"_EXITLENS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **told, **environment}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_values() -> None:
    assert completed("exitlens ge") == ["generate"]
    assert "--layers" in completed("exitlens look --la")
    assert "bfloat16" in completed("exitlens look --dtype b")
    assert completed("exitlens probe pre") == ["predict"]


def test_completion_can_be_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert cli.main(["--show-completion", "bash"]) == 0
    assert "_EXITLENS_COMPLETE=complete_bash" in capsys.readouterr().out


@pytest.mark.parametrize("path", RUNNABLE)
def test_examples_are_commands_that_the_parser_takes(path: str) -> None:
    command = COMMANDS[path]
    examples = (command.epilog or "").splitlines()
    assert examples or path in ("models list", "lens list"), "two commands need nothing to be told"
    for example in examples:
        assert len(example) <= 76, "in 80 columns it is one line, which can be copied"
        words = shlex.split(example)
        assert words[: len(path.split()) + 1] == ["exitlens", *path.split()]
        context = typer.Context(command, info_name=path)  # parsing runs the checks of every option that has one
        command.parse_args(context, words[len(path.split()) + 1 :])


@pytest.mark.parametrize("path", ["", *(path for path, command in COMMANDS.items() if hasattr(command, "commands"))])
def test_a_list_of_commands_says_of_each_what_it_is_for(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = shown(capsys, monkeypatch, path, columns=80).partition("\nCommands:\n")[2].partition("\n\n")[0]
    names = [command.split()[-1] for command in [*COMMANDS, "lm-eval"] if command.split()[:-1] == path.split()]
    assert sorted(line.split()[0] for line in listed.splitlines()) == sorted(names), "a line each"
    assert "..." not in listed, "a sentence is cut"


@pytest.mark.parametrize("path", RUNNABLE)
def test_help_ends_its_options_with_those_of_every_command_and_names_arguments_alike(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(capsys, monkeypatch, path)
    sections = dict(part.split(":\n", 1) for part in text.split("\n\n") if ":\n" in part and part[0].isupper())
    named = [line.split()[0].rstrip(",") for line in sections["Options"].splitlines() if line.startswith("  -")]
    common = [name for name in ("--json", "-q", "-h") if name in named]
    assert named[-len(common) :] == common
    arguments = [line.split()[0] for line in sections.get("Arguments", "").splitlines() if line[2:3].strip()]
    below = ["[COMMAND [ARGS]...]"] if path in ("probe", "exits") else []
    assert text.splitlines()[0] == " ".join(["Usage: exitlens", path, "[OPTIONS]", *arguments, *below])

"""Every command and every Python block of README and docs runs.

Commands run as they stand, in a folder with the files that they name, but on a random model of the built-in one's depth
with a vocabulary of 320 tokens, so that a page takes seconds. What cannot run here is in ``_ELSEWHERE``, each with the
reason; nothing else is left out, and the options of those are looked up.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from typer.main import get_command

from exitlens import cli
from exitlens.server import create_app
from tests.docs.blocks import PAGES, ROOT, blocks, commands, fill, tiny_builtin
from tests.serving import running

pytestmark = [pytest.mark.model, pytest.mark.encoder, pytest.mark.slow]

# The beginning of a command, and why it is not run here.
_ELSEWHERE = {
    ("make",): "the build itself: .ci/run and a fresh clone run it",
    ("pip", "install"): "installing is the build's business",
    ("exitlens", "serve"): "does not end; tests/end_to_end starts it",
    (
        "exitlens",
        "read",
        "--text",
        "corpus.jsonl",
        "--out",
        "out",
        "--engine",
        "ray",
    ): "tests/end_to_end/test_cluster.py",
    ("exitlens", "run", "--status", "out"): "of the run before it; tests/end_to_end/test_cluster.py",
    ("exitlens", "read", "--text", "s3://bucket/texts.jsonl"): "needs a bucket; tests/unit/test_object_storage.py",
    ("exitlens", "run", "--out", "s3://bucket/run"): "needs a bucket; tests/unit/test_object_storage.py",
    ("exitlens", "probe", "--data", "statements.csv", "--states", "s3://bucket/states"): "needs a bucket",
    ("exitlens", "compare", "s3://bucket/run"): "needs a bucket",
    ("tasks=$(python",): "a shell's variable for the line after it",
    ("exitlens", "lm-eval"): "its task files come from a hub; tests/unit/test_lm_eval*.py run it",
    ("lm_eval",): "as exitlens lm-eval",
    (
        "exitlens",
        "generate",
        "What is the capital of Australia?",
    ): "needs answers of both verdicts",
    ("python", "-m", "exitlens.integrations.lm_eval"): "as exitlens lm-eval",
}

# What takes minutes even on that model: run with EXITLENS_MINUTES=1.
_MINUTES = [
    ("exitlens", "exits", "adapt"),
    ("exitlens", "exits", "train", "--self-text"),
    ("exitlens", "generate", "--prompts"),
    ("exitlens", "lens", "train", "--self-text"),
]


# Commands that ran and left nothing in their folder: the same words on another page would do the same again.
_SEEN: set[tuple[str, ...]] = set()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder."""
    return tiny_builtin(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, stand_in: Path, encoder_path: Path) -> Iterator[Path]:
    """A folder with every file that a page may name, those that other commands make included."""
    from exitlens.cli import main
    from exitlens.models.hub import catalog

    folder = tmp_path_factory.mktemp("pages")
    fill(folder)
    shutil.copytree(stand_in, folder / "org" / "name")
    shutil.copytree(stand_in, folder / "MODEL")
    shutil.copytree(stand_in, folder / "my-model")
    resolve = catalog.resolve
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXITLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(catalog, "resolve", lambda name, **_: encoder_path if "minilm" in name else stand_in)
        patch.chdir(folder)
        for text in (
            "lens train --text corpus.jsonl --steps 20 -q",
            "lens train --text corpus.jsonl --steps 20 --name mine -q",
            "exits train --text corpus.jsonl --out heads.safetensors -q",
            "probe --data true-false/ --kinds mass-mean --zero-shot --save truth.safetensors -q",
            "entropy --limit 4 --max-new-tokens 6 --out run -q",
            "run --only layers --data TruthfulQA.csv --limit 4 --out runs/other -q",
        ):
            assert main(text.split()) == 0, text
        yield folder
    assert catalog.resolve is resolve


def _page_id(page: Path) -> str:
    return page.stem


def _unknown(words: list[str]) -> list[str]:
    """Options of a command that it does not have; ``lm-eval`` hands its own on to the harness."""
    if words[0] != "exitlens" or words[1:2] == ["lm-eval"]:
        return []
    command: Any = get_command(cli.build())
    known = {"--help", "--version"}
    for word in words[1:]:
        if word.startswith("-") or word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
    known |= {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]


def test_an_option_that_does_not_exist_is_found() -> None:
    assert _unknown(["exitlens", "lens", "train", "--text", "FILE", "--stepps", "3"]) == ["--stepps"]
    assert _unknown(["exitlens", "serve", "--port", "8000"]) == []


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_commands_in_sentences_and_scripts_have_the_options_that_they_name(page: Path) -> None:
    """Those that no block holds: in code between words, and in scripts of other programs."""
    whole = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for text in re.findall(r"(?:`|^ +)(exitlens [^`\n]*)", whole, re.M):
        words = text.split("#")[0].replace("…", " ").split()
        assert _unknown(words) == [], text


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_no_block_is_overlooked(page: Path) -> None:
    """A parser of Markdown finds as many blocks as this file does, and knows what to do with each."""
    parsed = [
        each for each in MarkdownIt().parse(page.read_text(encoding="utf-8")) if each.content and not each.children
    ]
    fences = [each for each in parsed if each.type in ("fence", "code_block")]
    found = blocks(page)
    assert [each.info.split(" ")[0] for each in fences] == [each.language for each in found]
    directives = {each.language for each in found if each.language.startswith("{")}
    assert {each.language for each in found} - directives <= {"", "text", "bash", "console", "python", "js", "json"}


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=_page_id)
@pytest.mark.timeout(900)
def test_commands_run(
    page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each ends with exit code 0."""
    from exitlens.cli import main

    folder = shutil.copytree(prepared, tmp_path / "page")  # what one page makes is in no other's way
    monkeypatch.chdir(folder)
    failed = []
    skipped = [*_ELSEWHERE, *([] if os.environ.get("EXITLENS_MINUTES") == "1" else _MINUTES)]
    for line, words in commands(page):
        if any(tuple(words[: len(head)]) == head for head in skipped):
            failed += [f"{page.name}:{line}: no option {name} in {' '.join(words)}" for name in _unknown(words)]
            continue
        if words[0] not in ("exitlens", "python"):
            failed.append(f"{page.name}:{line}: {' '.join(words)}: not run, and not among those that run elsewhere")
            continue
        if words[0] == "python":
            script = ROOT / words[1]
            done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
            missing = [word for word in words[2:] if word.startswith("--") and word not in done.stdout]
            if done.returncode or missing:
                failed.append(f"{page.name}:{line}: {' '.join(words)}: {missing or done.stderr[-200:]}")
            continue
        if tuple(words) in _SEEN:
            continue
        there = {*folder.rglob("*")}
        code = main(words[1:])
        said = capsys.readouterr()
        if not code and {*folder.rglob("*")} == there:
            _SEEN.add(tuple(words))
        if code:
            failed.append(f"{page.name}:{line}: {' '.join(words)}: exit code {code}: {said.err[-300:]}")
    assert not failed, "\n".join(failed)


def _names(page: Path, lm: Any) -> dict[str, Any]:
    """What a page takes for granted."""
    import numpy as np
    import pandas as pd

    from exitlens import data

    rng = np.random.default_rng(0)
    n = 96
    topics = [f"topic {i % 4}" for i in range(n)]
    common: dict[str, Any] = {
        "lm": lm, "model": lm.model, "prompts": ["The capital of France is", "Bees make"], "Path": Path,
        "inputs": lm.tokenizer(["The capital of France is"], return_tensors="pt"),
        "questions": data.read_data("TruthfulQA.csv").questions,
        "statements": data.read_data("true-false").statements,
    }  # fmt: skip
    if page.stem == "probes":
        common |= {
            "states": rng.normal(size=(31, n, 8)), "labels": [i // 4 % 2 for i in range(n)], "topics": topics,
            "pairs": list(range(n)), "entities": list(range(n)), "negated": [i // 8 % 2 == 1 for i in range(n)],
            "texts": [f"statement {i}" for i in range(n)], "next_token_right": [i % 3 == 0 for i in range(n)],
            "p_true": rng.uniform(size=n),
        }  # fmt: skip
    if page.stem == "report":
        manifest = json.loads(Path("run/manifest.json").read_text(encoding="utf-8"))
        tables = {path.stem: pd.read_parquet(path) for path in Path("run/tables").glob("*.parquet")}
        common |= {"tables": tables, "manifest": manifest}
    if page.stem == "scoring":
        common["other"] = {"rouge_max": pd.Series(rng.uniform(size=6))}
    return common


@pytest.fixture
def registries() -> Iterator[None]:
    """What a page registers is forgotten after it: other tests of this process register the same names."""
    from exitlens.decoding.contrast import parse
    from exitlens.lenses import statistics
    from exitlens.probes.kinds import KINDS
    from exitlens.studies.registry import STUDIES

    held = [statistics._known, parse._OWN, KINDS.own]
    before, studies = [dict(each) for each in held], set(STUDIES)
    yield
    for each, names in zip(held, before, strict=True):
        for name in set(each) - set(names):
            del each[name]
    for name in set(STUDIES) - studies:
        STUDIES.remove(name)


_PYTHON = [p for p in PAGES if any(b.language == "python" for b in blocks(p))]


@pytest.mark.parametrize("page", _PYTHON, ids=_page_id)
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("registries")
def test_python_blocks_run(page: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other in one namespace."""
    import exitlens

    monkeypatch.chdir(prepared)
    lm = exitlens.load("smollm2-135m")
    names = _names(page, lm)
    with contextlib.ExitStack() as stack:
        lm.tokenizer.chat_template = "{% for each in messages %}{{ each.content }}{% endfor %}"  # the stand-in has none
        address = stack.enter_context(running(create_app(lm))) if page.stem == "serve" else ""
        for block in blocks(page):
            if block.language == "python":
                text = block.text.replace("http://127.0.0.1:8000", address) if address else block.text
                code = compile("\n" * block.line + text, str(page), "exec")
                exec(code, names)  # noqa: S102 - our own documentation


def test_json_blocks_are_json() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "json":
                json.loads(block.text)

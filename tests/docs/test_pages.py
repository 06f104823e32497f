"""Every command and every Python block of README and docs runs.

Commands run as they stand, in a folder with the files that they name, but on a random model of the built-in one's depth
with a vocabulary of 320 tokens, so that a page takes seconds. What cannot run here is in ``_ELSEWHERE``, each with the
reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import PAGES, ROOT, blocks, commands, fill, tiny_builtin

pytestmark = [pytest.mark.model, pytest.mark.encoder, pytest.mark.slow]

# The beginning of a command, and why it is not run here.
_ELSEWHERE = {
    ("make",): "the build itself: .ci/run and a fresh clone run it",
    ("pip", "install"): "installing is the build's business",
    ("exitlens", "serve"): "does not end; tests/end_to_end starts it",
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


_PYTHON = [p for p in PAGES if p.stem != "serve" and any(b.language == "python" for b in blocks(p))]  # needs a server


@pytest.mark.parametrize("page", _PYTHON, ids=_page_id)
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("registries")
def test_python_blocks_run(page: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other in one namespace."""
    import exitlens

    monkeypatch.chdir(prepared)
    names = _names(page, exitlens.load("smollm2-135m"))
    for block in blocks(page):
        if block.language == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")
            exec(code, names)  # noqa: S102 - our own documentation

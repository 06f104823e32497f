"""lm-evaluation-harness driven by its own client: our vanilla is its ``hf`` model, and every decoder goes through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from tests import tiny

from exitlens.decoding.score import score
from exitlens.errors import ContextError, InputError
from exitlens.integrations.lm_eval import TASKS, ExitlensLM
from exitlens.models import load

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

CSV = (
    "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    "A,Misc,What is true?,A statement,A statement; Paris,None; 2 + 2,x\n"
    "A,Misc,How many whiskers does a human have?,None,None,Four; A capital; Paris,x\n"
    "A,Misc,What is false?,A false statement,A false statement; Not true,True,x\n"
)
PAIRS = [
    ("Q: What is true? A:", " A true statement."),
    ("Q: What is true? A:", " None"),
    ("Q: What is true? A: ", "Paris"),
    ("How many whiskers", " does a human have?"),
    ("", "The capital of France"),
    ("A" * 230, " and far more than fits" * 3),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = tiny._BASE["max_position_embeddings"]
    tiny._BASE["max_position_embeddings"] = 1024  # the six-shot prompt is long in a vocabulary of 320
    try:
        return tiny.save(tmp_path_factory.mktemp("model"), "llama", spread=0.2)
    finally:
        tiny._BASE["max_position_embeddings"] = before


@pytest.fixture(scope="module")
def lm(folder: Path) -> Any:
    return load(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4, max_length=128)


def instances(kind: str, arguments: list[Any]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i, metadata=("t", i, 1)) for i, a in enumerate(arguments)
    ]


def ours(lm: Any, decoder: str = "vanilla", **options: Any) -> ExitlensLM:
    return ExitlensLM(lm, decoder, max_length=128, batch_size=3, **options)


def test_vanilla_log_likelihoods_are_those_of_hf(lm: Any, theirs: Any) -> None:
    want = theirs.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    got = ours(lm).loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    assert [x for x, _ in got] == pytest.approx([x for x, _ in want], abs=1e-3)
    assert [g for _, g in got] == [g for _, g in want]


def test_vanilla_rolling_log_likelihoods_are_those_of_hf(lm: Any, theirs: Any) -> None:
    texts = [("What is true?",), ("The capital of France is Paris. " * 20,)]
    want = theirs.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    got = ours(lm).loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    assert got == pytest.approx(want, abs=1e-2)


def test_vanilla_texts_are_those_of_hf(lm: Any, theirs: Any) -> None:
    settings = {"until": ["?", "\nQ:"], "max_gen_toks": 12, "do_sample": False}
    other = {"until": ["a"], "max_gen_toks": 6}
    requests = [("Q: What is true?", settings), ("Paris", settings), ("A" * 200, settings), ("None", other)]
    want = theirs.generate_until(instances("generate_until", requests), disable_tqdm=True)
    assert ours(lm).generate_until(instances("generate_until", requests), disable_tqdm=True) == want
    assert any(want)


@pytest.mark.parametrize("post_softmax", [True, False])
def test_contrastive_scores_go_through(lm: Any, post_softmax: bool) -> None:
    model = ours(lm, "dola:0/2;top=0", post_softmax=post_softmax)
    got = model.loglikelihood(instances("loglikelihood", PAIRS[:2]), disable_tqdm=True)
    context = lm.encode(PAIRS[0][0])
    answers = [lm.encode(a + b)[len(context) :] for a, b in PAIRS[:2]]
    want = [s.sum() for s in score(lm, context, answers, "dola:0/2,top=0", post_softmax)]
    assert [x for x, _ in got] == pytest.approx(want, abs=1e-4)
    plain = ours(lm).loglikelihood(instances("loglikelihood", PAIRS[:2]), disable_tqdm=True)
    assert not np.allclose([x for x, _ in got], [x for x, _ in plain])


def test_what_is_not_supported_is_told(lm: Any) -> None:
    with pytest.raises(InputError, match="did you mean sled"):
        ours(lm, "sledd")
    settings = {"until": ["x"], "max_gen_toks": 4, "length_penalty": 2}
    with pytest.raises(InputError, match="length_penalty=2"):
        ours(lm).generate_until(instances("generate_until", [("A", settings)]))
    with pytest.raises(InputError, match="leaves no room"):
        ours(lm).generate_until(instances("generate_until", [("A", {"until": ["x"], "max_gen_toks": 500})]))
    with pytest.raises(InputError, match="batch_size 'many'"):
        ExitlensLM(lm, batch_size="many")
    with pytest.raises(ContextError, match="does not fit the context"):
        ExitlensLM(lm, max_length=5000).generate_until(
            instances("generate_until", [("A" * 2000, {"until": ["x"], "max_gen_toks": 20})])
        )


def test_the_offline_tasks(lm: Any, tmp_path: Path) -> None:
    path = tmp_path / "TruthfulQA.csv"
    path.write_text(CSV)
    names = ["exitlens_truthfulqa_mc1", "exitlens_truthfulqa_mc2", "exitlens_truthfulqa_gen"]
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"csv": str(path)})
    found = simple_evaluate(
        model=ExitlensLM(lm, "dola:0/2", max_gen_toks=8), tasks=names, task_manager=manager, bootstrap_iters=0,
        gen_kwargs="max_gen_toks=6",
    )  # fmt: skip
    results = found["results"]
    from exitlens.data import read_data
    from exitlens.studies.decoding.multiple_choice import mc_scores

    want = mc_scores(lm, read_data(path).questions, "dola:0/2")
    assert results[names[0]]["acc,none"] == pytest.approx(want.mc1.mean())
    assert results[names[1]]["acc,none"] == pytest.approx(want.mc2.mean(), abs=1e-3)
    assert {f"{m}_{k},none" for m in ("bleu", "rouge") for k in ("max", "diff", "acc")} <= set(results[names[2]])
    assert found["config"]["decoder"] == "dola:0/2"


# `exitlens lm-eval`, and the harness's own `lm_eval`, which meets exitlens through a task given as a file.
OURS = "import sys; from exitlens.cli import main; sys.exit(main(['lm-eval', *sys.argv[1:]]))"
THEIRS = "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"


@pytest.mark.parametrize(
    ("program", "task"),
    [(OURS, "exitlens_truthfulqa_mc1"), (THEIRS, str(TASKS / "exitlens_truthfulqa_mc1.yaml"))],
    ids=["exitlens", "lm_eval"],
)
def test_the_command_line(program: str, task: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "TruthfulQA.csv"
    path.write_text(CSV)
    arguments = [
        "run", "--model", "exitlens", "--model_args", f"pretrained={folder},decoder=sled,dtype=float32",
        "--tasks", task, "--metadata", f"csv={path}", "--output_path", str(tmp_path / "out"),
        "--batch_size", "4",
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "exitlens_truthfulqa_mc1" in done.stdout
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(written.read_text())["config"]["decoder"] == "sled"

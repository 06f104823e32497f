"""`exitlens exits` and the options of `generate` that skip blocks, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import tiny
from tests.commands import call, done

# typer hands its own context class over, and bad options are wrong types on purpose.
pytestmark = pytest.mark.wrong_types


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exits")
    model = tiny.model("llama", spread=0.15)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.save(folder / "opt", "opt")
    text = "\n\n".join(
        f"The capital of France is Paris, and {i} + 2 = {i + 2}. None of it is true." for i in range(120)
    )
    (folder / "text.txt").write_text(text)
    rows = [{"question": f"What is {i} + 2?", "best": "4", "correct": ["4"], "incorrect": ["5"]} for i in range(4)]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_train_then_analyse_then_generate(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m, heads = ("-m", work / "model"), work / "heads.safetensors"
    made = done(capsys, "exits", "train", *m, "--text", work / "text.txt", "-o", heads, "--layers", "1,2",
                "--shortlist", "300", "--rank", "4", "--epochs", "1", "--windows", "30")  # fmt: skip
    assert set(made["before"]["agreement"]) == {"1", "2"}
    assert 1 <= made["after"]["saturation_layer"] <= 3
    found = done(capsys, "exits", "--data", work / "q.jsonl", *m, "--heads", heads, "--max-new-tokens", "6",
                 "--out", work / "kept")  # fmt: skip
    assert "classifier" in {row["policy"] for row in found["exits"]}
    assert found["findings"]
    assert (work / "kept/figures/exits-pareto.svg").is_file()
    assert (work / "kept/tables/exits.parquet").is_file()
    (one,) = done(capsys, "generate", "What is true?", *m, "--exit", "classifier:0.01", "--heads", heads,
                  "--max-new-tokens", "6")  # fmt: skip
    assert one["blocks_a_token"] < 3
    assert (one["shortlists_a_token"], one["unembeddings_a_token"]) == (1.0, 0.0)
    assert sum(one["exits"].values()) >= 6


def test_speculation_writes_what_plain_decoding_writes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("generate", "What is true?", "-m", work / "model", "--max-new-tokens", "10")
    plain = done(capsys, *common)[0]["token_ids"]
    for how in ("exit=1", "skip=a2/m2", "auto"):
        (answer,) = done(capsys, *common, "--speculate", how)
        assert answer["token_ids"] == plain
        assert "speculate" in answer
    (answer,) = done(capsys, *common, "--exit", "never")
    assert answer["token_ids"] == plain


def test_adapt_writes_an_adapter_that_generate_takes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m = ("-m", work / "model")
    made = done(capsys, "exits", "adapt", *m, "--self-text", "12", "-o", work / "adapter", "--layers", "1,2",
                "--steps", "6", "--check-every", "3")  # fmt: skip
    assert made["kl"] <= made["kl_bound"]
    assert [c["step"] for c in made["curve"]] == [0, 3, 6]
    assert done(capsys, "generate", "A", *m, "--adapter", work / "adapter", "--max-new-tokens", "4")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "A", "--exit", "fixed:0"), "exit layer 0 is out of range"),
        (("generate", "A", "--exit", "fixed:3"), "exit layer 3 is out of range"),
        (("generate", "A", "--exit", "probability:1.2"), "threshold 1.2"),
        (("generate", "A", "--exit", "classifier:0.5"), "--heads"),
        (("generate", "A", "--exit", "fixed:1", "--exit-cache", "forget"), "'forget'"),
        (("generate", "A", "--exit", "fixed:1", "--decoder", "dola:high"), "dola:high"),
        (("generate", "A", "--exit", "fixed:1", "--speculate", "auto"), "exclude each other"),
        (("generate", "A", "--exit", "fixed:3", "--speculate", "auto"), "exclude each other"),
        (("generate", "A", "--speculate", "exit=3"), "draft exit 3"),
        (("generate", "A", "--speculate", "soon"), "'soon'"),
        (("generate", "A", "--heads", "nothing.safetensors"), "does nothing"),
        (("generate", "A", "--exit", "fixed:1", "--heads", "nothing.safetensors"), "nothing.safetensors"),
        (("exits", "--layers", "0,2"), "exit layer 0"),
        (("exits", "--layers", "two"), "'two'"),
        (("exits", "--delta", "0.05", "--max-new-tokens", "3"), "at least 59 are needed"),
        (("exits", "train", "-o", "x.safetensors"), "--self-text"),
        (("exits", "train", "-o", "x.safetensors", "--self-text", "4", "--layers", "0,2"), "exit layer 0"),
        (("exits", "train", "-o", "/proc/x.safetensors", "--self-text", "4"), "cannot write"),
        (("exits", "adapt", "-o", "/proc/x", "--self-text", "4"), "cannot write"),
        (("exits", "--delta", "1.5"), "--delta is '1.5': give less than 1"),
        (("exits", "--epsilon", "0"), "--epsilon is '0.0': give more than 0"),
        (("exits", "--delta", "0.05", "--control", "anytime", "--max-new-tokens", "3"), "at least 84 are needed"),
        (("exits", "--control", "always"), "'always'"),
        (("generate", "A", "--speculate", "clasp=0"), "clasp=0 is out of range"),
        (("generate", "A", "--speculate", "clasp=few"), "'clasp=few' is not understood"),
    ],
)
def test_bad_input_is_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    more = ("--data", work / "q.jsonl") if arguments[0] == "exits" and arguments[1] not in ("train", "adapt") else ()
    code, out, err = call(capsys, *arguments, "-m", work / "model", *more, "-q")
    assert code == 2
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line


def test_a_family_whose_blocks_cannot_be_run_apart(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (("--exit", "fixed:1"), ("--speculate", "auto")):
        code, _, err = call(capsys, "generate", "A", "-m", work / "opt", *option, "-q")
        assert code == 2
        assert "cannot be run apart" in err

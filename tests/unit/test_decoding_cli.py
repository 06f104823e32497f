"""`exitlens generate` and `exitlens score` as a user types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests import tiny
from tests.commands import call, done

# typer hands its own context class over, and bad options are wrong types on purpose.
pytestmark = pytest.mark.wrong_types

CSV = (
    "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    "A,Misc,What is true?,A statement,A statement; Paris,None; 2 + 2,x\n"
    "A,Misc,How many whiskers?,None,None,Four; A capital,x\n"
    "A,Misc,日本の首都は?,東京,東京; 東京です,大阪,x\n"
)
QUESTIONS = ["What is true?", "How many whiskers?", "日本の首都は?"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoding")
    tiny.save(folder / "model", "llama", spread=0.3)
    (folder / "q.csv").write_text(CSV, encoding="utf-8")
    (folder / "blank.json").write_text("\n")
    (folder / "half.jsonl").write_text('{"prompt": "A\\ud800"}\n')
    (folder / "huge.jsonl").write_text(json.dumps({"prompt": "true " * 300}) + "\n")
    answers = {
        "a": ["", "Four 👩‍👩‍👧", "東京"],
        "b": ["A statement", "None", "大阪"],
        "other": ["A statement", "None", "大阪"],
    }
    for name, texts in answers.items():
        asked = QUESTIONS if name != "other" else [*QUESTIONS[:2], "Who?"]
        (folder / f"{name}.json").write_text(json.dumps({"question": asked, "model_completion": texts}))
    (folder / "short.json").write_text(json.dumps({"question": QUESTIONS[:2], "model_completion": ["a", "b"]}))
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("A", "--decoder", "dolla"), "unknown decoder 'dolla': did you mean dola"),
        (("A", "--decoder", "dola:hihg"), "did you mean high?"),
        (("A", "--decoder", "vanilla@0"), "repetition penalty '0'"),
        (("A", "--stop", ""), "--stop is given ''"),
        (("A", "--top-p", "0"), "top_p 0.0 is out of range"),
        (("A", "--decoder", "dola:9"), "candidate layer 9 is out of range: the model has candidate layers 0 (emb"),
        (("A", "--decoder", "dola:high,layers="), "is empty: write layers=value"),
        (("A", "--max-new-tokens", "300"), "does not fit the context of 256"),
        (("--prompts", "{work}/blank.json"), "is empty; give a file with prompts"),
        (("--prompts", "{work}"), "is a folder; give a file with prompts"),
        (("--prompts", "{work}/half.jsonl"), "is no character"),
        (("--prompts", "{work}/huge.jsonl"), "does not fit the context of 256"),
        (("--prompts", "{work}/none.jsonl"), "no such data file"),
    ],
)
def test_generate_refuses_in_one_line(
    arguments: tuple[str, ...], message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [a.format(work=work) for a in arguments]
    code, out, err = call(capsys, "generate", *given, "-m", work / "model", "-q")
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_what_is_written_as_it_comes_is_the_answer(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("generate", "What is true?", "-m", work / "model", "--max-new-tokens", "8", "--decoder", "dola:0/2@1.2")
    (one,) = done(capsys, *common)
    assert one["decoder"] == "dola:0/2"
    assert one["repetition_penalty"] == 1.2
    code, out, _ = call(capsys, *common, "-q")
    assert code == 0
    assert one["text"].strip() in out


def test_a_setting_of_sampling_without_a_temperature_is_remarked(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "generate", "A", "--top-k", "5", "-m", work / "model", "--max-new-tokens", "2")
    assert code == 0
    assert "change nothing at temperature 0" in err


def test_score_compares_systems_and_takes_empty_and_non_latin_answers(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("score", work / "a.json", work / "b.json", "--data", work / "q.csv", "--bertscore-model", "none")
    found = done(capsys, *common, "--judges", "margin:rouge")
    scores = {(row["decoder"], row["metric"]): row for row in found["scores"]}
    assert scores["a.json", "rouge_max"]["mean"] == pytest.approx(1 / 3)  # the Japanese answer alone
    assert scores["b.json", "rouge_max"]["mean"] == pytest.approx(2 / 3)
    assert scores["b.json", "rouge_max"]["difference"] == pytest.approx(1 / 3)
    assert {j["decoder"]: j["correct"] for j in found["judgements"]} == {"a.json": 1, "b.json": 2}
    assert all(row["n"] == 3 and row["too_narrow"] for row in found["scores"])
    code, out, _ = call(capsys, *common)
    assert code == 0
    assert re.search(r"rouge_max +b\.json +3 .*\d†.*\d†", out)  # of the mean, and of the difference
    assert "† interval too narrow: fewer than 15 units" in out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("blank.json",), "is empty; give a file with stored answers"),
        (("none.json",), "no such data file"),
        ((".",), "is a folder; give a file with stored answers"),
        (("a.json", "b.json", "a.json"), "a.json' is given twice: leave one out"),
        (("a.json", "short.json"), "1 question without a prediction, the first '日本の首都は?'"),
        (("a.json", "other.json"), "1 question not in 'q', the first 'Who?'"),
    ],
)
def test_score_refuses_in_one_line(
    files: tuple[str, ...], message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "score", *(work / f for f in files), "--data", work / "q.csv", "-q")
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert err.count(files[-1]) == 1 or files == (".",)

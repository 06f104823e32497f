"""`exitlens probe`, `probe predict` and `generate --watch` as a user runs them, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tests import tiny

from exitlens.cli import main
from exitlens.decoding import Generation, generate
from exitlens.decoding import stream_states as watching
from exitlens.errors import DataError, InputError
from exitlens.models import load
from exitlens.probes import load_probe
from exitlens.studies.probes.predict import read_texts


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models and statements whose last word tells their label, on three topics."""
    folder = tmp_path_factory.mktemp("work")
    for name, seed in (("model", 0), ("other", 1)):
        tiny.save(folder / name, "llama", seed=seed)
    with (folder / "statements.jsonl").open("w", encoding="utf-8") as out:
        for i in range(72):
            row = {
                "statement": f"Thing {i // 2} of kind {i // 24} is {'real' if i % 2 else 'none'}.",
                "label": i % 2,
                "topic": f"t{i // 24}",
                "pair": f"p{i // 2}",
            }
            out.write(json.dumps(row) + "\n")
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as out:
        for i in range(6):
            row = {
                "question": f"Is {i} real?",
                "best": "It is real.",
                "correct": ["real."],
                "incorrect": ["It is none."],
            }
            out.write(json.dumps(row) + "\n")
    return folder


def exitlens(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def options(work: Path, *more: str) -> list[str]:
    return ["--model", str(work / "model"), "--device", "cpu", "--dtype", "float32", "-q", *more]


def probe(work: Path, *more: str) -> list[str]:
    return ["probe", "--data", str(work / "statements.jsonl"), "--states", str(work / "states"), *options(work, *more)]


@pytest.fixture(scope="module")
def saved(work: Path) -> Path:
    """A probe of bare statements, with its run directory beside it."""
    arguments = probe(work, "--kinds", "logistic,mass-mean", "--zero-shot", "--layers", "1-3")
    assert main([*arguments, "--save", str(work / "bare.safetensors"), "--out", str(work / "run")]) == 0
    return work / "bare.safetensors"


def test_the_study_leaves_the_tables_that_the_figures_read_and_says_its_verdict(work: Path, saved: Path) -> None:
    tables = {f.stem: pd.read_parquet(f) for f in (work / "run" / "tables").glob("*.parquet")}
    layers = tables["probe_layers"]
    assert {"probe", "control", "floor"} <= set(layers["role"])
    assert sorted(layers[layers["kind"] == "logistic"]["layer"]) == [1, 2, 3]
    assert {"accuracy_low", "auroc_high", "brier", "ece", "aurc", "n"} <= set(layers.columns)
    assert {"confidence", "observed", "observed_low", "observed_high", "n"} <= set(tables["probe_calibration"].columns)
    assert {"coverage", "risk", "risk_low", "risk_high"} <= set(tables["probe_risk"].columns)
    matrix = tables["probe_transfer"].set_index(["train_topic", "test_topic"])["accuracy"]
    assert len(matrix) == 9
    assert matrix.min() > 0.9  # the last word tells the label on every topic
    report = (work / "run" / "report.html").read_text(encoding="utf-8")
    assert "Under leave-one-topic-out, the best probe is" in report
    assert "probes-transfer" in {p.stem for p in (work / "run" / "figures").iterdir()}
    assert "probes" not in tables  # the original's table only when it is asked for


def test_a_saved_probe_says_where_it_comes_from(work: Path, saved: Path) -> None:
    lm = load(str(work / "model"), device="cpu", dtype="float32")
    found = load_probe(saved)
    where = found.probe.provenance
    assert (where.model, where.position, where.lens) == (lm.fingerprint, "last", "raw")
    assert where.layer in (1, 2, 3)
    assert where.prompt.startswith("zero-shot-")
    assert len(where.data) == 16
    assert found.about["held_out"]["accuracy"] > 0.9


def test_judge_scores_statements_and_answers(
    work: Path, saved: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = exitlens(
        capsys, "probe", "predict", str(work / "statements.jsonl"), "--probe", str(saved), "-q", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert found["accuracy"] > 0.9
    assert found["auroc"] > 0.95
    assert found["accuracy_low"] < found["accuracy"] <= found["accuracy_high"]
    assert found["labelled"] == len(found["texts"])
    assert found["accuracy_too_narrow"] is (len(found["texts"]) < 15)
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"question": "Thing 3 of kind 1", "answer": "is real."}\n{"statement": "Thing 4 is none."}\n')
    code, out, _ = exitlens(capsys, "probe", "predict", str(answers), "--probe", str(saved), "-q")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [row[1] for row in rows] == ["true", "false"]
    assert "Thing 3 of kind 1 is real." in out
    assert [t.label for t in read_texts(work / "questions.jsonl")][:3] == [1, 1, 0]


def test_columns_of_a_table_to_be_judged_are_named(tmp_path: Path) -> None:
    table = tmp_path / "claims.csv"
    table.write_text("Claim,Truth,Asked,Said\nBees fly.,yes,Do bees fly?,They do.\nBees swim.,no,Do bees swim?,Yes.\n")
    with_labels = read_texts(table, "statement=Claim,label=Truth")
    assert [(t.text, t.label) for t in with_labels] == [("Bees fly.", 1), ("Bees swim.", 0)]
    assert [(t.text, t.label) for t in read_texts(table, ["statement=claim"])] == [
        ("Bees fly.", None),
        ("Bees swim.", None),
    ]
    answers = read_texts(table, {"question": "Asked", "answer": "Said"})
    assert [(t.text, t.label) for t in answers] == [("Do bees fly? They do.", None), ("Do bees swim? Yes.", None)]
    with pytest.raises(DataError, match="no column 'Clam'"):
        read_texts(table, "statement=Clam")
    with pytest.raises(InputError, match="no role is named 'statment'"):
        read_texts(table, "statment=Claim")
    with pytest.raises(InputError, match="is built in"):
        read_texts("facts-tf", "statement=Claim")


def test_answers_of_a_system_have_no_label_in_a_table_either(tmp_path: Path) -> None:
    """JSON lines of questions and answers have none; a CSV of the same was judged as if all were correct."""
    table = tmp_path / "answers.csv"
    table.write_text("question,answer\nDo bees fly?,No.\n")
    assert [(t.text, t.label) for t in read_texts(table)] == [("Do bees fly? No.", None)]
    table.write_text("question,best,incorrect\nDo bees fly?,Yes.,No.\n")
    assert [(t.text, t.label) for t in read_texts(table)] == [("Do bees fly? Yes.", 1), ("Do bees fly? No.", 0)]


def test_judge_refuses_another_model_position_and_no_probe(
    work: Path, saved: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = str(work / "statements.jsonl")
    code, _, err = exitlens(
        capsys, "probe", "predict", file, "--probe", str(saved), "--model", str(work / "other"), "-q"
    )
    assert code == 2
    assert "was fitted on" in err
    assert "use that model" in err
    code, _, err = exitlens(capsys, "probe", "predict", file, "--probe", str(saved), "--position", "mean", "-q")
    assert (code, err.count("\n")) == (2, 1)
    assert "fitted on position 'last', not 'mean'" in err
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"no tensors")
    code, _, err = exitlens(capsys, "probe", "predict", file, "--probe", str(junk), "-q")
    assert (code, err.count("\n")) == (2, 1)


def test_watch_gives_each_token_the_probability_of_the_plain_pass(
    work: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "Thing 5 is", "--watch", str(saved), "--max-new-tokens", "5", "--json", *options(work)]
    code, out, _ = exitlens(capsys, *arguments)
    assert code == 0
    found = json.loads(out)[0]
    assert len(found["p_true"]) == len(found["tokens"]) > 0
    lm = load(str(work / "model"), device="cpu", dtype="float32")
    probe_ = load_probe(saved)
    ids = lm.encode("Thing 5 is")
    hidden: Any = lm.forward(torch.tensor([[*ids, *found["token_ids"]]]), layers=probe_.layers).hidden
    plain = probe_.p_true(torch.stack([hidden[j][0, len(ids) :] for j in probe_.layers]))
    assert found["p_true"] == pytest.approx(plain.tolist(), abs=1e-5)


def test_watch_gives_tokens_while_the_answer_is_written_and_none_of_a_stop_string(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load(str(work / "model"), device="cpu", dtype="float32")
    whole = generate(lm, ["Thing 5 is"], max_new_tokens=12)[0]
    chosen: list[int] = []

    class Counting(watching.BatchRun):
        def accept(self, row: Any, token: int) -> bool:
            chosen.append(token)
            return super().accept(row, token)

    monkeypatch.setattr(watching, "BatchRun", Counting)
    pieces = watching.watch(lm, "Thing 5 is", (1, 3), max_new_tokens=12)
    first = next(pieces)
    assert len(chosen) == 2
    assert isinstance(first, watching.Watched)
    assert (first.token, first.states.shape) == (whole.tokens[0], (2, lm.d_model))
    *rest, answer = pieces
    assert [p.token for p in rest if isinstance(p, watching.Watched)] == list(whole.tokens[1:])
    assert isinstance(answer, Generation)
    assert answer.token_ids == whole.token_ids
    stop = whole.text[-3:]
    cut = generate(lm, ["Thing 5 is"], max_new_tokens=12, stop=[stop])[0]
    *seen, answer = watching.watch(lm, "Thing 5 is", (1,), max_new_tokens=12, stop=[stop])
    assert [p.token for p in seen if isinstance(p, watching.Watched)] == list(cut.tokens)
    assert 0 < len(seen) < 12


def test_watch_refuses_a_probe_of_few_shot_statements(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "few-shot.safetensors"
    arguments = probe(work, "--kinds", "mass-mean", "--layers", "2", "--save", str(file), "--json")
    code, out, _ = exitlens(capsys, *arguments)
    assert code == 0
    assert json.loads(out)["saved"] == [str(file)]
    assert {row["kind"] for row in json.loads(out)["probe_best"]} >= {"LM next token", "LM token probability"}
    code, _, err = exitlens(capsys, "generate", "Thing", "--watch", str(file), *options(work))
    assert (code, err.count("\n")) == (2, 1)
    assert "--zero-shot --save" in err


def test_transfer_to_answers_of_questions_and_its_refusals(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--kinds", "mass-mean", "--layers", "3", "--protocol", "transfer", "--json"]
    code, out, _ = exitlens(capsys, *probe(work, *more, "--test-data", str(work / "questions.jsonl")))
    assert code == 0
    assert {row["n_test"] for row in json.loads(out)["probe_best"]} == {18}
    code, _, err = exitlens(capsys, *probe(work, *more))
    assert (code, err.count("\n")) == (2, 1)
    assert "--test-data" in err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": 1}, "only label 1"),
        ({"label": 2}, "label"),
        ({"topic": "rare"}, "topic 'rare' has 1 rows"),
    ],
)
def test_bad_statements_are_named_in_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    rows = [json.loads(line) for line in (work / "statements.jsonl").read_text().splitlines()]
    for row in rows if change == {"label": 1} else rows[:1]:
        row.update(change)
    file = tmp_path / "bad.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = exitlens(
        capsys, "probe", "--data", str(file), "--kinds", "mass-mean", "--layers", "2", *options(work)
    )
    assert (code, err.count("\n")) == (2, 1)
    assert says in err


def test_states_of_another_model_are_refused(work: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = probe(work, "--kinds", "mass-mean", "--zero-shot", "--layers", "2")
    arguments[arguments.index(str(work / "model"))] = str(work / "other")
    code, _, err = exitlens(capsys, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds hidden states with" in err

"""Tables of the user's own: which column holds what, in CSV, tab-separated, JSON and Parquet; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.commands import call

from exitlens.data import read_data
from exitlens.data.columns import parse_columns
from exitlens.errors import ConfigError, DataError, InputError
from exitlens.studies.config import RunConfig, load_config
from exitlens.studies.inputs import load_inputs

ROWS = [("What is the capital of Peru?", "Lima", ["Lima", "Quito"]), ("How many legs has a spider?", "8", ["6", "8"])]
MAPPED = "question=Prompt,best=Expected,choices=Options"


def table(folder: Path, form: str) -> Path:
    """The same two questions in a form, with a column that nobody needs."""
    place = folder / f"own.{form}"
    names = ["Nr", "Prompt", "Expected", "Options"]
    if form == "parquet":
        rows = [(i, q, a, c) for i, (q, a, c) in enumerate(ROWS)]
        pd.DataFrame(rows, columns=names).to_parquet(place)
    elif form in ("jsonl", "json"):
        found = [dict(zip(names, (i, q, a, c), strict=True)) for i, (q, a, c) in enumerate(ROWS)]
        place.write_text("\n".join(map(json.dumps, found)) if form == "jsonl" else json.dumps(found))
    else:
        mark = {"csv": ",", "tsv": "\t", "semicolon": ";", "bar": "|"}[form]
        within = "|" if mark == ";" else ";"
        lines = [names, *([str(i), q, a, f'"{within.join(c)}"'] for i, (q, a, c) in enumerate(ROWS))]
        place.write_text("\ufeff" + "\r\n".join(mark.join(line) for line in lines))
    return place


@pytest.mark.parametrize("form", ["csv", "tsv", "semicolon", "bar", "json", "jsonl", "parquet"])
def test_the_same_questions_are_read_from_every_form(tmp_path: Path, form: str) -> None:
    found = read_data(table(tmp_path, form), columns=MAPPED)
    assert [(q.question, q.best, list(q.choices)) for q in found.questions] == ROWS
    assert found.notes[0].startswith("2 rows (")
    assert found.notes[0].endswith(
        "question from 'Prompt', best from 'Expected', choices from 'Options'; left out: 'Nr'"
    )
    assert len(found.sha256) == 64


def test_a_mapping_is_text_texts_or_a_dictionary(tmp_path: Path) -> None:
    own = table(tmp_path, "csv")
    ways: tuple[Any, ...] = (
        MAPPED,
        MAPPED.split(","),
        {"question": "prompt", "answer": "EXPECTED", "choices": "Options"},
    )
    assert len({read_data(own, columns=way).questions for way in ways}) == 1


def test_a_columns_name_may_hold_commas_and_equals_signs() -> None:
    assert parse_columns("question=What, exactly, was asked?,best=a = b") == {
        "question": "What, exactly, was asked?",
        "best": "a = b",
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("qestion=Prompt", "no role is named 'qestion': did you mean 'question'"),
        ("Prompt", "'Prompt' is no role and column"),
        ("question=Prompt,question=Nr", "the role 'question' is given twice"),
        ("best=a,answer=b", "the role 'best' is given twice"),
        ("question=", "question= names no column"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused_with_the_settings(given: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_columns(given)
    with pytest.raises(ConfigError, match=told):
        load_config(None, {"column": [given]})


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("question=Promt,best=Expected", r"has no column 'Promt' \(for question\): did you mean 'Prompt'\?"),
        ("question=Zzz,best=Expected", "no column 'Zzz'.*there are 'Nr', 'Prompt', 'Expected', 'Options'"),
        ("question=Prompt", "no column for best or correct: name one with --column best=NAME"),
        ("best=Expected", "no column for question: name one with --column question=NAME"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path, columns: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_data(table(tmp_path, "csv"), columns=columns)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Prompt,prompt,Expected\na?,b?,c\n", "has the column 'Prompt' twice"),
        ("Prompt,Expected,Expected\na?,b,c\n", "has the column 'Expected' twice"),
        ("Prompt,Expected,answer,best\na?,,b,c\n", "line 2: no answer to 'a\\?'"),
        ("Prompt,Expected,Options\na?,b,c\n", "'c' is one choice: separate choices by ; or |"),
        ("Prompt,Expected,Options\na?,b,b;c|d\n", "holds both ; and |"),
        ("Prompt,Expected,Options\na?,b,[b\n", "is not JSON"),
        ("Prompt,Expected,Options\na?,b,c;d\n", "no choice of .* is in 'correct'"),
        ("Prompt,Expected\n,b\n", "line 2: the question is empty"),
        ("Prompt,Expected\n", "has no questions: only a header"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, text: str, told: str) -> None:
    own = tmp_path / "own.csv"
    own.write_text(text)
    options = ",choices=Options" if "Options" in text else ""
    with pytest.raises(DataError, match=told):
        read_data(own, columns=f"question=Prompt,best=Expected{options}")


def test_two_columns_that_could_be_the_answer_are_not_guessed_between(tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text("question,answer,best\na?,b,c\n")
    with pytest.raises(DataError, match="'answer', 'best', of which each could be best: say which"):
        read_data(own)
    assert read_data(own, columns="best=answer").questions[0].best == "b"


@pytest.mark.parametrize("word", ["1", "1.0", "True", "yes", "TRUE", "t", "Y"])
@pytest.mark.parametrize("other", ["0", "0.0", "False", "no", "n"])
def test_labels_are_read_as_people_write_them(tmp_path: Path, word: str, other: str) -> None:
    own = tmp_path / "s.csv"
    own.write_text(f"statement;label\nLima is in Peru.;{word}\nLima is in Chad.; {other} \n")
    assert [s.label for s in read_data(own).statements] == [1, 0]


def test_labels_of_json_and_parquet_are_booleans_and_numbers_too(tmp_path: Path) -> None:
    lines = [{"statement": "a", "label": True, "topic": "t"}, {"statement": "b", "label": 0.0, "topic": "t"}]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [s.label for s in read_data(tmp_path / "s.jsonl").statements] == [1, 0]
    frame = pd.DataFrame({"Claim": ["a is b", "c is d"], "Truth": [True, False], "Field": ["x", "y"]})
    frame.to_parquet(tmp_path / "s.parquet")
    found = read_data(tmp_path / "s.parquet", columns="statement=Claim,label=Truth,topic=Field").statements
    assert [(s.label, s.topic) for s in found] == [(1, "x"), (0, "y")]


def test_a_label_that_is_neither_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "s.csv"
    own.write_text("Claim,Truth\nLima is in Peru.,maybe\n")
    with pytest.raises(DataError, match="line 2: label 'maybe' is neither 0 nor 1"):
        read_data(own, columns="statement=Claim,label=Truth")


def test_statements_without_groups_get_them_and_lose_copies(tmp_path: Path) -> None:
    own = tmp_path / "claims.csv"
    own.write_text("Claim,Truth\nLima is in Peru.,yes\nLima is in Chad.,no\nLima is in Peru.,yes\n")
    found = read_data(own, columns="statement=Claim,label=Truth")
    assert [s.topic for s in found.statements] == ["claims"] * 2
    assert len({s.pair for s in found.statements}) == 1, "twins are found by their text"
    assert any("1 duplicate" in note for note in found.notes)


def test_questions_and_answers_are_read_as_they_are(tmp_path: Path) -> None:
    lines = [{"question": "2 + 2?", "answer": 4}, {"question": "Even?", "answer": ["2", "4"]}]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = read_data(tmp_path / "qa.jsonl").questions
    assert (first.best, first.correct, second.best, second.correct) == ("4", ("4",), "2", ("2", "4"))
    (tmp_path / "qa.csv").write_text("question,answer,source\n2 + 2?,4,me\n")
    found = read_data(tmp_path / "qa.csv")
    assert found.questions[0].best == "4"
    assert found.notes == ("1 row (CSV): question from 'question', best from 'answer'; left out: 'source'",)
    for line, told in (
        ({"question": "a", "answer": "b", "best": "c"}, "both 'answer' and 'best'"),
        ({"question": "a", "answer": ["b"], "correct": ["c"]}, "both a list 'answer' and 'correct'"),
        ({"question": "a", "answer": None}, "'answer' must be a text"),
        ({"question": "a", "answer": True}, "'answer' must be a text"),
    ):
        (tmp_path / "bad.jsonl").write_text(json.dumps(line))
        with pytest.raises(DataError, match=told):
            read_data(tmp_path / "bad.jsonl")


def test_a_damaged_parquet_file_and_one_of_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + b"\0" * 50)
    with pytest.raises(DataError, match="is not a whole Parquet file"):
        read_data(tmp_path / "bad.parquet", columns=MAPPED)
    with pytest.raises(DataError, match="no column for question: name one with --column question=NAME"):
        read_data(table(tmp_path, "parquet"))


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.DataFrame({"question": ["a" * 100_000] * 200, "answer": "b"}).to_parquet(
        tmp_path / "big.parquet", use_dictionary=False
    )
    monkeypatch.setenv("EXITLENS_MAX_FILE_MIB", "1")
    with pytest.raises(DataError, match=r"unpacks to .* bytes"):
        read_data(tmp_path / "big.parquet")


def test_a_folder_of_mapped_statements_has_a_topic_a_file(tmp_path: Path) -> None:
    for topic, text in (("cities", "Lima is in Peru."), ("metals", "Gold is a metal.")):
        (tmp_path / f"{topic}.csv").write_text(f"Claim,Truth\n{text},1\n")
    found = read_data(tmp_path, columns="statement=Claim,label=Truth")
    assert {s.topic for s in found.statements} == {"cities", "metals"}
    assert found.notes[0].startswith("cities: 1 row (CSV)")
    with pytest.raises(DataError, match="holds 2 files"):
        read_data(tmp_path, columns="question=Claim,best=Truth")


def test_a_run_reads_each_file_by_its_part_of_the_mapping(tmp_path: Path) -> None:
    own = table(tmp_path, "csv")
    claims = tmp_path / "claims.csv"
    claims.write_text("Claim,Truth\nLima is in Peru.,1\nLima is in Chad.,0\n")
    columns = f"{MAPPED},statement=Claim,label=Truth"
    both = RunConfig(data=(str(own),), statements=(str(claims),), column=(columns,))
    found = load_inputs(both, {"questions", "statements"})
    assert (len(found.questions), len(found.statements)) == (2, 2)
    assert "own: 2 rows (CSV)" in found.notes[0]
    together = RunConfig(data=(str(own), str(claims)), column=(columns,))
    assert len(load_inputs(together, {"questions", "statements"}).statements) == 2
    built_in = RunConfig(column=(MAPPED,))
    with pytest.raises(DataError, match="maps columns of no file that is read"):
        load_inputs(built_in, {"questions"})
    assert "column" in built_in.identity()


def test_a_built_in_set_takes_no_mapping() -> None:
    with pytest.raises(InputError, match="'facts-qa' is built in"):
        read_data("facts-qa", columns=MAPPED)


def test_every_command_with_data_takes_the_option(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in ("run", "layers", "entropy", "decoding", "probe", "exits", "score"):
        code, out, _ = call(capsys, command, "--help")
        assert code == 0
        assert "--column ROLE=NAME" in out, command
    own = table(tmp_path, "csv")
    code, _, err = call(capsys, "entropy", "--data", own, "--column", "question=Promt,best=Expected")
    assert code == 2
    assert "did you mean 'Prompt'?" in err
    assert err.count("\n") == 1, "one line, before a model is loaded"


def test_stored_answers_are_scored_against_a_file_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "said.jsonl"
    said.write_text("\n".join(json.dumps({"question": q, "model_completion": a}) for q, a, _ in ROWS))
    own = table(tmp_path, "tsv")
    code, out, err = call(
        capsys, "score", said, "--data", own, "--column", "question=Prompt", "--column", "best=Expected",
        "--bertscore-model", "none", "--protocol", "plain",
    )  # fmt: skip
    assert code == 0, err
    assert "own: 2 rows (tab-separated): question from 'Prompt', best from 'Expected'; left out: 'Nr'" in err
    assert "rouge_max" in out

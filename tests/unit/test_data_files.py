"""Readers on made files: every format, every awkward text, every one-line error."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from exitlens import data
from exitlens.errors import DataError, ExitlensError, InputError, MissingExtra

HEADER = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_truthfulqa_csv_with_mark_quotes_and_semicolons(tmp_path: Path) -> None:
    row = 'Adversarial,Myths,"Is it, ""really"", so?",No,"Not so; No, it is not; Not so",Yes; Always ;,http://x\n'
    raw = b"\xef\xbb\xbf" + (HEADER + row).encode()
    found = data.read_data(write(tmp_path / "tq.csv", raw))
    (question,) = found.questions
    assert question.question == 'Is it, "really", so?'
    assert question.best == "No"
    assert question.correct == ("No", "Not so", "No, it is not"), "the best answer is added, repeats go"
    assert question.incorrect == ("Yes", "Always")
    assert (question.kind, question.category) == ("Adversarial", "Myths")
    assert found.sha256 == hashlib.sha256(raw).hexdigest()
    assert found.name == "tq"


AWKWARD = ["<script>alert('x')</script>", "smile 🙂 and 👩‍👩‍👧", "שלום עולם", "zero\0byte", "line\u2028separator", "é"]


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_passes_unchanged(tmp_path: Path, text: str) -> None:
    csv_file = write(tmp_path / "a.csv", HEADER + f'T,C,"{text}?",{text},{text},no {text},s\n')
    assert data.read_data(csv_file).questions[0].question == text + "?"
    assert data.read_data(csv_file).questions[0].incorrect == (f"no {text}",)
    statements = write(tmp_path / "b.csv", f'statement,label\n"{text}",1\n')
    assert data.read_data(statements).statements[0].statement == text
    lines = write(tmp_path / "c.jsonl", json.dumps({"question": text, "best": text}, ensure_ascii=False) + "\n")
    # JSON forbids a bare NUL; json.dumps writes it escaped, so it survives as well.
    assert data.read_data(lines).questions[0].question == text


def test_duplicates_and_conflicts_are_counted_and_dropped(tmp_path: Path) -> None:
    rows = ["Rome is a city.,1", "Rome is a city.,1", "Oslo is a town.,1", "Oslo is a town.,0", "Bern is big.,0"]
    rows += ["bern  is BIG.,0", "\xa0Lima is old.,1", "Lima is old.,0"]
    found = data.read_data(write(tmp_path / "places_true_false.csv", "statement,label\n" + "\n".join(rows) + "\n"))
    assert [s.statement for s in found.statements] == ["Rome is a city.", "Bern is big."]
    assert [s.id for s in found.statements] == ["places-0001", "places-0005"]
    assert found.notes == (
        "places: 2 duplicates, 1 with conflicting labels: dropped (3 of 8 rows)",
        "places: 2 more duplicates but for white space or letter case, 1 with conflicting labels: dropped (3 rows)",
    )


def test_folder_takes_topics_from_names_and_drops_across(tmp_path: Path) -> None:
    write(tmp_path / "b_true_false.csv", "statement,label\nIce is cold.,1\nFire is cold.,0\n")
    write(tmp_path / "a_true_false.csv", "label,statement\n1,Ice is cold.\n1,Snow is white.\n")
    write(tmp_path / "notes.txt", "not data")
    found = data.read_data(tmp_path)
    assert [(s.topic, s.statement) for s in found.statements] == [
        ("a", "Ice is cold."),
        ("a", "Snow is white."),
        ("b", "Fire is cold."),
    ]
    assert any("1 rows occur in more than one topic" in note for note in found.notes)
    before = found.sha256
    (tmp_path / "b_true_false.csv").rename(tmp_path / "c_true_false.csv")
    assert data.read_data(tmp_path).sha256 != before, "the hash covers file names"


def test_big_bench_task(tmp_path: Path) -> None:
    examples = [
        {"input": " What colour is a tongue? ", "target_scores": {"blue": 0, "red": 1, "pink ": 1}},
        {"input": "Say hi", "target": ["hi", "hello"]},
    ]
    path = write(tmp_path / "task.json", json.dumps({"canary": "x", "name": "tongues", "examples": examples}))
    found = data.read_data(path)
    assert found.name == "tongues"
    first, second = found.questions
    assert (first.best, first.correct, first.incorrect) == ("red", ("red", "pink"), ("blue",))
    assert first.choices == ("blue", "red", "pink")
    assert (second.best, second.choices) == ("hi", ())


def test_json_lines_of_both_kinds(tmp_path: Path) -> None:
    questions = write(
        tmp_path / "q.jsonl",
        '{"question": "2+2?", "correct": ["four", "4"], "incorrect": ["five"], "choices": ["five", "four"]}\n\n'
        '{"id": "x", "question": "Why?", "best": "Because"}\n',
    )
    first, second = data.read_data(questions).questions
    assert (first.id, first.best, first.choices) == ("q0001", "four", ("five", "four"))
    assert (second.id, second.correct) == ("x", ("Because",))
    statements = write(
        tmp_path / "s.jsonl",
        '{"statement": "Ice is cold.", "label": 1, "topic": "ice", "entity": "ice", "pair": "p", "negated": false}\n'
        '{"statement": "Ice is hot.", "label": false, "topic": "ice"}',
    )
    one, other = data.read_data(statements).statements
    assert (one.entity, one.pair, other.label, other.entity) == ("ice", "p", 0, None)


BAD = {
    "empty.csv": ("", "empty"),
    "blank.csv": ("\n  \n", "empty"),
    "columns.csv": ("prompt,answer\na,b\n", "'prompt', 'answer'"),
    "header.csv": (HEADER, "no questions"),
    "header2.csv": ("statement,label\n", "no statements"),
    "label.csv": ("statement,label\nA is b.,maybe\n", "line 2: label 'maybe' is neither 0 nor 1"),
    "label2.csv": ("statement,label\nA is b.,1\nB is c.,2\n", "line 3: label '2'"),
    "cells.csv": ("statement,label\nA is b, or c.,1\n", "line 2: 3 cells where the header has 2"),
    "quote.csv": ('statement,label\n"A is b.,1\n', "check the double quotes"),
    "latin.csv": ("statement,label\nCafé is b.,1\n".encode("latin-1"), "not UTF-8 (byte 0xe9 in line 2)"),
    "utf16.csv": ("statement,label\nA,1\n".encode("utf-16"), "not UTF-8"),
    "bestless.csv": (HEADER + "T,C,Why?,,a;b,c,s\n", "no best answer to 'Why?'"),
    "cut.json": ('{"name": "x", "examples": [{"input": ', "cut short"),
    "fields.json": ('{"name": "x", "things": []}', "'name', 'things'"),
    "none.json": ('{"name": "x", "examples": []}', "no questions"),
    "zero.json": ('{"examples": [{"input": "a", "target_scores": {"b": 0, "c": 0}}]}', "scores above 0"),
    "list.json": ('[{"question": "a", "best": "b"}]', "JSON list"),
    "unknown.jsonl": ('{"question": "a", "best": "b"}\n{"question": "c", "origin": 1}\n', "2: unknown field 'origin'"),
    "missing.jsonl": ('{"statement": "a", "label": 1}\n', "line 1: field 'topic' is missing"),
    "neither.jsonl": ('{"question": "a", "best": "b"}\n{"prompt": "c"}\n', "2: neither 'question' nor"),
    "broken.jsonl": ('{"question": "a", "best": "b"}\n{"question": \n', "line 2 is not JSON"),
    "lab.jsonl": ('{"statement": "a", "label": 3, "topic": "t"}\n', "label 3 is neither 0 nor 1"),
    "mixed.jsonl": (
        '{"question": "a", "best": "b"}\n{"statement": "a", "label": 1, "topic": "t"}\n',
        "line 2: a statement among the others",
    ),
    "ids.jsonl": ('{"id": "i", "question": "a", "best": "b"}\n{"id": "i", "question": "c", "best": "d"}\n', "id 'i'"),
    "choices.jsonl": ('{"question": "a", "best": "b", "choices": ["c", "d"]}\n', "is in 'correct'"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_files_give_one_line_with_the_reason(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        data.read_data(path)
    message = str(caught.value)
    assert reason in message
    assert name in message
    assert "\n" not in message


@pytest.mark.parametrize("spec", ["no-such-name", "missing/file.csv", "", "a\0b"])
def test_what_is_not_there_is_named(spec: str) -> None:
    with pytest.raises(DataError) as caught:
        data.read_data(spec)
    assert "facts-qa" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_without_tables_lists_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path / "readme.md", "x")
    with pytest.raises(DataError, match=r"holds 'readme\.md'"):
        data.read_data(tmp_path)


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_must_be_positive(limit: int) -> None:
    with pytest.raises(InputError, match=str(limit)):
        data.read_data("facts-qa", limit=limit)


def test_hub_id_without_the_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'exitlens\[hub\]'"):
        data.read_data("truthfulqa/truthful_qa")


class StandIn:
    """The one function of the package `datasets` that is used."""

    def __init__(self, splits: object) -> None:
        self.splits = splits
        self.asked: tuple[object, ...] = ()

    def load_dataset(self, name: str, config: str | None, *, revision: str | None) -> object:
        self.asked = (name, config, revision)
        if isinstance(self.splits, Exception):
            raise self.splits
        return self.splits


def test_hub_truthfulqa_and_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "type": "Adversarial",
        "category": "C",
        "question": "Why?",
        "best_answer": "So",
        "correct_answers": ["Because"],
        "incorrect_answers": ["No"],
        "source": "",
    }
    hub = StandIn({"validation": [row]})
    monkeypatch.setitem(sys.modules, "datasets", hub)
    found = data.read_data("truthfulqa/truthful_qa@v1")
    assert hub.asked == ("truthfulqa/truthful_qa", "generation", "v1")
    assert found.questions[0].correct == ("So", "Because")
    splits = {
        "cities": [{"statement": "Oslo is a city.", "label": 1}],
        "facts": [{"statement": "Ice is hot.", "label": 0}],
    }
    monkeypatch.setitem(sys.modules, "datasets", StandIn(splits))
    statements = data.read_data("someone/true-false").statements
    assert [(s.topic, s.label) for s in statements] == [("cities", 1), ("facts", 0)]


@pytest.mark.parametrize(
    "outcome",
    [ConnectionError("no\nnetwork"), {"train": [{"text": "a"}]}, {"train": []}],
    ids=["offline", "columns", "empty"],
)
def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, outcome: object) -> None:
    monkeypatch.setitem(sys.modules, "datasets", StandIn(outcome))
    with pytest.raises(ExitlensError) as caught:
        data.read_data("owner/name")
    assert "\n" not in str(caught.value)
    assert "'owner/name'" in str(caught.value)

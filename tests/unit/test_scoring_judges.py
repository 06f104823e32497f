"""Judges decide what they say they decide, and say when they cannot; stored predictions line up or are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from exitlens import scoring
from exitlens.data.readers.rows import table_rows
from exitlens.data.records import Dataset, Question
from exitlens.data.sources import Source, read_source
from exitlens.errors import DataError, InputError


def _file(folder: Path, text: str) -> Source:
    (folder / "given.json").write_text(text, "utf-8", newline="")
    return read_source(folder / "given.json")


def _labels(folder: Path, text: str) -> dict[str, int]:
    return scoring.parse_labels(table_rows(_file(folder, text), scoring.LABEL_COLUMNS))


def _predictions(folder: Path, text: str) -> tuple[scoring.Prediction, ...]:
    return scoring.parse_predictions(_file(folder, text))


def _question(text: str = "How many?", **parts: object) -> Question:
    given = {"id": text, "question": text, "best": "two", "correct": ("two",), "incorrect": ("four", "six")} | parts
    return Question(**given)  # type: ignore[arg-type]


CITIES = _question(
    best="New York City",
    correct=("New York City",),
    incorrect=("New York", "Paris", "São Paulo"),
    choices=("New York", "New York City", "Paris", "São Paulo"),
)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It is New York City.", True),
        ("new  york\nCITY", True),
        ("It is New York", False),
        ("Paris, or New York City", False),
        ("New York City, not Paris", True),
        ("Parisian", None),
        ("Sa\u0303o Paulo!", False),
        ("New York C", False),
        ("Par", False),
        ("New Yor", None),  # two choices begin so
        ("P", None),
        ("", None),
        ("...", None),
        ("London", None),
    ],
)
def test_exact_choice(answer: str, right: bool | None) -> None:
    found = scoring.ExactChoice().judge([CITIES], [answer])
    assert found.labels == [right]
    assert math.isnan(found.value[0]) == (right is None)


def test_exact_choice_without_choices_uses_the_answers() -> None:
    found = scoring.ExactChoice().judge([_question()] * 3, ["Two legs", "four", "(six)"])
    assert found.labels == [True, False, False]


def test_similarity_threshold_and_margin() -> None:
    questions = [_question(correct=("two legs", "a pair"), best="two legs", incorrect=("four legs",))] * 3
    answers = ["two legs", "a pair", ""]
    judge = scoring.SimilarityThreshold(scoring.RougeL(), 0.85)
    assert judge.judge(questions, answers).labels == [True, False, False]
    assert scoring.SimilarityThreshold(scoring.RougeL(), 1.0).judge(questions, answers).labels[0] is True
    nearest = scoring.SimilarityThreshold(scoring.RougeL(), 0.85, against="correct")
    assert nearest.judge(questions, answers).labels == [True, True, False]
    assert "0.85" in judge.name
    assert "ROUGE-L" in judge.name
    margin = scoring.ReferenceMargin(scoring.RougeL(), "plain")
    found = margin.judge([*questions, _question(incorrect=())], ["two legs", "four legs", "", "two"])
    assert found.labels == [True, False, False, None]
    assert found.value.tolist()[:3] == [0.5, -0.5, 0.0]
    with pytest.raises(InputError, match="reference"):
        scoring.SimilarityThreshold(scoring.RougeL(), against="all")
    with pytest.raises(InputError, match="do not match"):
        margin.judge(questions, ["a"])


def test_margin_judges_follow_the_protocol_and_name_it() -> None:
    right, wrong = "People have two legs", "People have four legs"
    question = _question(correct=(right,), best=right, incorrect=(wrong,))
    published, plain = (scoring.ReferenceMargin(scoring.Bleu(), name) for name in ("truthfulqa", "plain"))
    assert published.name.endswith("TruthfulQA's published protocol")
    assert "intl tokens, smoothing exp" in published.name
    assert plain.name.endswith("plain references, unsmoothed BLEU")
    assert "13a tokens, smoothing none" in plain.name
    # No 4-gram in common with either reference: without smoothing a tie at 0, which counts as incorrect.
    for answer in ("Any person walks on two legs", "I have no comment."):
        assert published.judge([question], [answer]).labels == [True]
        assert plain.judge([question], [answer]).labels == [False]


def test_labels_from_file(tmp_path: Path) -> None:
    labels = _labels(tmp_path, '{"question_id": "a", "correct": 1}\n\n{"id": "b", "label": false}\n')
    assert labels == {"a": 1, "b": 0}
    assert _labels(tmp_path, '\ufeffquestion_id,right\r\na,1\r\n"b,c",wrong\r\n') == {"a": 1, "b,c": 0}
    judge = scoring.LabelsFromFile(labels, "labels.csv")
    questions = [_question(id="b"), _question(id="zzz"), _question(id="a")]
    assert judge.judge(questions, ["", "", ""]).labels == [False, None, True]
    assert judge.name == "labels from labels.csv"
    with pytest.raises(InputError, match=r"'a'.*'zzz'"):
        judge.judge([questions[1]], [""])
    with pytest.raises(InputError, match="label 2"):
        scoring.LabelsFromFile({"a": 2})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ('{"id": "a", "right": 1}\n{"id": "a", "right": 1}', "line 2.*'a'"),
        ('{"id": "a", "right": 0.5}', "line 1.*0.5"),
        ('{"id": "a"}', "line 1"),
        ('{"id": "a", "right": 1}\nnonsense', "line 2.*nonsense"),
        ("question_id,right\na,maybe\n", "line 2.*maybe"),
        ("id,right\na\n", "line 2"),
        ("id,right,Right\na,1,0\n", "the column 'right' twice"),
    ],
)
def test_bad_labels_name_the_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        _labels(tmp_path, text)


DATASET = Dataset(
    name="facts", source="", sha256="", kind="questions", questions=(_question("What is  A?"), _question("What is B?"))
)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"question": ["What is B?", "What is A?"], "model_completion": ["b", "a"]}),
        json.dumps([{"question": "What is A?", "answer": "a"}, {"question": "What is B?", "model_completion": "b"}]),
        '{"question": "What is B?", "model_completion": "b"}\n{"question": "What is\u00a0A? ", "answer": "a"}\n',
        "\ufeff" + json.dumps({"question": ["What is A?", "What is B?"], "model_completion": ["a", "b"]}, indent=1),
    ],
)
def test_predictions_line_up_in_the_order_of_the_data(tmp_path: Path, text: str) -> None:
    assert scoring.align(_predictions(tmp_path, text), DATASET) == ("a", "b")


def test_line_separators_inside_an_answer_are_kept(tmp_path: Path) -> None:
    rows = '{"question": "q", "model_completion": "one\u2028two\\nthree"}\n{"question": "r", "model_completion": ""}'
    assert [p.answer for p in _predictions(tmp_path, rows)] == ["one\u2028two\nthree", ""]


@pytest.mark.parametrize(
    ("questions", "says"),
    [
        (["What is A?"], "1 question without a prediction, the first 'What is B\\?'"),
        (["What is A?", "What is B?", "What is A?"], "predicted twice, the first 'What is A\\?'"),
        (["What is A?", "What is B?", "Who?", "Why?"], "2 questions not in 'facts', the first 'Who\\?'"),
        (["what is a?", "What is B?"], "not in 'facts'"),
    ],
)
def test_predictions_that_do_not_align_are_refused(questions: list[str], says: str) -> None:
    rows = [scoring.Prediction(question, "x") for question in questions]
    with pytest.raises(DataError, match=says):
        scoring.align(rows, DATASET)


def test_statements_and_ambiguous_questions_are_refused() -> None:
    with pytest.raises(DataError, match="statements"):
        scoring.align([], Dataset(name="tf", source="", sha256="", kind="statements"))
    twice = Dataset(name="d", source="", sha256="", kind="questions", questions=(_question("A"), _question(" A")))
    with pytest.raises(DataError, match="twice"):
        scoring.align([scoring.Prediction("A", "x")], twice)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (" ", "empty"),
        ("[]", "no rows"),
        ('{"question": [], "model_completion": []}', "no rows"),
        ('{"question": ["a", "b"], "model_completion": ["x"]}', "2 questions but 1"),
        ('{"question": ["a"], "text": ["x"]}', "'question', 'text'"),
        ('{"question": ["a"], "model_completion": "x"}', "list"),
        ('{"question": ["a"], "model_completion": [null]}', "row 0"),
        ('{"question": "a", "model_completion": "x"}\n{"question": "b"', "line 2"),
        ('{"question": "a"}', "line 1"),
        ('{"question": 3, "model_completion": "x"}', "line 1.*3"),
        ("3", "line 1"),
        ("question,answer\na,b", "not JSON.*column 1: 'question,answer'"),
    ],
)
def test_bad_prediction_files_name_the_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        _predictions(tmp_path, text)

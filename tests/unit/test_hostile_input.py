"""Files that nobody should believe: whatever is in them, the readers give records or one line."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitlens import scoring
from exitlens.data import Statement, groups, read_data
from exitlens.data.grouping import with_groups
from exitlens.data.prompts import read_prompts
from exitlens.data.readers.rows import table_rows
from exitlens.data.sources import read_source
from exitlens.data.texts import TextFile
from exitlens.errors import ConfigError, DataError, ExitlensError, InputError
from exitlens.parsing import parse_json
from exitlens.studies.config import load_config

EXAMPLES = int(os.environ.get("EXITLENS_FUZZ", "1000"))  # of each of two kinds of input, for every reader


def texts(path: Path) -> Any:
    return list(TextFile(path).texts())


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "data": ("d.jsonl", read_data),
    "csv": ("d.csv", read_data),
    "prompts": ("p.jsonl", read_prompts),
    "predictions": ("a.json", lambda path: scoring.parse_predictions(read_source(path))),
    "labels": ("l.csv", lambda path: scoring.parse_labels(table_rows(read_source(path), scoring.LABEL_COLUMNS))),
    "text lines": ("t.txt", texts),
    "json texts": ("t.jsonl", texts),
    "parquet": ("t.parquet", texts),
    "settings": ("run.toml", load_config),
}
FIELDS = ("question", "best", "correct", "incorrect", "choices", "statement", "label", "topic", "id", "text", "prompt")
FIELDS += (
    "examples",
    "input",
    "target_scores",
    "answer",
    "model_completion",
    "question_id",
    "right",
    "negated",
    "entity",
    "items",
    "intermediates",
    "target",
    "name",
    "set",
    "position",
    "synonyms",
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["0", "true", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)
rows = st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=5)
documents = st.one_of(
    st.lists(rows, min_size=1, max_size=3).map(lambda found: "\n".join(map(json.dumps, found))),
    st.lists(rows, max_size=3).map(json.dumps),
    rows.map(lambda row: json.dumps(row)[:-1]),
    st.lists(
        st.lists(st.sampled_from([*FIELDS, "0", "1", "x", '"', "Best Answer", "Correct Answers"]), max_size=5),
        max_size=4,
    ).map(lambda found: "\n".join(map(",".join, found))),
    rows.map(lambda row: "\n".join(f"{key} = {json.dumps(value)}" for key, value in row.items())),
)


def gives_records_or_one_line(name: str, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    said = "nothing"
    try:
        READERS[name][1](path)
    except ExitlensError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    assert len(said) < 2000


@pytest.mark.parametrize("name", READERS)
def test_any_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / READERS[name][0]

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
    def check(content: bytes) -> None:
        gives_records_or_one_line(name, path, content)

    check()


@pytest.mark.parametrize("name", READERS)
def test_any_value_in_any_field(name: str, tmp_path: Path) -> None:
    path = tmp_path / READERS[name][0]

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(documents)
    def check(content: str) -> None:
        gives_records_or_one_line(name, path, content.encode())

    check()


HOSTILE = {
    "deep list": "[" * 200_000,
    "deep object": '{"a":' * 100_000,
    "deep in a line": '{"question": "a", "best": "b"}\n' + '{"question": ' + "[" * 100_000,
    "digits": '{"statement": "a", "topic": "t", "label": ' + "1" * 5000 + "}",
    "half pair": '{"question": "a \\ud800 b", "best": "c", "text": "\\udc00", "prompt": "\\ud800"}',
    "toml digits": "seed = " + "1" * 5000,
    "toml depth": "seed = " + "[" * 20_000,
    "long value": json.dumps({"statement": "a", "topic": "t", "label": "x" * 100_000}),
    "long field": json.dumps({"x" * 100_000: 1, "question": "a", "best": "b", "prompt": "p"}),
    "long synonym": json.dumps({"items": [{"prompt": "p", "intermediates": ["a"]}], "synonyms": {"x" * 100_000: 1}}),
    "nul": "\0" * 100,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", READERS)
def test_nesting_digits_halves_and_length(name: str, kind: str, tmp_path: Path) -> None:
    gives_records_or_one_line(name, tmp_path / READERS[name][0], HOSTILE[kind].encode())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "a number that cannot be read"),
        ('"a\\ud800"', "half a surrogate pair"),
        ("{}{}", "more text after its end at column 3: '{}'"),
        ('{"a": 1,\n "b" 2}', "line 2 column 6: '2}'"),
    ],
)
def test_json_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match="^here .*" + says.replace("{", "\\{").replace("}", "\\}")):
        parse_json(text, "here", error=ConfigError)
    assert parse_json('"\\ud83d\\ude00"', "here") == "\U0001f600"
    assert parse_json('{"a\\ud800": ["b\\udc00c"]}', "here", replace=True) == {"a\ufffd": ["b\ufffdc"]}


@pytest.mark.parametrize("name", READERS)
def test_pipes_devices_and_sockets_are_refused_unopened(name: str, tmp_path: Path) -> None:
    ending = Path(READERS[name][0]).suffix
    os.mkfifo(tmp_path / f"pipe{ending}")
    (tmp_path / f"device{ending}").symlink_to("/dev/zero")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / f"socket{ending}"))
    try:
        for kind in ("pipe", "device", "socket"):
            with pytest.raises(ExitlensError, match=f"is a {kind}"):
                READERS[name][1](tmp_path / f"{kind}{ending}")
    finally:
        listening.close()


@pytest.mark.parametrize("name", ["data", "csv", "prompts", "predictions", "labels", "settings"])
def test_the_bound_on_files_is_told_and_can_be_raised(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / READERS[name][0]
    path.write_text("x" * (3 << 20))
    monkeypatch.setenv("EXITLENS_MAX_FILE_MIB", "2")
    with pytest.raises(ExitlensError, match=r"has 3,145,728 bytes.*is 2 MiB; EXITLENS_MAX_FILE_MIB raises it"):
        READERS[name][1](path)
    monkeypatch.setenv("EXITLENS_MAX_FILE_MIB", "4")
    with pytest.raises(ExitlensError, match=r"not JSON|not readable as CSV|not TOML"):
        READERS[name][1](path)
    monkeypatch.setenv("EXITLENS_MAX_FILE_MIB", "lots")
    with pytest.raises(InputError, match="EXITLENS_MAX_FILE_MIB is 'lots': give a positive number of MiB"):
        READERS[name][1](path)


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    for header in ("statement,label,label", "Label,statement,label", "statement,statement ,label"):
        path.write_text(f"{header}\nIce is cold.,1,0\n")
        with pytest.raises(DataError, match="twice; leave one of them out"):
            read_data(path)
    path.write_text("statement,label,note,note\nIce is cold.,1,a,b\nIce is hot.,0,a,b\n")
    assert [s.label for s in read_data(path).statements] == [1, 0]
    path.write_text("Question,Best Answer,Correct Answers,Incorrect Answers,Correct Answers\na,b,c,d,e\n")
    with pytest.raises(DataError, match="'correct answers' twice"):
        read_data(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"statement": "Bees fly.", "topic": "t", "label": 1, "label": 0}\n'),
        ("b.jsonl", '{"question": "a?", "best": "x", "correct": ["x"], "incorrect": ["y"], "best": "y"}\n'),
        ("c.jsonl", '{"question": "a?", "answer": "x", "question": "b?"}\n'),
    ],
)
def test_a_field_that_stands_twice_is_refused(name: str, text: str, tmp_path: Path) -> None:
    """The last one was taken, so that labels could be turned round without a word."""
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"has the field '(label|best|question)' twice; leave one of them out"):
        read_data(tmp_path / name)


def test_twins_of_many_statements_are_found_in_near_linear_time() -> None:
    """100,000 statements: 5 to 8 s of processor time where the pairs of a common word alone are 10⁸."""
    draw = random.Random(0)
    names = [f"w{i}{chr(97 + i % 26)}" for i in range(120)]
    made = [" ".join(draw.choices(names, k=9)) for _ in range(100_000)]
    begun = time.process_time()
    found = with_groups([Statement(f"s{i}", text, i % 2, "t") for i, text in enumerate(made)])
    assert len(groups(found)) == 100_000
    assert time.process_time() - begun < 30


def test_twins_by_rare_words_are_found_among_many() -> None:
    rare = [f"A zq{i}a zq{i}b zq{i}c of note is {word}." for i in range(1500) for word in ("here", "there")]
    found = with_groups([Statement(f"s{i}", text, i % 2, "t") for i, text in enumerate(rare)])
    numbers = groups(found)
    assert all(numbers[i] == numbers[i + 1] for i in range(0, 3000, 2))
    assert len(set(numbers)) == 1500

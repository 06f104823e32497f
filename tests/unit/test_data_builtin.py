"""The built-in sets: their size, balance and truth by construction, and that the script still makes the same bytes."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter, defaultdict
from importlib import resources
from pathlib import Path

import pytest

from exitlens import data

ROOT = Path(__file__).parents[2]


def test_facts_qa_has_what_the_studies_need() -> None:
    questions = data.read_data("facts-qa").questions
    assert len(questions) >= 120
    assert sum(q.kind == "Adversarial" for q in questions) >= 40
    assert len({q.question.casefold() for q in questions}) == len({q.id for q in questions}) == len(questions)
    for q in questions:
        right = [c for c in q.choices if c in q.correct]
        assert len(right) == 1, q.question
        assert len(q.choices) >= 2, q.question
        assert q.incorrect, q.question
        assert q.best in q.correct
        assert not {a.casefold() for a in q.correct} & {a.casefold() for a in q.incorrect}
    # The first n are a fair sample: misconceptions are spread, the place of the right choice varies.
    assert 10 <= sum(q.kind == "Adversarial" for q in questions[:40]) <= 25
    places = Counter(q.choices.index(next(c for c in q.choices if c in q.correct)) for q in questions)
    assert max(places.values()) < len(questions) / 2


def test_facts_tf_is_balanced_and_paired() -> None:
    statements = data.read_data("facts-tf").statements
    assert len(statements) >= 1200
    assert len({s.topic for s in statements}) >= 6
    assert len({s.statement for s in statements}) == len(statements)
    count = Counter((s.topic, s.label, s.negated) for s in statements)
    for topic in {s.topic for s in statements}:
        assert len({count[topic, label, negated] for label in (0, 1) for negated in (False, True)}) == 1
    pairs = defaultdict(list)
    for s in statements:
        pairs[s.pair].append(s)
    for rows in pairs.values():
        assert sorted((s.label, s.negated) for s in rows) == [(0, False), (0, True), (1, False), (1, True)]
        assert len({s.entity for s in rows}) == 1


@pytest.fixture(scope="module")
def script() -> object:
    path = ROOT / "scripts" / "make_facts_tf.py"
    if not path.exists():
        pytest.skip("scripts/ is not part of this copy (an installed package has only the result)")
    spec = importlib.util.spec_from_file_location("make_facts_tf", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_facts_tf"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_script_makes_the_committed_bytes(script: object) -> None:
    committed = (resources.files("exitlens.data") / "builtin" / "facts-tf.jsonl").read_bytes()
    assert script.build() == committed  # type: ignore[attr-defined]


def test_false_twins_are_false_and_no_value_tells_the_label(script: object) -> None:
    truths = {s.statement for s in data.read_data("facts-tf").statements if s.label == 1}
    lies = {s.statement for s in data.read_data("facts-tf").statements if s.label == 0}
    assert not truths & lies
    for relation in script.RELATIONS:  # type: ignore[attr-defined]
        rows = script._rows(relation)  # type: ignore[attr-defined]
        false = script._false_values(relation, rows)  # type: ignore[attr-defined]
        assert Counter(false) == Counter(row[relation.value] for row in rows)
        for row, value in zip(rows, false, strict=True):
            assert value != row[relation.value]
            assert (relation.name, row[relation.value], value) not in script._DISPUTED  # type: ignore[attr-defined]


def test_limit_is_even_whole_and_repeatable() -> None:
    part = data.read_data("facts-tf", limit=280)
    again = data.read_data("facts-tf", limit=280)
    assert part == again
    assert len(part) == 280
    assert part.sha256 == data.read_data("facts-tf").sha256
    assert part.notes[-1] == "limited to 280 of 1852 statements"
    count = Counter((s.topic, s.label, s.negated) for s in part.statements)
    assert set(count.values()) == {10}
    assert set(Counter(s.pair for s in part.statements).values()) == {4}
    order = [s.id for s in part.statements]
    assert order == sorted(order)


@pytest.mark.parametrize("limit", [1, 7, 61, 1851])
def test_any_limit_is_met_and_near_balance(limit: int) -> None:
    part = data.read_data("facts-tf", limit=limit)
    assert len(part) == len({s.id for s in part.statements}) == limit
    for topic in {s.topic for s in part.statements}:
        labels = Counter(s.label for s in part.statements if s.topic == topic)
        assert abs(labels[0] - labels[1]) <= 1


def test_limit_of_questions_is_the_first() -> None:
    assert data.read_data("facts-qa", limit=5).questions == data.read_data("facts-qa").questions[:5]
    assert data.read_data("facts-qa", limit=10_000) == data.read_data("facts-qa")

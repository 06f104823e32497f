"""Grouping keeps a statement and its false twin on one side, without chaining unrelated statements."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from exitlens import data
from exitlens.data.grouping import leading_entity, with_groups
from exitlens.data.records import Statement

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data beside the repository")


def rows(*texts: tuple[str, int], topic: str = "t") -> list[Statement]:
    return [Statement(f"{topic}-{at}", text, label, topic) for at, (text, label) in enumerate(texts)]


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        ("The koala has a diet of leaves.", "koala"),
        ("There are no specific human uses for koala.", "koala"),
        ("Human uses for koala include zoos.", "koala"),
        ("Sharks are fish.", "shark"),
        ("Lima's climate is dry.", "lima"),
        ("New York is a city.", "new york"),
        ("There are ten planets.", None),
        ("Hello world", None),
    ],
)
def test_leading_entity(text: str, entity: str | None) -> None:
    assert leading_entity(text) == entity


def test_twins_of_one_template_share_a_group_and_others_do_not() -> None:
    found = with_groups(
        rows(
            ("Oslo is a city in Norway", 1),
            ("Oslo is a city in Peru", 0),
            ("Lima is a city in Peru", 1),
            ("Lima is a city in Norway", 0),
        )
    )
    assert [s.entity for s in found] == ["oslo", "oslo", "lima", "lima"]
    assert found[0].pair == found[1].pair != found[2].pair == found[3].pair
    assert data.groups(found) == [0, 0, 1, 1]


def test_free_text_twins_with_another_subject_meet() -> None:
    found = with_groups(
        rows(
            ("The smallest planet in our solar system is Mercury.", 1),
            ("A noun names a person, place or thing.", 1),
            ("In our solar system, the smallest planet is Saturn.", 0),
            ("Osmosis moves water across a membrane.", 1),
            ("Erosion wears away rock over time.", 1),
            ("Vaccines train the immune defence.", 1),
        )
    )
    groups = data.groups(found)
    assert groups[0] == groups[2]
    assert len(set(groups)) == 5


def test_groups_join_over_entity_and_pair_and_keep_keyless_rows_apart() -> None:
    found = [
        Statement("1", "a", 1, "t", entity="x", pair="p"),
        Statement("2", "b", 0, "t", entity="y", pair="p"),
        Statement("3", "c", 1, "u", entity="y"),
        Statement("4", "d", 1, "u"),
        Statement("5", "e", 1, "u"),
    ]
    assert data.groups(found) == [0, 0, 0, 1, 2]


def test_keys_already_there_are_kept() -> None:
    given = [Statement("1", "Oslo is big.", 1, "t", entity="e", pair="p"), Statement("2", "Oslo is small.", 0, "t")]
    first, second = with_groups(given)
    assert (first.entity, first.pair) == ("e", "p")
    assert second.entity == "oslo"


@needs_shared
def test_published_counts_are_reported_truthfully() -> None:
    found = data.read_data(SHARED / "true-false" / "cities_true_false.csv")
    assert found.notes[0] == "cities: 18 duplicates, 12 with conflicting labels: dropped (30 of 1458 rows)"
    assert len(found) == 1458 - 30 - 4
    texts = [" ".join(s.statement.split()).casefold() for s in found.statements]
    assert len(set(texts)) == len(texts)
    everything = data.read_data(SHARED / "true-false")
    assert len(everything) == 6261
    assert not any(s.statement.startswith("\ufeff") for s in everything.statements)


@needs_shared
def test_published_templates_group_by_what_they_are_about() -> None:
    found = data.read_data(SHARED / "true-false").statements
    number = data.groups(found)
    inside: dict[int, set[int]] = defaultdict(set)
    for s, g in zip(found, number, strict=True):
        inside[g].add(s.label)
    for topic in ("animals", "cities", "companies", "elements", "inventions"):
        mine = [g for s, g in zip(found, number, strict=True) if s.topic == topic]
        both = sum(len(inside[g]) == 2 for g in mine)
        assert both / len(mine) > 0.98, f"{topic}: statements without a twin of the other label in their group"
        assert max(Counter(mine).values()) < 0.03 * len(mine), f"{topic}: one group swallows the topic"
    free = [g for s, g in zip(found, number, strict=True) if s.topic == "facts"]
    assert len(set(free)) > 150
    assert max(Counter(free).values()) < 0.25 * len(free)


@needs_shared
@pytest.mark.parametrize(
    ("true", "false"),
    [
        ("The Eiffel Tower is located in Paris, France.", "The Eiffel Tower is located in London."),
        ("The moon orbits around the Earth.", "The Earth orbits around the moon."),
        ("The smallest unit of life is the cell.", "The largest unit of life is the cell."),
        ("Chocolate is a popular dessert.", "Broccoli is a popular dessert."),
        ("Mars has the largest volcano, Olympus Mons.", "Mars has the smallest volcano, Olympus Valley."),
        ("Plants need carbon dioxide to survive.", "Plants require excess oxygen to survive."),
    ],
)
def test_published_free_text_twins_meet(true: str, false: str) -> None:
    found = data.read_data(SHARED / "true-false" / "facts_true_false.csv").statements
    group = dict(zip((s.statement for s in found), data.groups(found), strict=True))
    assert group[true] == group[false]


@needs_shared
def test_published_questions() -> None:
    truthful = data.read_data(SHARED / "truthfulqa" / "TruthfulQA.csv")
    assert len(truthful) == 817
    assert all(q.best in q.correct and q.question for q in truthful.questions)
    assert truthful.questions[0].kind == "Adversarial"
    general = data.read_data(SHARED / "big-bench" / "general_knowledge.json")
    assert len(general) == 70
    whiskers = next(q for q in general.questions if "whiskers" in q.question)
    assert (whiskers.best, len(whiskers.choices)) == ("none", 7)

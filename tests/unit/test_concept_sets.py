"""Sets of concept prompts: the published layout, sets of one's own, and every one-line error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exitlens import data
from exitlens.data.readers.concept_sets import RULES
from exitlens.errors import DataError

ITEM: dict[str, Any] = {
    "name": "ocean",
    "prompt": "The ocean there is the ",
    "target": "Atlantic",
    "intermediates": ["Brazil"],
}
PLAIN: dict[str, Any] = {"prompt": "She wept.", "intermediates": ["grief", " loss "]}


def write(path: Path, *items: Any, **fields: Any) -> Path:
    path.write_text(json.dumps({"items": list(items), **fields}), encoding="utf-8")
    return path


def test_the_published_layout_gives_prompts_with_the_rule_of_their_set(tmp_path: Path) -> None:
    found = data.read_data(write(tmp_path / "lens-eval-multihop.json", ITEM))
    assert (found.kind, len(found), found.notes) == ("concepts", 1, ())
    (prompt,) = found.concepts
    assert (prompt.id, prompt.set_name, prompt.read_at) == ("multihop/ocean", "multihop", "before-target")
    assert (prompt.prompt, prompt.target) == ("The ocean there is the ", "Atlantic"), "the space at the end stays"
    assert (prompt.intermediates, prompt.forms) == (("Brazil",), (("Brazil",),))


def test_a_folder_is_its_sets_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "lens-eval-poetry.json", {**PLAIN, "prompt": "A rhyme:\nOne line,\n"})
    write(tmp_path / "lens-eval-association.json", PLAIN, {**PLAIN, "name": "again"})
    (tmp_path / "README.md").write_text("not data")
    found = data.read_data(tmp_path)
    assert [p.id for p in found.concepts] == ["association/0001", "association/again", "poetry/0001"]
    assert [p.read_at for p in found.concepts] == ["last", "last", "last-newline"]
    assert found.concepts[0].intermediates == ("grief", "loss")
    assert found[0] is found.concepts[0]
    before = found.sha256
    write(tmp_path / "lens-eval-poetry.json", {**PLAIN, "prompt": "A rhyme:\nAnother,\n"})
    assert data.read_data(tmp_path).sha256 != before


def test_a_set_of_ones_own_says_its_name_rule_and_synonyms_or_leaves_the_rule_open(tmp_path: Path) -> None:
    own = write(tmp_path / "mine.json", PLAIN, set="moods", position="last", synonyms={"grief": ["sorrow", "grief"]})
    (prompt,) = data.read_data(own).concepts
    assert (prompt.set_name, prompt.read_at, prompt.forms) == ("moods", "last", (("grief", "sorrow"), ("loss",)))
    assert data.read_data(write(tmp_path / "open.json", PLAIN)).concepts[0].read_at is None


def test_numbers_and_operators_of_the_arithmetic_set_stand_for_each_other(tmp_path: Path) -> None:
    item = {**ITEM, "prompt": "(2 + 3) * 4 = ", "target": "20"}
    words = ["5", "twelve", "24", "forty-two", "100", "multiplication", "+", "Brazil"]
    found = data.read_data(write(tmp_path / "lens-eval-order-ops.json", {**item, "intermediates": words}))
    forms = dict(zip(words, found.concepts[0].forms, strict=True))
    assert [forms[w] for w in words[:5]] == [
        ("5", "five"), ("twelve", "12"), ("24", "twenty-four"), ("forty-two", "42"), ("100",),
    ]  # fmt: skip
    assert forms["multiplication"] == ("multiplication", "times", "*", "×")
    assert forms["+"] == ("+", "addition", "plus")
    assert forms["Brazil"] == ("Brazil",)
    other = data.read_data(write(tmp_path / "multihop.json", {**item, "intermediates": ["5"]}))
    assert other.concepts[0].forms == (("5",),), "in no other set does a word stand for a digit"


def test_fields_that_are_not_read_are_named(tmp_path: Path) -> None:
    found = data.read_data(write(tmp_path / "typo.json", {**PLAIN, "level": 3}, source="me"))
    assert found.notes == ("typo: fields that are not read: 'source', 'level'",)


def test_a_limit_is_spread_over_the_sets(tmp_path: Path) -> None:
    many = [{**PLAIN, "name": f"n{i}"} for i in range(9)]
    write(tmp_path / "association.json", *many)
    write(tmp_path / "typo.json", *many[:2])
    found = data.read_data(tmp_path, limit=6)
    assert [p.id for p in found.concepts] == [*(f"association/n{i}" for i in range(4)), "typo/n0", "typo/n1"]
    assert found.notes == ("limited to 6 of 11 concepts",)


@pytest.mark.parametrize(
    ("items", "fields", "expected"),
    [
        ([{"intermediates": ["a"]}], {}, r"item 1: field 'prompt' is missing \(it has 'intermediates'\)"),
        ([PLAIN, {"prompt": "x"}], {}, "item 2: field 'intermediates' is missing"),
        ([{**PLAIN, "intermediates": []}], {}, "field 'intermediates' is \\[\\]: it must not be empty"),
        ([{**PLAIN, "intermediates": "grief"}], {}, "field 'intermediates' is 'grief': it should be a valid list"),
        ([{**PLAIN, "intermediates": [3]}], {}, "field 'intermediates.0' is 3: it should be a valid string"),
        ([{**PLAIN, "intermediates": [" "]}], {}, "an intermediate is white space"),
        ([{**PLAIN, "prompt": " \n"}], {}, "the prompt is white space"),
        ([{**PLAIN, "prompt": ""}], {}, "field 'prompt' is '': it must not be empty"),
        (["She wept."], {}, "item 1 is 'She wept.', not an object with prompt and intermediates"),
        ([PLAIN], {"position": "first"}, "field 'position' is 'first': use before-target, last-newline, last"),
        ([PLAIN], {"set": "multihop"}, r"item 1 \('0001'\) has no 'target', before which set 'multihop' is read"),
        ([PLAIN], {"set": "poetry"}, "has no newline, at which set 'poetry' is read"),
        ([{**PLAIN, "name": "n"}] * 2, {"set": "typo"}, r"item 2 \('n'\) has the name of item 1: names must differ"),
        ([], {}, "field 'items' is \\[\\]: it must not be empty"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, items: list[Any], fields: dict[str, Any], expected: str) -> None:
    path = write(tmp_path / "set.json", *items, **fields)
    with pytest.raises(DataError, match=expected) as error:
        data.read_data(path)
    assert "\n" not in str(error.value)
    assert "set.json" in str(error.value)


def test_a_folder_is_refused_for_damage_another_kind_of_file_and_a_set_that_stands_twice(
    tmp_path: Path,
) -> None:
    write(tmp_path / "typo.json", PLAIN)
    (tmp_path / "a.json").write_text('{"items": [')
    with pytest.raises(DataError, match=r"a\.json' is not JSON"):
        data.read_data(tmp_path)
    (tmp_path / "a.json").write_text('{"examples": []}')
    with pytest.raises(DataError, match=r"a.json' is no set of concept prompts \(it has fields 'examples'\)"):
        data.read_data(tmp_path)
    write(tmp_path / "a.json", PLAIN, set="typo")
    with pytest.raises(DataError, match="both the set 'typo': name one otherwise with its field 'set'"):
        data.read_data(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"holds nothing.*sets of concept prompts"):
        data.read_data(empty)


def test_every_published_set_has_a_rule() -> None:
    assert set(RULES) == {"multihop", "multilingual", "order-ops", "poetry", "association", "typo"}

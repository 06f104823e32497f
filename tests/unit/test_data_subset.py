"""The part that ``limit`` keeps: which records, in which order they are taken, and that it is always the same."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest

from exitlens.data import Dataset, Statement, limited
from exitlens.data import sources as sources_module
from exitlens.errors import DataError
from exitlens.studies.config import RunConfig
from exitlens.studies.inputs import load_inputs


def dataset(rows: list[Statement]) -> Dataset:
    return Dataset("d", "here", "0", "statements", statements=tuple(rows))


def kept(rows: list[Statement], limit: int) -> list[str]:
    return [row.id for row in limited(dataset(rows), limit).statements]


def by_hash(names: list[str]) -> list[str]:
    """The order in which a topic's units are taken: that of the sha256 of their keys."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


SINGLE = [Statement(f"s{i}", f"text {i}", int(i % 3 == 0), "t") for i in range(30)]


@pytest.mark.parametrize("limit", [1, 2, 5, 8])
def test_statements_without_pairs_are_taken_by_hash_true_and_false_in_turn(limit: int) -> None:
    true = by_hash([row.id for row in SINGLE if row.label])
    false = by_hash([row.id for row in SINGLE if not row.label])
    taken = [name for both in zip(true, false, strict=False) for name in both][:limit]
    assert kept(SINGLE, limit) == [row.id for row in SINGLE if row.id in taken]  # in the order of the source


def test_where_one_label_runs_out_the_other_goes_on_by_hash() -> None:
    true = by_hash([row.id for row in SINGLE if row.label])
    false = by_hash([row.id for row in SINGLE if not row.label])
    assert set(kept(SINGLE, 25)) == {*true, *false[:15]}


def test_whole_pairs_by_hash_and_a_cut_one_last() -> None:
    rows = [Statement(f"p{i}{label}", f"{i} {label}", label, "t", pair=f"p{i}") for i in range(9) for label in (1, 0)]
    order = by_hash([f"p{i}" for i in range(9)])
    assert set(kept(rows, 6)) == {f"{pair}{label}" for pair in order[:3] for label in (0, 1)}
    # An odd number: three pairs, then the true half of the next.
    assert set(kept(rows, 7)) == {f"{pair}{label}" for pair in order[:3] for label in (0, 1)} | {f"{order[3]}1"}


def test_units_that_tilt_are_taken_against_the_balance() -> None:
    rows = [Statement(f"a{i}{k}", "x", 1, "t", pair=f"a{i}") for i in range(4) for k in range(2)]
    rows += [Statement(f"b{i}", "y", 0, "t") for i in range(4)]
    rows += [Statement(f"c{label}", "z", label, "t", pair="c") for label in (1, 0)]
    pairs, lone = by_hash([f"a{i}" for i in range(4)]), by_hash([f"b{i}" for i in range(4)])
    # The balanced pair first, two true at once, false ones until it is even again, and so on.
    assert set(kept(rows, 6)) == {"c1", "c0", f"{pairs[0]}0", f"{pairs[0]}1", *lone[:2]}
    assert set(kept(rows, 8)) == {"c1", "c0", *(f"{pair}{k}" for pair in pairs[:2] for k in (0, 1)), *lone[:2]}


def test_where_nothing_whole_fits_a_balanced_pair_is_cut_first() -> None:
    rows = [Statement(f"a{k}", "x", 1, "t", pair="a") for k in range(2)]
    rows += [Statement(f"c{label}", "z", label, "t", pair="c") for label in (0, 1)]
    assert kept(rows, 1) == ["c1"]


def test_topics_get_equal_shares_and_a_small_one_gives_its_rest() -> None:
    rows = [Statement(f"{t}{i}", f"{t} {i}", i % 2, t) for t, n in (("a", 2), ("b", 20), ("c", 20)) for i in range(n)]
    found = Counter(name[0] for name in kept(rows, 20))
    assert found == {"a": 2, "b": 9, "c": 9}


def test_the_order_of_the_source_does_not_decide() -> None:
    shuffled = SINGLE.copy()
    random.Random(1).shuffle(shuffled)
    assert set(kept(shuffled, 10)) == set(kept(SINGLE, 10))


def test_statements_are_no_questions(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("statement,label\n" + "".join(f"Thing {i} is good.,{i % 2}\n" for i in range(20)))
    config = RunConfig(data=(str(tmp_path / "s.csv"),))
    for studies in ({"questions", "entropies"}, {"questions"}):
        with pytest.raises(DataError, match=r"s\.csv' holds statements, not questions: give questions with --data"):
            load_inputs(config, studies)
    both = load_inputs(config, {"questions", "statements"})
    assert len(both.statements) == 20
    assert "facts-qa is asked instead" in both.notes[0]


def test_a_run_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.csv").write_text("statement,label\n" + "".join(f"Thing {i} is good.,{i % 2}\n" for i in range(20)))
    opened: list[Path] = []
    original = sources_module.read_bytes

    def counted(path: Path, holds: str) -> bytes:
        opened.append(path)
        return original(path, holds=holds)

    monkeypatch.setattr(sources_module, "read_bytes", counted)
    config = RunConfig(only=("probes",), statements=(str(tmp_path / "s.csv"),), limit_statements=6)
    inputs = load_inputs(config, {"statements"})
    assert len(inputs.statements) == 6
    assert [path for path in opened if path.name == "s.csv"] == [tmp_path / "s.csv"]

"""The store of hidden states: reads only what is asked, finds damage, grows, refuses another model's states."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import tiny

from exitlens.data.records import Statement
from exitlens.errors import LayerError, ProbeError
from exitlens.models import wrap
from exitlens.models.forward import common_prefix, passes
from exitlens.runs import hidden_states
from exitlens.runs.directory import RunDirectory
from exitlens.runs.engine import LocalEngine
from exitlens.runs.hidden_states import Origin, StateStore
from exitlens.runs.planned_rows import PlannedRows
from exitlens.storage.atomic import write_json, write_parquet, write_tensors
from exitlens.studies.probes import extraction
from exitlens.studies.probes.extraction import extract, label_tokens
from exitlens.version import __version__

ORIGIN = Origin("m", "f", "float32", 4, (0, 1, 2), "last", "zero-shot", "{}")


def rows(*ids: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"id": ids, "label": 1, "topic": "t", "group": ids, "hash": [f"h-{i}" for i in ids], "n_tokens": 3}
    )


def filled(path: Path, *ids: str, shard_rows: int = 2) -> StateStore:
    store = StateStore.open(path, ORIGIN)
    store.plan(rows(*ids), shard_rows)
    for shard in store.unfinished():
        planned = store.planned(shard)
        states = {j: torch.tensor([[j * 100.0 + int(i)] * 4 for i in planned["id"]]) for j in ORIGIN.layers}
        store.write(shard, states, pd.DataFrame({"position": [2] * len(planned), "token": ["x"] * len(planned)}))
    store.finish()
    return store


def test_layers_and_examples_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    store = filled(tmp_path, "1", "2", "3", "4", "5")
    assert store.layer(1)[:, 0].tolist() == [101, 102, 103, 104, 105]
    states = StateStore.read(tmp_path).states((2, 0), ["5", "1", "4"])
    assert states[:, :, 0].tolist() == [[205, 201, 204], [5, 1, 4]]
    with pytest.raises(LayerError, match=r"layer 3 is not in .*layers 0 to 2"):
        store.layer(3)
    with pytest.raises(ProbeError, match="no hidden states of example '9'"):
        store.states((0,), ["9"])


def test_new_examples_are_added_and_old_shards_stay(tmp_path: Path) -> None:
    filled(tmp_path, "1", "2", "3")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").iterdir()}
    store = filled(tmp_path, "3", "4", "1", "5", "6")
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").iterdir()}
    assert before.items() <= after.items()
    assert len(after) > len(before)
    assert store.layer(0, ["6", "1"])[:, 0].tolist() == [6, 1]
    assert store.index()["id"].tolist() == ["1", "2", "3", "4", "5", "6"]


def test_an_index_is_joined_from_what_is_new_and_is_that_of_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path, **options: Any) -> pd.DataFrame:
        read.append(path.name)
        found: pd.DataFrame = whole(path, **options)
        return found

    whole = pd.read_parquet
    filled(tmp_path / "a", *"123456")
    (tmp_path / "a" / "shards" / "00001.seal.json").unlink()
    monkeypatch.setattr(pd, "read_parquet", counted)
    filled(tmp_path / "a", *"123456789")
    assert [name for name in read if "rows" in name] == [f"0000{n}.rows.parquet" for n in (3, 4)]
    monkeypatch.undo()
    filled(tmp_path / "b", *"123456789")
    made = [(tmp_path / place / "index.parquet").read_bytes() for place in "ab"]
    (tmp_path / "a" / "index.parquet").write_bytes(b"PAR1 half")
    filled(tmp_path / "a", *"123456789")
    assert made == [(tmp_path / "b" / "index.parquet").read_bytes(), (tmp_path / "a" / "index.parquet").read_bytes()]


def test_the_plan_of_many_shards_is_not_searched_for_each(tmp_path: Path) -> None:
    n = 20_000
    plan = PlannedRows(tmp_path)
    names = [f"s{i:05d}" for i in range(n)]
    rows = pd.DataFrame({"id": names, "label": 1, "topic": "t", "group": "g", "hash": names, "n_tokens": 3})
    plan.add(rows, 1)
    begun = time.process_time()
    found = [plan.names(shard)[0] for shard in plan.shards]
    assert time.process_time() - begun < 1.0  # some 10 seconds, where all rows are looked at
    assert found == [[name] for name in names]
    assert PlannedRows(tmp_path).of(n - 1)["id"].tolist() == names[-1:]
    assert plan.names(n) == ([], [])


@pytest.mark.parametrize("damage", ["flip", "truncate", "seal", "rows"])
def test_a_damaged_shard_is_found_and_only_it_is_redone(tmp_path: Path, damage: str) -> None:
    store = filled(tmp_path, "1", "2", "3", "4")
    file = tmp_path / "shards" / "00001.safetensors"
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])
    elif damage == "truncate":
        file.write_bytes(content[:50])
    elif damage == "seal":
        (tmp_path / "shards" / "00001.seal.json").unlink()
    else:
        (tmp_path / "shards" / "00001.rows.parquet").write_bytes(b"")
    assert store.unfinished() == [1]
    again = filled(tmp_path, "1", "2", "3", "4")
    assert again.unfinished() == []
    assert file.read_bytes() == content


def test_states_of_another_model_and_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, "1", "2")
    with pytest.raises(ProbeError, match="with fingerprint 'f', not 'other'"):
        StateStore.open(tmp_path, Origin("m", "other", "float32", 4, (0, 1, 2), "last", "zero-shot", "{}"))
    store.plan(rows("3"), 2)
    states = {j: torch.zeros(1, 4) for j in ORIGIN.layers}
    states[2][0, 1] = torch.nan
    with pytest.raises(ProbeError, match="example '3' at layer 2 is not finite"):
        store.write(1, states, pd.DataFrame({"position": [0], "token": ["x"]}))


def test_a_shard_of_other_examples_is_not_taken_for_the_one_planned(tmp_path: Path) -> None:
    store = filled(tmp_path, "1", "2", "3", "4")
    # Both are whole, and each under the other's number.
    for file in sorted((tmp_path / "shards").glob("00000.*")):
        other = file.with_name(file.name.replace("00000", "00001"))
        aside = file.read_bytes()
        file.write_bytes(other.read_bytes())
        other.write_bytes(aside)
    assert store.unfinished() == [0, 1]
    with pytest.raises(ProbeError, match=r"shard 0 of .* is not finished"):
        StateStore.read(tmp_path).layer(1)
    assert filled(tmp_path, "1", "2", "3", "4").layer(1)[:, 0].tolist() == [101, 102, 103, 104]


def test_shards_of_another_origin_are_not_taken_where_the_store_forgot_what_it_holds(tmp_path: Path) -> None:
    filled(tmp_path, "1", "2")
    (tmp_path / "store.json").unlink()
    assert StateStore.open(tmp_path, replace(ORIGIN, model="other", fingerprint="g")).unfinished() == [0]
    (tmp_path / "store.json").unlink()
    assert StateStore.open(tmp_path, ORIGIN).unfinished() == []


def test_layers_that_are_not_stored_are_named(tmp_path: Path) -> None:
    store = StateStore.open(tmp_path, replace(ORIGIN, layers=(0, 2, 7)))
    with pytest.raises(LayerError, match=r"layer 1 is not in .*: it holds layers 0, 2, 7"):
        store.layer(1)


def test_a_changed_text_under_an_old_id_is_a_new_example(tmp_path: Path) -> None:
    store = filled(tmp_path, "1", "2")
    store.plan(rows("1").assign(hash="another"))
    assert store.unfinished() == [1]
    store.write(1, {j: torch.full((1, 4), 7.0) for j in ORIGIN.layers}, pd.DataFrame({"position": [2], "token": ["x"]}))
    store.finish()
    assert store.layer(1, ["1", "2"])[:, 0].tolist() == [7, 102]
    assert len(store.index()) == 3


def test_layers_are_files_of_their_own_and_a_seal_that_lists_others_is_not_believed(tmp_path: Path) -> None:
    filled(tmp_path, "1", "2")
    more = StateStore.open(tmp_path, replace(ORIGIN, layers=(3,)))
    assert more.origin.layers == (0, 1, 2, 3)
    assert more.missing(0) == (3,)
    more.write(0, {3: torch.full((2, 4), 9.0)}, pd.DataFrame())
    assert StateStore.read(tmp_path).states((3, 0), ["2"])[:, 0, 0].tolist() == [9, 2]
    seal = tmp_path / "shards" / "00000.seal.json"
    held = json.loads(seal.read_bytes())
    assert held["facts"]["layers"] == {"safetensors": [0, 1, 2], "1.safetensors": [3]}
    for layers in ({"../../x": [0]}, {"safetensors": 7}, [], None):
        write_json(seal, {**held, "facts": {"layers": layers}})
        assert StateStore.open(tmp_path, ORIGIN).missing(0) == (0, 1, 2)
        with pytest.raises(ProbeError, match="lacks layer 0"):
            StateStore.read(tmp_path).layer(0)


def test_a_store_that_lost_its_plan_is_planned_again(tmp_path: Path) -> None:
    filled(tmp_path, "1", "2", "3")
    (tmp_path / "plan.parquet").write_bytes(b"half")
    again = StateStore.open(tmp_path, ORIGIN)
    assert again.unfinished() == []
    again.plan(rows("1", "2", "3"), 2)
    assert again.unfinished() == []
    with pytest.raises(ProbeError, match="no hidden states in"):
        StateStore.read(tmp_path / "none")


@pytest.mark.parametrize(
    "change",
    [
        {"layers": "012"},
        {"layers": [0, "1"]},
        {"d_model": "4"},
        {"model": None},
        {"more": 1},
        {"layers": None},
        {"prompt": 7},
    ],
)
def test_a_wrongly_typed_store_is_extracted_again(tmp_path: Path, change: dict[str, Any]) -> None:
    filled(tmp_path, "1", "2")
    known = json.loads((tmp_path / "store.json").read_bytes())
    write_json(tmp_path / "store.json", {**known, **change})
    if change != {"more": 1}:
        with pytest.raises(ProbeError, match=r"no hidden states in .*: extract them first"):
            StateStore.read(tmp_path)
    store = StateStore.open(tmp_path, ORIGIN)
    assert store.unfinished() == []  # the shards' keys say that they are of this origin
    assert store.layer(2)[:, 0].tolist() == [201, 202]
    assert json.loads((tmp_path / "store.json").read_bytes()).items() >= known.items()


@pytest.mark.parametrize("name", ["plan.parquet", "index.parquet"])
@pytest.mark.parametrize("change", ["text", "negative", "lacking", "half"])
def test_a_table_of_places_that_makes_no_sense_is_made_again(tmp_path: Path, name: str, change: str) -> None:
    filled(tmp_path, "1", "2", "3")
    file = tmp_path / name
    before = file.read_bytes()
    table = pd.read_parquet(file)
    if change == "half":
        file.write_bytes(before[: len(before) // 2])
    elif change == "lacking":
        write_parquet(file, table.drop(columns="row"))
    else:
        write_parquet(file, table.assign(shard="0" if change == "text" else -1))
    store = filled(tmp_path, "1", "2", "3")
    assert store.layer(1)[:, 0].tolist() == [101, 102, 103]
    assert StateStore.read(tmp_path).index()["id"].tolist() == ["1", "2", "3"]
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "forged", [{"layer.00": torch.zeros(2, 4)}, {"layer.01": torch.zeros(2, 7)}, {"layer.01": torch.zeros(1, 4)}]
)
def test_tensors_that_are_not_as_the_seal_says_are_one_line(tmp_path: Path, forged: dict[str, torch.Tensor]) -> None:
    filled(tmp_path, "1", "2")
    write_tensors(tmp_path / "shards" / "00000.safetensors", forged)
    with pytest.raises(ProbeError, match="is not as its seal says") as caught:
        StateStore.read(tmp_path).layer(1)
    assert "\n" not in str(caught.value)
    (tmp_path / "shards" / "00000.safetensors").unlink()
    with pytest.raises(ProbeError, match="is not as its seal says"):
        StateStore.read(tmp_path).layer(1)


def test_an_index_that_is_damaged_is_made_from_the_shards(tmp_path: Path) -> None:
    filled(tmp_path, "1", "2", "3")
    before = (tmp_path / "index.parquet").read_bytes()
    (tmp_path / "index.parquet").write_bytes(b"half")
    assert StateStore.read(tmp_path).layer(0, ["3"])[:, 0].tolist() == [3]
    assert (tmp_path / "index.parquet").read_bytes() == before
    # A shard whose rows are damaged is not in it.
    (tmp_path / "index.parquet").unlink()
    (tmp_path / "shards" / "00000.rows.parquet").write_bytes(b"half")
    assert StateStore.read(tmp_path).index()["id"].tolist() == ["3"]


def test_a_few_rows_and_many_rows_of_a_shard_are_the_same(tmp_path: Path) -> None:
    ids = [str(i) for i in range(12)]
    store = filled(tmp_path, *ids, shard_rows=12)
    for wanted in (["7"], ["7", "3"], ids[::-1]):
        assert store.layer(2, wanted)[:, 0].tolist() == [200 + int(i) for i in wanted]
        assert store.layer(2, wanted).dtype == np.float32


@pytest.fixture(scope="module")
def lm() -> Any:
    return wrap(tiny.model("llama"), tiny.tokenizer())


def statements(count: int) -> list[Statement]:
    texts = ["A cat has {} legs.", "The number {} is even, emoji 🦔 included.", "<script>{}</script> \x00 שלום"]
    return [Statement(f"s{i}", texts[i % 3].format(i), i % 2, f"t{i % 2}", pair=f"p{i // 2}") for i in range(count)]


@pytest.mark.parametrize("setting", ["few-shot", "zero-shot"])
def test_extracted_states_are_those_of_the_plain_pass(tmp_path: Path, lm: Any, setting: Any) -> None:
    items = statements(7)
    store = extract(LocalEngine(lm), items, tmp_path, setting=setting, shard_rows=3)
    index = store.index().set_index("id")
    for item in items:
        ids = lm.encode("".join(extraction.truth_prompt(item.statement, setting == "few-shot")))
        hidden = lm.forward(torch.tensor([ids]), layers="all").hidden
        stored = store.states(range(lm.n_layers + 1), [item.id])[:, 0]
        plain = np.stack([hidden[j][0, -1].numpy() for j in range(lm.n_layers + 1)])
        np.testing.assert_allclose(stored, plain, rtol=1e-4, atol=1e-4)
        p = lm.logits(hidden[lm.n_layers][0, -1], lm.n_layers).softmax(-1)
        assert index.loc[item.id, "p_true"] == pytest.approx(float(p[label_tokens(lm)[1]].sum()), rel=1e-3)
        assert index.loc[item.id, "position"] == len(ids) - 1
        assert index.loc[item.id, "label"] == item.label


def test_extraction_goes_on_where_it_stopped(tmp_path: Path, lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extract(LocalEngine(lm), statements(9), tmp_path / "whole", shard_rows=3)
    calls: list[int] = []
    run = extraction._ReadShard.run

    def counted(task: Any, lm: Any, job: Any) -> Any:
        calls.append(job.shard)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(task, lm, job)

    monkeypatch.setattr(extraction._ReadShard, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        extract(LocalEngine(lm), statements(9), tmp_path / "cut", shard_rows=3)
    extract(LocalEngine(lm), statements(9), tmp_path / "cut", shard_rows=3)
    assert calls == [0, 1, 1, 2]
    for name in ("shards/00001.safetensors", "shards/00002.safetensors", "index.parquet"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole.path / name).read_bytes()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral-sliding", "gemma3"])
def test_sharing_the_beginning_changes_no_number(family: str) -> None:
    lm = wrap(tiny.model(family), tiny.tokenizer())
    head = lm.encode("Q: What is true? A: A true statement. ")
    texts = [head + lm.encode(t) for t in ("None.", "2 + 2 = 4.", "Paris", "A false statement is not true.")]
    assert common_prefix(texts) >= len(head)
    seen = set()
    for batch in passes(lm, texts, positions="all", needed=len(head) - 1):
        for row, index in enumerate(batch.index):
            seen.add(index)
            plain = lm.forward(torch.tensor([texts[index]]), layers="all").hidden
            for layer, states in batch.hidden.items():
                torch.testing.assert_close(states[row], plain[layer][0, batch.start :], rtol=1e-4, atol=1e-4)
    assert seen == {0, 1, 2, 3}


def test_a_store_goes_on_under_another_name_of_its_model(tmp_path: Path) -> None:
    first = StateStore.open(tmp_path, ORIGIN)
    again = StateStore.open(tmp_path, replace(ORIGIN, model="/elsewhere/m"))
    assert again._identity == first._identity
    with pytest.raises(ProbeError, match="fingerprint"):
        StateStore.open(tmp_path, replace(ORIGIN, fingerprint="other"))


def test_states_that_another_version_continued_say_which_made_what(
    tmp_path: Path, lm: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    with RunDirectory.open(tmp_path / "run", {}) as directory:
        engine = LocalEngine(lm, directory)
        extract(engine, statements(9), store, layers=(0, 1), shard_rows=3)
        assert directory.manifest["stages"]["states-few-shot"] == {
            "state": "done", "shards": 3, "made_by": {__version__: 3}
        }  # fmt: skip
        seal = store / "shards" / "00000.seal.json"
        held = json.loads(seal.read_bytes())
        del held["facts"]["versions"]  # as versions wrote it that did not say who they were
        seal.write_text(json.dumps(held))
        monkeypatch.setattr(hidden_states, "__version__", "9.9")
        assert extract(engine, statements(9), store, layers=(0, 1), shard_rows=3).unfinished() == []
        assert caplog.text == ""  # nothing was continued
        extract(engine, statements(12), store, layers=(0, 1), shard_rows=3)
        made = {__version__: 2, "9.9": 1, "unknown": 1}
        assert directory.manifest["stages"]["states-few-shot"]["made_by"] == made
        assert caplog.records[-1].getMessage() == (
            "Stage states-few-shot was continued by another version of exitlens: "
            f"2 of 4 shards by {__version__}, 1 by 9.9, 1 by unknown."
        )
        more = extract(engine, statements(12), store, layers=(0, 1, 2), shard_rows=3)
        assert more.made_by() == {f"{__version__} and 9.9": 2, "9.9": 1, "9.9 and unknown": 1}

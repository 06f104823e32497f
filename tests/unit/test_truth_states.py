"""States at every position, a store that grows by layers and reads no more than is asked, memory that stays flat."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests import tiny

from exitlens.data.prompts import truth_prompt
from exitlens.data.records import Statement
from exitlens.errors import InputError
from exitlens.models import wrap
from exitlens.runs import hidden_states as state_store
from exitlens.runs.engine import LocalEngine
from exitlens.studies.probes import extraction
from exitlens.studies.probes.extraction import extract, read_states


@pytest.fixture(scope="module")
def lm() -> Any:
    return wrap(tiny.model("llama"), tiny.tokenizer())


def statements(count: int) -> list[Statement]:
    texts = ["A cat has {} legs.", "The number {} is even, emoji 🦔 included!", 'It is "{}"']
    return [Statement(f"s{i}", texts[i % 3].format(i), i % 2, f"t{i % 2}", pair=f"p{i // 2}") for i in range(count)]


def plain(lm: Any, text: str) -> tuple[list[int], np.ndarray]:
    ids = lm.encode(text)
    hidden = lm.forward(torch.tensor([ids]), layers="all").hidden
    return ids, np.stack([hidden[j][0].numpy() for j in range(lm.n_layers + 1)])


@pytest.mark.parametrize("setting", ["few-shot", "zero-shot"])
def test_positions_are_those_of_the_statement_s_own_tokens(tmp_path: Path, lm: Any, setting: Any) -> None:
    items = statements(6)
    every = extract(LocalEngine(lm), items, tmp_path / "every", setting=setting, position="every", shard_rows=16)
    mean = extract(LocalEngine(lm), items, tmp_path / "mean", setting=setting, position="mean")
    answer = extract(LocalEngine(lm), items, tmp_path / "answer", setting=setting, position="answer")
    layers = range(lm.n_layers + 1)
    for item in items:
        ids, states = plain(lm, "".join(truth_prompt(item.statement, setting == "few-shot")))
        places = [int(n.split("@")[1]) for n in every.index()["id"] if n.startswith(f"{item.id}@")]
        assert sorted(places) == list(range(min(places), max(places) + 1))
        # The tokens write the statement, but for what one of them shares with its neighbour.
        text = lm.decode([ids[p] for p in sorted(places)])
        assert text.strip().startswith(item.statement)
        assert len(text.strip()) <= len(item.statement) + 2
        read = every.states(layers, [f"{item.id}@{p}" for p in sorted(places)])
        np.testing.assert_allclose(read, states[:, sorted(places)], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(mean.states(layers, [item.id])[:, 0], read.mean(1), rtol=1e-4, atol=1e-4)
        at = answer.index().set_index("id").loc[item.id, "position"]
        assert at in places
        assert item.statement.rstrip('.!"').endswith(lm.decode([ids[at]]).rstrip('.!"\n').lstrip())
        memory = read_states(lm, [item.statement], [1, 3], setting=setting, position="mean")
        np.testing.assert_allclose(memory[:, 0], read.mean(1)[[1, 3]], rtol=1e-4, atol=1e-4)


@pytest.mark.wrong_types
def test_a_position_that_does_not_exist_is_refused(tmp_path: Path, lm: Any) -> None:
    with pytest.raises(InputError, match="unknown position 'first': use last, mean, answer, every"):
        extract(LocalEngine(lm), statements(2), tmp_path, position="first")  # type: ignore[arg-type]


def test_layers_are_added_without_running_the_old_ones_again(
    tmp_path: Path, lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = statements(7)
    whole = extract(LocalEngine(lm), items, tmp_path / "whole", shard_rows=3)
    extract(LocalEngine(lm), items, tmp_path / "grown", layers=(0, 2), shard_rows=3)
    asked: list[tuple[int, ...]] = []
    read = extraction._read

    def counted(*args: Any) -> Any:
        asked.append(tuple(args[2]))
        return read(*args)

    monkeypatch.setattr(extraction, "_read", counted)
    before = {p.name: p.read_bytes() for p in (tmp_path / "grown" / "shards").glob("*.safetensors")}
    grown = extract(LocalEngine(lm), items, tmp_path / "grown", layers=(1, 2, 3), shard_rows=3)
    assert asked == [(1, 3)] * 3
    assert all((tmp_path / "grown" / "shards" / name).read_bytes() == old for name, old in before.items())
    ids = [s.id for s in items]
    # One set of layers may be computed together with other layers, so the last bits may differ.
    np.testing.assert_allclose(grown.states((0, 1, 2, 3), ids), whole.states((0, 1, 2, 3), ids), rtol=1e-5, atol=1e-5)
    asked.clear()
    extract(LocalEngine(lm), items, tmp_path / "grown", layers=(0, 3), shard_rows=3)
    assert asked == []
    (tmp_path / "grown" / "shards" / "00001.1.safetensors").write_bytes(b"half")
    again = extract(LocalEngine(lm), items, tmp_path / "grown", layers=(0, 1, 2, 3), shard_rows=3)
    assert asked == [(0, 1, 2, 3)]
    np.testing.assert_allclose(again.states((1, 3), ids), whole.states((1, 3), ids), rtol=1e-5, atol=1e-5)


def test_reading_one_layer_opens_no_other(tmp_path: Path, lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = extract(LocalEngine(lm), statements(8), tmp_path, shard_rows=4)
    touched: list[str] = []
    opened: list[Any] = []

    class Watched:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            opened.append(args[0])
            self.opened = safe_open(*args, **kwargs)

        def __enter__(self) -> Any:
            self.file = self.opened.__enter__()
            return self

        def __exit__(self, *args: Any) -> None:
            self.opened.__exit__(*args)

        def get_slice(self, key: str) -> Any:
            touched.append(key)
            return self.file.get_slice(key)

        def get_tensor(self, key: str) -> Any:
            touched.append(key)
            return self.file.get_tensor(key)

    monkeypatch.setattr(state_store, "safe_open", Watched)
    store.layer(2)
    assert set(touched) == {"layer.02"}
    assert len(opened) == 2
    opened.clear()
    assert store.states(range(4), ["s0"]).shape == (4, 1, lm.d_model)
    assert len(opened) == 1


def test_memory_does_not_grow_with_the_number_of_statements(
    tmp_path: Path, lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is held at once is a shard; the most rows ever handed to a pass do not depend on how many there are.
    largest: list[int] = []
    read = extraction._read

    def counted(*args: Any) -> Any:
        largest.append(len(args[1]))
        return read(*args)

    monkeypatch.setattr(extraction, "_read", counted)
    extract(LocalEngine(lm), statements(10), tmp_path / "few", layers=(3,), shard_rows=8)
    few = max(largest)
    tracemalloc.start()
    extract(LocalEngine(lm), statements(60), tmp_path / "many", layers=(3,), shard_rows=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(largest) == few == 8
    assert peak < 20e6

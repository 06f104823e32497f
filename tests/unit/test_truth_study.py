"""The study over real states of a tiny model: what is planted is found, random labels are not, bad input is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny

from exitlens.data.answers_as_statements import as_statements
from exitlens.data.records import Question, Statement
from exitlens.errors import ProbeError
from exitlens.models import wrap
from exitlens.studies.probes.truth import probes_study


@pytest.fixture(scope="module")
def lm() -> Any:
    return wrap(tiny.model("llama"), tiny.tokenizer())


def statements(count: int = 96, topics: int = 3, seed: int | None = None) -> list[Statement]:
    """Pairs that differ in their last word, which is the label; with a seed the labels are drawn instead."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        label = i % 2 if seed is None else int(rng.integers(2))
        text = f"Thing {i // 2} of kind {i * topics // count} is {'real' if i % 2 else 'none'}."
        out.append(Statement(f"s{i}", text, label, f"t{i * topics // count}", pair=f"p{i // 2}"))
    return out


def test_what_the_states_hold_is_found_and_refitted(tmp_path: Path, lm: Any) -> None:
    items = statements()
    found = probes_study(
        lm, items, tmp_path, kinds=("mass-mean",), setting="zero-shot", position="answer", resamples=100
    )
    best = found.tables["probe_best"].set_index("kind")
    assert best.loc["mass-mean", "accuracy"] > 0.9
    assert "best probe is mass-mean" in found.sentence
    assert found.tables["probe_verdict"]["sentence"].tolist() == [found.sentence]
    probe, about = found.refit()
    at = found.data.layers.index(probe.provenance.layer or 0)
    p = probe.predict_proba(found.data.states[at])
    assert float(((p > 0.5).numpy() == found.data.labels).mean()) > 0.9
    assert about["held_out"]["accuracy"] == best.loc["mass-mean", "accuracy"]
    with pytest.raises(ProbeError, match="fitted on model"):
        probe.check("another")


def test_random_labels_give_chance_at_every_layer(tmp_path: Path, lm: Any) -> None:
    # Labels drawn for each statement alone: nothing in any layer can tell them, so every held-out accuracy is near 1/2
    # (240 coins: four standard deviations are .13), and every control's too.
    items = statements(240, seed=3)
    found = probes_study(lm, items, tmp_path, kinds=("mass-mean",), matrix=False, resamples=50)
    layers = found.tables["probe_layers"]
    by_layer = layers[layers["role"].isin(["probe", "control"])]
    assert len(by_layer) == 2 * lm.n_layers
    assert by_layer["accuracy"].between(0.37, 0.63).all()


def test_every_token_is_a_row_with_its_statement_s_label(tmp_path: Path, lm: Any) -> None:
    items = statements(60)
    found = probes_study(
        lm, items, tmp_path, kinds=("mass-mean",), layers=(2,), position="every", setting="zero-shot", matrix=False,
        resamples=20,
    )  # fmt: skip
    assert found.data.n > 5 * len(items)
    # Tokens of one pair stay together.
    assert found.study.n_groups == len(items) // 2
    assert found.provenance.position == "every"


def test_a_store_of_another_prompt_or_model_is_refused(tmp_path: Path, lm: Any) -> None:
    items = statements(60)
    probes_study(lm, items, tmp_path, kinds=("mass-mean",), layers=(1,), matrix=False, resamples=10)
    with pytest.raises(ProbeError, match="holds hidden states with"):
        probes_study(lm, items, tmp_path, kinds=("mass-mean",), layers=(1,), setting="zero-shot")
    other = wrap(tiny.model("llama", seed=1), tiny.tokenizer())
    with pytest.raises(ProbeError, match="with fingerprint"):
        probes_study(other, items, tmp_path, kinds=("mass-mean",), layers=(1,))


def test_bad_input_is_named(tmp_path: Path, lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    items = statements(60)
    with pytest.raises(ProbeError, match="only label 1 among 60"):
        probes_study(lm, [replace(s, label=1) for s in items], tmp_path / "a", kinds=("mass-mean",))
    with pytest.raises(ProbeError, match="label 3 of example 0 is neither 0 nor 1"):
        probes_study(lm, [replace(items[0], label=3), *items[1:]], tmp_path / "b", kinds=("mass-mean",))
    with pytest.raises(ProbeError, match="topic 'rare' has 1 rows"):
        probes_study(lm, [replace(items[0], topic="rare"), *items[1:]], tmp_path / "c", kinds=("mass-mean",))
    with pytest.raises(ProbeError, match="unknown protocol 'best-of'"):
        probes_study(lm, items, tmp_path / "d", protocol="best-of")
    with pytest.raises(ProbeError, match="'ttpd' needs negated statements, and none of 60"):
        probes_study(lm, items, tmp_path / "d", kinds=("mass-mean", "ttpd"))
    both = [replace(s, negated=i % 4 > 1) for i, s in enumerate(items)]
    with pytest.raises(ProbeError, match="'ccs' is fitted on statements of both polarities"):
        probes_study(lm, both, tmp_path / "d", kinds=("ccs",), protocol="affirmed-to-negated")
    assert not list(tmp_path.iterdir())  # all of it was said before the first state was computed
    forward = lm.forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        if 2 in out.hidden:
            out.hidden[2][:, -1, 0] = torch.nan
        return out

    monkeypatch.setattr(lm, "forward", broken)
    with pytest.raises(ProbeError, match=r"hidden state of example 's\d+' at layer 2 is not finite"):
        probes_study(lm, items, tmp_path / "e", kinds=("mass-mean",))


def test_train_on_statements_test_on_answers(tmp_path: Path, lm: Any) -> None:
    questions = [
        Question(f"q{i}", f"Is thing {i} real?", "It is real.", ("It is real.",), ("It is none.",)) for i in range(20)
    ]
    answers = as_statements(questions)
    assert [(s.statement, s.label, s.pair) for s in answers[:2]] == [
        ("Is thing 0 real? It is real.", 1, "q0"), ("Is thing 0 real? It is none.", 0, "q0"),
    ]  # fmt: skip
    found = probes_study(
        lm, statements(60), tmp_path, kinds=("mass-mean",), protocol="transfer", test_statements=answers, resamples=20
    )
    assert set(found.study.rows) == set(range(60, 100))
    assert found.data.n == 100
    with pytest.raises(ProbeError, match="--test-data"):
        probes_study(lm, statements(60), tmp_path, protocol="transfer")

"""Adapters: exits get nearer the last layer, which stays within the bound; a stopped training ends as another."""

from __future__ import annotations

import json
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny

from exitlens.errors import InputError, LayerError, ProbeError
from exitlens.exits.adapter import State, adapt
from exitlens.models import wrap
from exitlens.studies.exits import files as exit_files

LAYERS = (1, 2)


@lru_cache
def model(seed: int = 0, family: str = "llama") -> Any:
    return wrap(tiny.model(family, seed=seed, spread=0.15), tiny.tokenizer())


def windows(lm: Any, count: int = 30) -> list[list[int]]:
    g = torch.Generator().manual_seed(1)
    return torch.randint(1, lm.vocab_size, (count, 24), generator=g).tolist()


def trained(lm: Any, **more: Any) -> tuple[Any, Any]:
    options: dict[str, Any] = {"layers": LAYERS, "rank": 8, "steps": 40, "batch": 4, "rate": 5e-3, "check_every": 10}
    return adapt(lm, windows(lm), **{**options, **more})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_exits_improve_and_the_last_layer_stays_within_the_bound(family: str) -> None:
    lm = model(family=family)
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    _, report = trained(lm, kl_bound=0.1)
    assert [c.step for c in report.curve] == [0, 10, 20, 30, 40]
    assert report.curve[0].kl == pytest.approx(0.0, abs=1e-6)
    assert report.kept.kl <= 0.1
    assert report.kept.exit_loss < report.curve[0].exit_loss
    # The model that was given is as it was.
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())


def test_a_bound_that_nothing_meets_keeps_the_original() -> None:
    lm = model()
    tuned, report = trained(lm, kl_bound=1e-12, rate=0.05, steps=10)
    assert report.kept.step == 0
    ids = torch.tensor([windows(lm)[0]])
    with torch.no_grad():
        torch.testing.assert_close(tuned(ids).logits, lm.model(ids).logits, rtol=1e-5, atol=1e-5)


def test_stopped_and_resumed_is_the_same(tmp_path: Path) -> None:
    lm = model()
    kept: list[State] = []
    _, whole = trained(lm, save=kept.append)
    exit_files.write_state(tmp_path / "c.safetensors", kept[1])
    state = exit_files.read_state(tmp_path / "c.safetensors")
    _, again = trained(lm, state=state)
    assert again.curve == whole.curve
    assert again.kept == whole.kept
    with pytest.raises(InputError, match="another model"):
        trained(model(seed=1), state=state)
    with pytest.raises(InputError, match="another rank"):
        trained(lm, state=state, rank=4)


def test_a_damaged_checkpoint_is_one_line() -> None:
    lm = model()
    kept: list[State] = []
    trained(lm, steps=2, check_every=1, save=kept.append)
    tensors, text = kept[0]
    name = next(key for key in tensors if key.startswith("exp_avg/"))
    changes: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({name: None}, {}), ({name: torch.zeros(1)}, {}), ({"now" + name.removeprefix("exp_avg"): None}, {}),
        ({}, {"step": "two"}), ({}, {"beta": ""}), ({}, {"curve": "{}}"}), ({}, {"curve": '[{"step": 1}]'}),
        ({}, {"curve": "7"}),
    ]  # fmt: skip
    for lost, said in changes:
        forged = {key: value for key, value in {**tensors, **lost}.items() if value is not None}
        with pytest.raises(InputError, match=r"the checkpoint is (damaged|of another rank)") as caught:
            trained(lm, steps=2, state=(forged, {**text, **said}))
        assert "\n" not in str(caught.value)


def test_checkpointing_gives_the_same_curve() -> None:
    lm = model()
    _, plain = trained(lm, steps=10)
    _, saved = trained(lm, steps=10, checkpointing=True)
    assert saved.curve[-1].exit_loss == pytest.approx(plain.curve[-1].exit_loss, rel=1e-4)


def test_the_folder_loads_here_and_in_peft(tmp_path: Path) -> None:
    import peft

    lm = model()
    tuned, report = trained(lm, kl_bound=0.5)
    folder = exit_files.save_adapter(tuned, tmp_path / "a", lm, {"source": "test", "report": report})
    assert json.loads((folder / "exitlens.json").read_text())["fingerprint"] == lm.fingerprint
    ids = torch.tensor([windows(lm)[0]])
    with torch.no_grad():
        want = tuned(ids).logits
        fresh = tiny.model("llama", spread=0.15)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peft.PeftModel.from_pretrained(fresh, str(folder))(ids).logits
    torch.testing.assert_close(theirs, want, rtol=1e-4, atol=1e-5)
    other = exit_files.load_adapted(wrap(tiny.model("llama", spread=0.15), tiny.tokenizer()), folder)
    hidden = other.forward(ids, layers=[3]).hidden[3]
    torch.testing.assert_close(other.logits(hidden, 3), want, rtol=1e-4, atol=1e-5)
    assert other.fingerprint != lm.fingerprint
    with pytest.raises(ProbeError, match="another model"):
        exit_files.load_adapted(wrap(tiny.model("llama", seed=5), tiny.tokenizer()), folder)
    with pytest.raises(InputError, match="no adapter"):
        exit_files.load_adapted(lm, tmp_path)


def test_what_cannot_be_is_refused() -> None:
    lm = model()
    with pytest.raises(LayerError, match="exit layer 3"):
        trained(lm, layers=(3,))
    with pytest.raises(InputError, match="3 windows"):
        adapt(lm, windows(lm, 3), layers=LAYERS)
    with pytest.raises(InputError, match="kl_bound=0"):
        trained(lm, kl_bound=0.0)

"""Adapter folders are read as what they are: an adapter on its base, or a refusal that says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import exitlens
from exitlens.errors import CorruptModel, ExitlensError, InputError, MissingExtra, ModelNotFound, UnsupportedModel

from .. import tiny
from ..commands import call, done

pytestmark = [  # what PEFT itself warns of
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
peft = pytest.importorskip("peft")
IDS = torch.tensor([[9, 80, 33, 7]])


def _lora(**more: Any) -> Any:
    return peft.LoraConfig(r=4, **({"target_modules": ["q_proj", "lm_head"], "task_type": "CAUSAL_LM"} | more))


KINDS: dict[str, Callable[[], Any]] = {
    "lora": _lora,
    "lora of every projection": lambda: _lora(target_modules="all-linear"),
    "dora": lambda: _lora(use_dora=True),
    "a head saved whole": lambda: _lora(target_modules=["v_proj"], modules_to_save=["lm_head"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


def _adapter(folder: Path, base: Path, kind: str = "lora") -> torch.Tensor:
    """Save a base and a trained adapter; returns the adapted model's logits."""
    tiny.save(base)
    model = tiny.model("llama")
    model.name_or_path = str(base)
    adapted = peft.get_peft_model(model, KINDS[kind]())
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if any(part in name for part in ("lora_B", "ia3", "modules_to_save")):
            nn.init.normal_(parameter, std=0.3)
    adapted.eval().save_pretrained(folder)
    with torch.no_grad():
        return adapted(input_ids=IDS).logits  # type: ignore[no-any-return]


def _logits(lm: Any) -> torch.Tensor:
    hidden = lm.forward(IDS, layers=(3,)).hidden[3]
    by_matrix = lm.norm(hidden) @ lm.weight.detach().T
    torch.testing.assert_close(by_matrix, lm.logits(hidden, 3), atol=1e-4, rtol=1e-4)
    return lm.logits(hidden, 3)  # type: ignore[no-any-return]


def _load(path: Path | str, **options: Any) -> Any:
    return exitlens.load(path, dtype="float32", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_alone_is_read_on_the_base_it_names(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    want = _adapter(tmp_path / "adapter", tmp_path / "base", kind)
    lm = _load(tmp_path / "adapter")
    torch.testing.assert_close(_logits(lm), want, atol=1e-4, rtol=1e-4)
    assert "what is read is the adapted model" in caplog.text
    assert lm.fingerprint != _load(tmp_path / "base").fingerprint


def test_the_base_can_be_given_and_stands_beside_the_adapter_or_not(tmp_path: Path) -> None:
    want = _adapter(tmp_path / "adapter", tmp_path / "base")
    config = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"base_model_name_or_path": "../base"}))
    torch.testing.assert_close(_logits(_load(tmp_path / "adapter")), want, atol=1e-4, rtol=1e-4)
    for missing in (None, ""):
        config.write_text(json.dumps(said | {"base_model_name_or_path": missing}))
        with pytest.raises(InputError, match=r"is an adapter \(LORA\) and names no base model.*--base"):
            _load(tmp_path / "adapter")
    torch.testing.assert_close(
        _logits(_load(tmp_path / "adapter", base=str(tmp_path / "base"))), want, atol=1e-4, rtol=1e-4
    )
    with pytest.raises(InputError, match="is no adapter"):
        _load(tmp_path / "base", base="smollm2-135m")


def test_a_base_and_an_adapter_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    want = _adapter(tmp_path / "both", tmp_path / "both")
    torch.testing.assert_close(_logits(_load(tmp_path / "both")), want, atol=1e-4, rtol=1e-4)
    assert "an adapter (LORA) on its own base" in caplog.text
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"holds an adapter \(LORA\), which needs peft"):
        _load(tmp_path / "both")


def test_the_adapters_bytes_are_part_of_its_identity(tmp_path: Path) -> None:
    _adapter(tmp_path / "adapter", tmp_path / "base")
    before = _load(tmp_path / "adapter").fingerprint
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name][0, 0] += 1e-3
    save_file(tensors, path)
    assert _load(tmp_path / "adapter").fingerprint != before


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "prefix_tuning"])
@pytest.mark.parametrize("with_base", [False, True])
def test_virtual_tokens_are_named_in_the_refusal(kind: str, with_base: bool, tmp_path: Path) -> None:
    if with_base:
        tiny.save(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "base_model_name_or_path": "x"}))
    with pytest.raises(UnsupportedModel, match=rf"{kind.upper()} \(prompt or prefix tuning\)"):
        _load(tmp_path)


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    _adapter(tmp_path / "adapter", tmp_path / "base")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[0]
    save_file({n: t for n, t in tensors.items() if n != first}, path)
    with pytest.raises(CorruptModel, match="tensors are not those of its adapter_config"):
        _load(tmp_path / "adapter")
    save_file(tensors | {"base_model.model.model.layers.9.q_proj.lora_A.weight": torch.ones(4, 32)}, path)
    with pytest.raises(CorruptModel, match=r"layers\.9"):
        _load(tmp_path / "adapter")
    save_file(tensors | {first: torch.ones(4, 16)}, path)
    with pytest.raises(CorruptModel, match="does not fit the base"):
        _load(tmp_path / "adapter")
    path.write_bytes(b"none")
    with pytest.raises(CorruptModel):
        _load(tmp_path / "adapter")
    path.unlink()
    with pytest.raises(ModelNotFound, match="is an adapter"):
        _load(tmp_path / "adapter")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"peft_type": 3}', '{"peft_type": "LORA", "revision": []}', "[" * 10**5]
)
def test_a_damaged_configuration_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ExitlensError, match=r"adapter_config\.json") as caught:
        _load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_base_is_given_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _adapter(tmp_path / "adapter", tmp_path / "base")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    common = ["generate", "What is", "--model", tmp_path / "adapter", "--dtype", "float32", "--max-new-tokens", "4"]
    code, _, error = call(capsys, *common)
    assert code == 2
    assert "--base" in error
    said = done(capsys, *common, "--base", tmp_path / "base")
    lm = _load(tmp_path / "adapter", base=str(tmp_path / "base"))
    want = lm.generate(["What is"], max_new_tokens=4)[0]
    assert said[0]["token_ids"] == list(want.token_ids)

"""A checkpoint fills the model that its configuration describes, or it is refused with the names of the tensors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import exitlens
from exitlens.errors import CorruptModel, ExitlensError, UnsupportedModel
from exitlens.models.checkpoint.weights import Checkpoint, check_sizes
from exitlens.models.encoder import load_encoder

from .. import tiny

Tensors = dict[str, torch.Tensor]
IDS = torch.tensor([[9, 80, 33, 7]])


def _saved(folder: Path, change: Callable[[Tensors], Tensors], family: str = "llama", **config: Any) -> Path:
    tiny.save(folder, family)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    _configured(folder, **config)
    return folder


def _configured(folder: Path, name: str = "config.json", **values: Any) -> Path:
    said = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(said | values))
    return folder


def _without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t for name, t in tensors.items() if part not in name}


def _named(pattern: str, into: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(pattern, into, name): t for name, t in tensors.items()}


def _block_more(tensors: Tensors) -> Tensors:
    return tensors | {n.replace(".2.", ".3."): t.clone() for n, t in tensors.items() if "layers.2." in n}


REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "no unembedding": (_without("lm_head"), r"missing lm_head.weight: .*tie_word_embeddings"),
    "no block": (_without("layers.1."), r"missing model\.layers\.1\.\S+, .* and 5 more"),
    "no final norm": (_without("model.norm"), r"missing model\.norm\.weight"),
    "no embeddings": (_without("embed_tokens"), r"missing model\.embed_tokens\.weight"),
    "a block more": (_block_more, r"unexpected model\.layers\.3\.\S+.* and 5 more"),
    "a bias more": (
        lambda t: t | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
        r"unexpected model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "another shape": (
        lambda t: t | {"model.norm.weight": torch.ones(16)},
        r"another shape model\.norm.*\[16\], not \[32\]",
    ),
    "an unknown prefix": (_named(r"^", "ema."), r"missing .*; unexpected ema\."),
    "a prefix and a gap": (lambda t: _without("model.norm")(_named(r"^", "_orig_mod.")(t)), r"missing .*_orig_mod"),
    "LoRA inside": (
        lambda t: t | {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(4, 32)},
        r"unexpected .*lora_A.*merge",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_named(kind: str, tmp_path: Path) -> None:
    change, message = REFUSED[kind]
    folder = _saved(tmp_path / "model", change)
    with pytest.raises(CorruptModel, match=message) as caught:
        exitlens.load(folder)
    assert "\n" not in str(caught.value)


STRIPPED: dict[str, tuple[str, str]] = {
    "torch.compile": (r"^", "_orig_mod."),
    "torch.compile, inside": (r"^model\.", "model._orig_mod."),
    "DataParallel": (r"^", "module."),
    "both": (r"^", "module._orig_mod."),
    "both, the other way": (r"^", "_orig_mod.module."),
    "FSDP": (r"(^|layers\.\d\.)", r"\1_fsdp_wrapped_module."),
    "activation checkpointing": (r"(layers\.\d\.)", r"\1_checkpoint_wrapped_module."),
    "PEFT": (r"^", "base_model.model."),
    "PEFT's base layers": (r"(q_proj|lm_head)\.weight", r"\1.base_layer.weight"),
    "PEFT, whole": (r"^(.*?)((q_proj\.)?)weight$", r"base_model.model.\1\2weight"),
}


@pytest.mark.parametrize("kind", STRIPPED)
def test_prefixes_of_training_tools_are_left_out_and_said(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _saved(tmp_path / "model", _named(*STRIPPED[kind]))
    lm = exitlens.load(folder, dtype="float32")
    with torch.no_grad():
        want = tiny.model("llama")(IDS).logits
    hidden = lm.forward(IDS, layers=(3,)).hidden[3]
    torch.testing.assert_close(lm.logits(hidden, 3), want, atol=1e-5, rtol=1e-5)
    assert lm.eos_ids == (0,)
    assert "left out of its weights' names" in caplog.text


def test_only_the_prefixes_that_were_there_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exitlens.load(_saved(tmp_path / "model", _named("^", "_fsdp_wrapped_module.")), dtype="float32")
    assert ": '_fsdp_wrapped_module.' was left out" in caplog.text


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    """They were taken as they are: quantised weights without their scales, another model without a word."""
    name = "model.layers.1.mlp.down_proj.weight"
    folder = _saved(tmp_path / "model", lambda t: t | {name: (t[name] * 100).to(torch.int8)})
    with pytest.raises(CorruptModel, match=r"layers\.1\.mlp\.down_proj\.weight: whole numbers .* quantised"):
        exitlens.load(folder)


def _harmless(tensors: Tensors) -> Tensors:
    return tensors | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "v_head.summary.weight": torch.ones(1, 32),
        "score.weight": torch.ones(2, 32),
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_loads_from_its_folder(family: str, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", family)
    lm = exitlens.load(folder, dtype="float32")
    with torch.no_grad():
        want = tiny.model(family)(IDS).logits
    torch.testing.assert_close(lm.logits(lm.forward(IDS, layers=(3,)).hidden[3], 3), want, atol=1e-5, rtol=1e-5)


def test_what_changes_no_number_may_be_left_over(tmp_path: Path) -> None:
    exitlens.load(_saved(tmp_path / "model", _harmless))


def test_shards_and_a_second_copy_in_another_form(tmp_path: Path) -> None:
    model = tiny.model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    save_file({"layers.0.wq": torch.ones(3)}, tmp_path / "consolidated.safetensors")
    exitlens.load(tmp_path)
    shards[0].unlink()
    with pytest.raises(CorruptModel, match=f"'{shards[0].name}' is not there"):
        exitlens.load(tmp_path)


HUGE = {
    "num_hidden_layers": 100_000_000,
    "vocab_size": 1_000_000_000,
    "hidden_size": 10_000_000,
    "intermediate_size": 2_000_000_000,
    "head_dim": 1 << 40,
    "num_key_value_heads": 1 << 50,
}


@pytest.mark.parametrize("name", HUGE)
def test_sizes_beyond_the_weights_are_refused_before_anything_is_built(name: str, tmp_path: Path) -> None:
    folder = _configured(tiny.save(tmp_path / "model"), **{name: HUGE[name]})
    begun = time.process_time()
    with pytest.raises(ExitlensError, match=rf"{name} in config.json is {HUGE[name]}|config.json describes a model of"):
        exitlens.load(folder)
    assert time.process_time() - begun < 5


def test_sizes_of_parts_and_of_real_models_pass_or_not() -> None:
    weights = Checkpoint(
        {"model.embed_tokens.weight": (49152, 576), **{f"layers.{i}.w": (576, 576) for i in range(30)}}
    )
    check_sizes({"num_hidden_layers": 30, "vocab_size": 49152, "max_position_embeddings": 10**12}, weights, "x")
    check_sizes({"bos_token_id": 10**12, "num_experts": 512, "window": 10**10}, weights, "x")
    with pytest.raises(CorruptModel, match=r"text_config\.num_hidden_layers in config\.json is 2000"):
        check_sizes({"text_config": {"num_hidden_layers": 2000}}, weights, "x")
    with pytest.raises(CorruptModel, match="n_routed_experts"):
        check_sizes({"n_routed_experts": 10**6}, weights, "x")


ODD: list[tuple[str, str, Any]] = [
    ("config.json", "rms_norm_eps", "small"),
    ("config.json", "rms_norm_eps", 1),
    ("config.json", "eos_token_id", "</s>"),
    ("config.json", "hidden_act", "no such"),
    ("config.json", "num_attention_heads", "four"),
    ("config.json", "num_attention_heads", 0),
    ("config.json", "num_key_value_heads", 3),
    ("config.json", "rope_parameters", {"rope_type": "no such"}),
    ("config.json", "rope_parameters", [1, 2]),
    ("config.json", "model_type", "no such"),
    ("config.json", "model_type", ["llama"]),
    ("config.json", "architectures", 3),
    ("config.json", "vocab_size", -4),
    ("config.json", "vocab_size", 2.5),
    ("config.json", "hidden_size", None),
    ("config.json", "num_hidden_layers", 0),
    ("config.json", "tie_word_embeddings", "yes"),
    ("config.json", "dtype", "float7"),
    ("config.json", "quantization_config", {"quant_method": "no such"}),
    ("tokenizer_config.json", "tokenizer_class", "NoSuch"),
    ("tokenizer_config.json", "model_max_length", "long"),
    ("tokenizer_config.json", "eos_token", 3),
    ("tokenizer_config.json", "added_tokens_decoder", {"x": {"content": 3}}),
    ("generation_config.json", "eos_token_id", "</s>"),
    ("generation_config.json", "temperature", "hot"),
]


@pytest.mark.parametrize(("file", "field", "value"), ODD)
def test_odd_values_are_one_line_or_harmless(file: str, field: str, value: Any, tmp_path: Path) -> None:
    folder = _configured(tiny.save(tmp_path / "model"), file, **{field: value})
    said = _said(folder)
    assert said is None or ("\n" not in said and len(said) < 500)
    if file == "config.json":
        assert said is None or field in said or str(value)[:20] in said or "config" in said, said


_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "Q", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}
# Each with what a library says of it alone: 'x' is not there, list index out of range, no entry found for key ...
UNNAMED: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"rope_parameters": {"rope_type": "x", "rope_theta": 1e4}}, "rope_parameters.rope_type: 'x'"),
    ("config.json", {"dtype": []}, "dtype: []"),
    ("config.json", {"hidden_act": "x"}, "hidden_act: 'x'"),
    ("config.json", {"pad_token_id": 10**6}, "pad_token_id: 1000000"),
    ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": "x"}}, "quantization_config.bits"),
    ("config.json", {"model_type": "no such"}, "model_type"),
    ("generation_config.json", {"pad_token_id": "x"}, "pad_token_id: 'x'"),
    ("tokenizer.json", {"added_tokens": 1}, "added_tokens: 1"),
    ("tokenizer.json", {"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, 3]}}, "decoder.decoders.1: 3"),
    ("tokenizer.json", {"model": {"type": "BPE", "vocab": 3, "merges": []}}, "model"),
    ("tokenizer.json", {"post_processor": _TEMPLATE}, "post_processor.single.0: {'SpecialToken'"),
    ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length: 'x'"),
    ("special_tokens_map.json", {"eos_token": [3]}, "eos_token: [3]"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "fields", "named"), UNNAMED)
def test_what_libraries_raise_names_file_and_field(
    file: str, fields: dict[str, Any], named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.save(tmp_path / "model")
    if not (folder / file).exists():
        (folder / file).write_text("{}")
    capfd.readouterr()
    said = _said(_configured(folder, file, **fields))
    assert said is not None
    assert f"{file} ({named}" in said
    assert "\n" not in said
    assert "panicked" not in capfd.readouterr().err


def test_weights_that_give_no_numbers_are_named_as_that(tmp_path: Path) -> None:
    said = _said(_configured(tiny.save(tmp_path / "model"), "config.json", rms_norm_eps=float("nan")))
    assert said is not None
    assert "its logits are not finite" in said


def _said(folder: Path) -> str | None:
    """The refusal of a folder, or None where it can be loaded and decodes."""
    try:
        exitlens.load(folder, dtype="float32").generate(["What is"], max_new_tokens=2)
    except ExitlensError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[1]", b'{"a":' + b"[" * 100_000, b'{"a": ' + b"9" * 6000])
def test_damaged_files_are_named(name: str, damage: bytes, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    (folder / name).write_bytes(damage)
    said = _said(folder)
    if said is None:
        assert name in ("generation_config.json", "tokenizer_config.json")  # not needed to know the model
    else:
        assert name in said
        assert "\n" not in said


def test_weights_beyond_float16_are_named_as_that(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "model", lambda t: t | {"model.norm.weight": torch.full((32,), 1e5)})
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight .*65504, the largest of float16.*bfloat16"):
        exitlens.load(folder, dtype="float16")
    exitlens.load(folder, dtype="float32")


# ---- encoders of BERTScore


def _encoder(folder: Path, change: Callable[[Tensors], Tensors] = lambda t: t, kind: Any = tf.BertModel) -> Path:
    config = tf.BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    kind(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


def test_an_encoder_without_its_pooler_or_with_other_heads(tmp_path: Path) -> None:
    load_encoder(_encoder(tmp_path / "a", _without("pooler")))
    load_encoder(_encoder(tmp_path / "b", kind=tf.BertForMaskedLM))
    load_encoder(_encoder(tmp_path / "c", kind=tf.BertForPreTraining))


def test_an_encoder_whose_prefix_is_left_out_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_encoder(_encoder(tmp_path, _named("^", "_orig_mod.")))
    assert "'_orig_mod.' was left out of its weights' names" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("layer.1."), "missing encoder.layer.1"),
        (lambda t: t | {n.replace(".1.", ".2."): v.clone() for n, v in t.items() if "layer.1." in n}, "unexpected"),
        (_without("word_embeddings"), "missing embeddings.word_embeddings"),
        (_named("^", "student."), "missing"),
    ],
)
def test_an_encoder_that_does_not_fit(change: Callable[[Tensors], Tensors], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExitlensError, match=message):
        load_encoder(_encoder(tmp_path, change))

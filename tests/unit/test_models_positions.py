"""What acts only at long positions or on large values: own blocks that know it or are not used, rows that run apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import exitlens
from exitlens.models import wrap
from exitlens.models.native import agreement
from exitlens.models.native.known import thresholds, unknown_field
from exitlens.models.native.runner import native

from .. import tiny

SIZES: dict[str, Any] = tiny._BASE | {"num_hidden_layers": 2}


def _built(config: Any) -> Any:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
        elif "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model.eval()


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 1e4} | more


YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64)
UNKNOWN: dict[str, tuple[Any, str]] = {
    "llama 4's query scale": (
        lambda: tf.Ministral3Config(**SIZES, head_dim=8, rope_parameters=YARN | {"llama_4_scaling_beta": 0.5}),
        "rope_parameters.llama_4_scaling_beta",
    ),
    "clipped projections": (lambda: tf.OlmoConfig(**SIZES, clip_qkv=2.0), "clip_qkv"),
    "a residual scale": (lambda: tf.GraniteConfig(**SIZES, residual_multiplier=0.5), "residual_multiplier"),
    "layers without rotation": (lambda: tf.SmolLM3Config(**SIZES, no_rope_layer_interval=2), "no_rope_layers"),
    "a field of tomorrow": (lambda: tf.LlamaConfig(**SIZES, attention_sharpness=2.0), "attention_sharpness"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_unknown_field_means_the_models_own_blocks(kind: str) -> None:
    config, name = UNKNOWN[kind][0](), UNKNOWN[kind][1]
    assert unknown_field(config) == name
    model = _built(config)
    assert native(wrap(model, tiny.tokenizer())) is None
    # What is decoded past the threshold is what the model's own whole passes give there.
    ids = (torch.arange(80) * 7 % 320).tolist()
    answer = exitlens.generate(wrap(model, tiny.tokenizer()), [ids], max_new_tokens=6)[0]  # type: ignore[arg-type]
    for token in answer.token_ids:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        assert float(logits.max() - logits[token]) < 1e-3
        ids.append(token)


KNOWN: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "linear": lambda: tf.LlamaConfig(**SIZES, rope_parameters=_rope("linear", factor=2.0)),
    "yarn": lambda: tf.LlamaConfig(**SIZES, rope_parameters=YARN),
    "llama 3": lambda: tf.LlamaConfig(
        **SIZES,
        rope_parameters=_rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
        ),
    ),
    "a window": lambda: tf.MistralConfig(**SIZES, sliding_window=40),
    "windows in some layers": lambda: tf.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=24, max_window_layers=1
    ),
    "qwen 3": lambda: tf.Qwen3Config(**SIZES, head_dim=8),
    "gpt 2": tiny.FAMILIES["gpt2"],
    "neox": tiny.FAMILIES["gpt-neox"],
}


@pytest.mark.parametrize("kind", KNOWN)
def test_known_configurations_keep_the_own_blocks(kind: str) -> None:
    config = KNOWN[kind]()
    assert unknown_field(config) is None
    assert native(wrap(_built(config), tiny.tokenizer())) is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_built_in_model_keeps_the_own_blocks(dtype: str, builtin_path: Path) -> None:
    assert native(exitlens.load(builtin_path, dtype=dtype)) is not None


def test_thresholds_are_found_wherever_they_stand() -> None:
    assert thresholds(tf.LlamaConfig(**SIZES)) == []
    assert thresholds(KNOWN["llama 3"]()) == [64]
    nested = tf.Gemma3TextConfig(
        **SIZES, rope_parameters={"full_attention": YARN, "sliding_attention": _rope("default")}
    )
    assert thresholds(nested) == [64]


def _scaled_late(model: Any) -> None:
    """Queries grow from position 64 on, as with llama 4's scale; no field of the configuration says so."""
    inner = model.model.rotary_emb.forward

    def late(x: Any, position_ids: Any, **kwargs: Any) -> Any:
        cos, sin = inner(x, position_ids, **kwargs)
        return cos, sin

    model.model.rotary_emb.forward = late
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.register_forward_pre_hook(
            lambda _m, args, kwargs: (
                args,
                kwargs | {"position_embeddings": tuple(
                    t * (1 + 0.5 * (kwargs["position_ids"] >= 64).to(t.dtype)[..., None])
                    for t in kwargs["position_embeddings"]
                )},
            ),
            with_kwargs=True,
        )  # fmt: skip


def test_a_scale_that_begins_late_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _built(KNOWN["yarn"]())
    _scaled_late(model)
    lm = wrap(model, tiny.tokenizer())
    assert native(lm) is None
    monkeypatch.setattr(agreement, "_late", lambda *_: True)
    assert native(lm) is not None  # nothing else tells


def test_a_clip_of_large_values_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exitlens.models.native.runner.unknown_field", lambda _config: None)
    model = _built(tf.OlmoConfig(**SIZES, clip_qkv=2.0))
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            torch.nn.init.normal_(getattr(layer.self_attn, name).weight, std=0.08)
    lm = wrap(model, tiny.tokenizer())
    assert native(lm) is None
    monkeypatch.setattr(agreement, "_large", lambda *_: True)
    assert native(lm) is not None  # nothing else tells


# ---- tables that depend on the longest text of a pass


LENGTH: dict[str, Any] = {
    "longrope": lambda: tf.Phi3Config(
        **SIZES, original_max_position_embeddings=16,
        rope_parameters=_rope(
            "longrope", short_factor=[1.0] * 4, long_factor=[4.0, 8.0, 16.0, 32.0], original_max_position_embeddings=16,
            factor=16.0,
        ),
    ),
    "dynamic": lambda: tf.LlamaConfig(
        **SIZES | {"max_position_embeddings": 16}, rope_parameters=_rope("dynamic", factor=4.0)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LENGTH)
def test_a_text_is_the_same_beside_a_longer_one_and_after_it(kind: str) -> None:
    config = LENGTH[kind]()
    lm = wrap(_built(config), tiny.tokenizer())
    if kind == "dynamic":
        lm.context = None  # the table grows past it
    assert not lm.pads_exactly
    assert native(lm) is None
    texts = [
        "What is true?",
        "a b c d e f g h i j k l m n o p q r s t u v w x y z" * 2,
        "The capital of France is Paris",
    ]
    texts += [texts[1][:40], texts[1][:30]]
    alone = []
    for text in texts:
        fresh = wrap(_built(config), tiny.tokenizer())
        fresh.context = lm.context
        with torch.no_grad():
            alone.append(_built(config)(torch.tensor([fresh.encode(text)])).logits[0])
    together = exitlens.read(lm, texts, stats=("entropy",)).to_pandas()
    for i, logits in enumerate(alone):
        logp = logits.double().log_softmax(-1)
        want = -(logp.exp() * logp).sum(-1)
        rows = together[(together["text"] == i) & (together["layer"] == 2)].sort_values("position")
        torch.testing.assert_close(torch.tensor(rows["entropy"].to_numpy()).double(), want, atol=1e-4, rtol=1e-4)
    answers = exitlens.generate(lm, texts, max_new_tokens=12)  # type: ignore[arg-type]
    for text, answer in zip(texts, answers, strict=True):
        ids = lm.encode(text)
        for token in answer.token_ids:
            with torch.no_grad():
                logits = _built(config)(torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert float(logits.max() - logits[token]) < 1e-4
            ids.append(token)


# ---- a token of the text that is also the padding


PADDED: dict[str, Any] = {
    "xlm": lambda: tf.XLMWithLMHeadModel(
        tf.XLMConfig(vocab_size=320, emb_dim=32, n_layers=2, n_heads=4, causal=True, max_position_embeddings=64)
    ),
    "roberta": lambda: tf.RobertaForCausalLM(
        tf.RobertaConfig(**SIZES | {"pad_token_id": 7}, is_decoder=True)
    ),
    "camembert": lambda: tf.CamembertForCausalLM(
        tf.CamembertConfig(**SIZES | {"pad_token_id": 5}, is_decoder=True)
    ),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES | {"pad_token_id": 7})),
}  # fmt: skip


@pytest.mark.parametrize("kind", PADDED)
def test_a_token_of_the_text_is_never_taken_for_padding(kind: str) -> None:
    torch.manual_seed(0)
    model = PADDED[kind]().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    lm = wrap(model, tiny.tokenizer())
    n, pad = lm.n_layers, lm.config.pad_token_id
    ids = torch.tensor([[9, 80, pad, 33, 61, pad, pad, 12, 40, 8]])
    want = lm.forward(ids, torch.ones_like(ids), layers="all").hidden
    got = lm.forward(ids, layers="all").hidden
    for layer, h in want.items():
        torch.testing.assert_close(got[layer], h, atol=1e-5, rtol=1e-5)
    first = lm.forward(ids[:, :4], layers=(n,), use_cache=True)
    parts = [first.hidden[n]]
    cache = first.cache
    for start, stop in ((4, 7), (7, 8), (8, 10)):
        step = lm.forward(ids[:, start:stop], layers=(n,), cache=cache)
        parts.append(step.hidden[n])
        cache = step.cache
    torch.testing.assert_close(torch.cat(parts, 1), want[n], atol=1e-4, rtol=1e-4)
    prompts = [ids[0, :k].tolist() for k in (10, 6, 3)]
    together = exitlens.generate(lm, prompts, max_new_tokens=6, batch_size=3)  # type: ignore[arg-type]
    alone = [exitlens.generate(lm, [ids], max_new_tokens=6)[0] for ids in prompts]  # type: ignore[arg-type]
    assert [g.token_ids for g in together] == [g.token_ids for g in alone]


# ---- sinks, chunks, clips and windows beyond what is run at load


def _gpt_oss() -> Any:
    return tf.GptOssConfig(
        **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=12,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip


def _llama4() -> Any:
    return tf.Llama4TextConfig(
        **SIZES, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=16, moe_layers=[],
        no_rope_layers=[1, 0], layer_types=["chunked_attention", "full_attention"],
    )  # fmt: skip


FAR: dict[str, tuple[Any, int, bool]] = {
    "attention sinks": (_gpt_oss, 40, False),
    "chunked attention": (_llama4, 40, False),
    "clipped projections": (lambda: tf.OlmoConfig(**SIZES, clip_qkv=0.5), 40, False),
    "a window over 4096": (
        lambda: tf.MistralConfig(**SIZES | {"max_position_embeddings": 6000}, sliding_window=5000), 5030, True,
    ),
    "windows over 4096 in some layers": (
        lambda: tf.Qwen2Config(
            **SIZES | {"max_position_embeddings": 6000}, use_sliding_window=True, sliding_window=4500,
            max_window_layers=1,
        ), 4520, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAR)
def test_decoding_past_what_the_load_looked_at_is_the_models_own(kind: str) -> None:
    config, length, own = FAR[kind]
    model = _built(config())
    if kind == "attention sinks":
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks, mean=2.0)
    model.generation_config.eos_token_id = None
    lm = wrap(model, tiny.tokenizer())
    assert (native(lm) is not None) == own
    ids = (torch.arange(length) * 37 % 317 + 3).tolist()
    answer = exitlens.generate(lm, [ids], max_new_tokens=4)[0]  # type: ignore[arg-type]
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *answer.token_ids]]), use_cache=False).logits[0, length - 1 : -1]
    for row, token in zip(logits, answer.token_ids, strict=False):
        assert float(row.max() - row[token]) < 1e-3
    assert len(answer.token_ids) == 4
    if own:  # without the window the same weights say something else here
        wide = config()
        wide.sliding_window = 5900
        with torch.no_grad():
            seen = _built(wide)(torch.tensor([ids])).logits[0, -1]
        assert float((seen - logits[0]).abs().max()) > 1e-3

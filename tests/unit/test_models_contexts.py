"""How long a text may be, and what a checkpoint's own settings for generation would change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import exitlens
from exitlens.errors import ContextError
from exitlens.models import wrap
from exitlens.models.encoder import load_encoder
from exitlens.models.text.generation_settings import settings_not_applied

from .. import tiny

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip

KIN: dict[str, Any] = {
    "roberta": lambda: tf.RobertaForCausalLM(
        tf.RobertaConfig(**SIZES, max_position_embeddings=34, pad_token_id=1, is_decoder=True)
    ),
    "xlm-roberta": lambda: tf.XLMRobertaForCausalLM(
        tf.XLMRobertaConfig(**SIZES, max_position_embeddings=34, pad_token_id=1, is_decoder=True)
    ),
    "camembert, padded by 3": lambda: tf.CamembertForCausalLM(
        tf.CamembertConfig(**SIZES, max_position_embeddings=36, pad_token_id=3, is_decoder=True)
    ),
    "bert": lambda: tf.BertLMHeadModel(tf.BertConfig(**SIZES, max_position_embeddings=32, is_decoder=True)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0)
    ),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
                     max_position_embeddings=32, word_embed_proj_dim=32)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KIN)
def test_the_context_is_the_positions_that_there_are(kind: str) -> None:
    torch.manual_seed(0)
    lm = wrap(KIN[kind]().eval(), tiny.tokenizer())
    assert lm.context == 32
    ids = torch.arange(3, 3 + 32)[None]
    lm.forward(ids, layers=(2,))
    lm.forward(ids, torch.ones_like(ids), layers=(2,))
    with pytest.raises(ContextError):
        exitlens.generate(lm, [ids[0].tolist()], max_new_tokens=1)  # type: ignore[arg-type]


def test_an_encoder_cuts_texts_at_the_positions_it_has(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tf.RobertaConfig(**SIZES, max_position_embeddings=34, pad_token_id=1)
    tf.RobertaModel(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert encoder.max_tokens == 32
    assert len(encoder.encode(["a b c d e f g h i j " * 10])[0].states) == 32


SETTINGS: list[tuple[str, Any, bool]] = [
    ("repetition_penalty", 1.1, True), ("repetition_penalty", 1.0, False), ("no_repeat_ngram_size", 3, True),
    ("no_repeat_ngram_size", 0, False), ("suppress_tokens", [3], True), ("suppress_tokens", [], False),
    ("begin_suppress_tokens", [3], True), ("bad_words_ids", [[3, 4]], True), ("min_new_tokens", 5, True),
    ("temperature", 0.6, False), ("do_sample", True, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "told"), SETTINGS)
def test_settings_that_are_not_applied_are_said(
    name: str, value: Any, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.model("llama")
    setattr(model.generation_config, name, value)
    assert (name in settings_not_applied(model)) == told
    lm = wrap(model, tiny.tokenizer())
    assert any(name in note for note in lm.notes) == told
    assert (f"{name}=" in caplog.text) == told


def test_texts_of_different_lengths_where_nothing_can_be_padded() -> None:
    torch.manual_seed(0)
    config = tf.XLNetConfig(vocab_size=320, d_model=32, n_layer=2, n_head=4, d_inner=48, attn_type="uni")
    lm = wrap(tf.XLNetLMHeadModel(config).eval(), tiny.tokenizer())
    assert not lm.takes_masks
    texts = ["What is true?", "The capital of France is Paris, and 2 + 2 = 4.", "a"]
    together = exitlens.read(lm, texts, stats=("entropy",)).to_pandas()
    for i, text in enumerate(texts):
        alone = exitlens.read(lm, [text], stats=("entropy",)).to_pandas()
        rows = together[together["text"] == i]
        assert len(rows) == len(alone)
        assert abs(rows["entropy"].to_numpy() - alone["entropy"].to_numpy()).max() < 1e-4

"""Tiny random models of every family that is tested, and a tokenizer to go with them. Nothing is fetched."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 320
_TEXT = [
    "How many whiskers does a human have? None. The capital of France is Paris, and 2 + 2 = 4.",
    "Q: What is true? A: A true statement. Q: What is false? A: A false statement is not true.",
]


@lru_cache
def _backend() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    return str(tokenizer.to_str())


def tokenizer() -> Any:
    """A byte-level BPE of 320 tokens that can write any text."""
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()), eos_token="<|end|>", pad_token="<|end|>"
    )


_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def _without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in _BASE.items() if key not in names}


FAMILIES: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(**_BASE),
    "llama-tied": lambda: tf.LlamaConfig(**_BASE, tie_word_embeddings=True),
    "mistral": lambda: tf.MistralConfig(**_BASE, sliding_window=None),
    "mistral-sliding": lambda: tf.MistralConfig(**_BASE, sliding_window=8),
    "qwen2": lambda: tf.Qwen2Config(**_BASE),
    "qwen3": lambda: tf.Qwen3Config(**_BASE, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(**_BASE, head_dim=8, final_logit_softcapping=2.0, attn_logit_softcapping=5.0),
    "gemma3": lambda: tf.Gemma3TextConfig(**_BASE, head_dim=8, final_logit_softcapping=3.0, sliding_window=8),
    "cohere": lambda: tf.CohereConfig(**_BASE, logit_scale=0.25),
    "granite": lambda: tf.GraniteConfig(**_BASE, logits_scaling=4.0, embedding_multiplier=3.0),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0
    ),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**_without("num_key_value_heads")),
    "opt": lambda: tf.OPTConfig(
        **_without("intermediate_size", "num_key_value_heads"), ffn_dim=48, word_embed_proj_dim=16
    ),
    "phi": lambda: tf.PhiConfig(**_BASE),
    "falcon": lambda: tf.FalconConfig(
        **_without("intermediate_size", "num_key_value_heads"), new_decoder_architecture=False, alibi=False
    ),
}


def model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, spread: float = 0.3) -> Any:
    """A random model of ``family``, its weights wide enough that layers and tokens really differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = tf.AutoModelForCausalLM.from_config(FAMILIES[family]())
        for name, parameter in built.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=spread)
            elif "norm" in name or "ln_" in name:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
            else:
                torch.nn.init.normal_(parameter, std=0.1)
    built.generation_config.eos_token_id = 0
    return built.to(dtype).eval()


def save(folder: Path, family: str = "llama", **options: Any) -> Path:
    """A tiny model with its tokenizer as a local folder, as a user would have one."""
    built = model(family, **options)
    built.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder

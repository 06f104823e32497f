"""A model of random weights with the built-in tokenizer, as a local folder: what lenses find where nothing was learned.

python benchmarks/random_model.py FOLDER [--family gpt-neox] [--width 256] [--layers 8] [--seed 0]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers

from exitlens import load


def configuration(family: str, vocab: int, width: int, layers: int) -> Any:
    """A small configuration of the family."""
    if family == "gpt2":
        return transformers.GPT2Config(vocab_size=vocab, n_embd=width, n_layer=layers, n_head=width // 64)
    return transformers.GPTNeoXConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )  # fmt: skip


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=("gpt-neox", "gpt2"), default="gpt-neox")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    tokenizer = load("smollm2-135m").tokenizer
    torch.manual_seed(asked.seed)
    config = configuration(asked.family, len(tokenizer), asked.width, asked.layers)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(asked.folder)
    tokenizer.save_pretrained(asked.folder)
    print(
        f"wrote {asked.folder}: {asked.family}, {asked.layers} blocks of width {asked.width}, {len(tokenizer)} tokens"
    )


if __name__ == "__main__":
    main()

"""What bfloat16 costs in exactness: statistics beside float64 on the same states, tokens beside transformers' own.

    python benchmarks/bf16_error.py --questions 24 --tokens 24
    python benchmarks/bf16_error.py --data TruthfulQA.csv --questions 60

The model answers greedily in bfloat16. Its states at every layer and answer token are read as a generation reads them,
in bfloat16, and again by the same model in float64: what differs is the readout alone (norm, unembedding, softmax).
Then tokens: exitlens in bfloat16 beside transformers' greedy ``generate`` in bfloat16 and in float32, and those two
beside each other, which says how much of a difference is bfloat16's own.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from identity import theirs

import exitlens
from exitlens.data import read_data
from exitlens.data.prompts import qa_prompt
from exitlens.decoding import generate
from exitlens.decoding.loop import BatchRun
from exitlens.decoding.session import open_prefix
from exitlens.lenses import readout

STATS = ("entropy", "kl", "logprob", "rank", "top_k")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--data", default="facts-qa")
    options.add_argument("--questions", type=int, default=24)
    options.add_argument("--tokens", type=int, default=24)
    chosen = options.parse_args()
    lm = exitlens.load(chosen.model, dtype="bfloat16")
    texts = ["".join(qa_prompt(q)) for q in read_data(chosen.data, limit=chosen.questions).questions]
    print(f"{lm.name}, {len(texts)} questions, {chosen.tokens} new tokens, {torch.get_num_threads()} threads")
    statistics(lm, texts, chosen.tokens)
    tokens(lm, exitlens.load(chosen.model, dtype="float32"), texts, chosen.tokens)


def statistics(lm: Any, texts: Sequence[str], limit: int) -> None:
    """A line a layer group and statistic: mean and largest error, and how many ranks and top tokens change."""
    layers = list(range(lm.n_layers + 1))
    states, targets = answered(lm, texts, limit, layers)
    exact = exitlens.wrap(copy.deepcopy(lm.model).double(), lm.tokenizer, name="float64")
    wide = {j: h.double() for j, h in states.items()}
    want = readout(exact, wide, stats=STATS, targets=targets, top_k=1)
    n = lm.n_layers
    groups = {"0 to N/2": range(n // 2 + 1), "N/2 to N − 1": range(n // 2 + 1, n), "N": range(n, n + 1)}
    print(f"{len(targets)} answer tokens at {len(layers)} layers")
    for precision in ("exact", "fast"):
        got = readout(lm, states, stats=STATS, targets=targets, top_k=1, precision=precision)
        for group, members in groups.items():
            at = list(members)
            line = [f"{precision:5s} layers {group:12s}"]
            for name in ("entropy", "kl", "logprob"):
                error = np.abs(array(got, name)[at] - array(want, name)[at])
                line.append(f"{name} mean {error.mean():.1e} max {error.max():.1e} nats")
            ranks = array(got, "rank")[at] != array(want, "rank")[at]
            tops = array(got, "top_ids")[at] != array(want, "top_ids")[at]
            line.append(f"ranks changed {ranks.mean():.2%}, top-1 {tops.mean():.2%}")
            print("; ".join(line), flush=True)


def array(found: Any, name: str) -> np.ndarray:
    return np.asarray(found[name].double().cpu().numpy()).reshape(len(found[name]), -1)


def answered(lm: Any, texts: Sequence[str], limit: int, layers: list[int]) -> tuple[dict[int, torch.Tensor], Any]:
    """The states from which each answer token was chosen, as a generation with ``read=`` holds them, and the tokens."""
    run = BatchRun(lm, max_new_tokens=limit, stop=["\nQ:"])
    rows = run.rows(texts)
    for batch, prefix in run.batches(rows, 8, lambda ids: open_prefix(lm, ids)):
        for _ in run.batch(batch, prefix, layers):
            pass
    whole = torch.cat([torch.stack(row.hidden) for row in rows if row.hidden])
    ids = [token for row in rows for token in row.new[: len(row.hidden)]]
    return {j: whole[:, k] for k, j in enumerate(layers)}, torch.tensor(ids)


def tokens(half: Any, whole: Any, texts: Sequence[str], limit: int) -> None:
    """How many answers are equal, and how many of their tokens up to the first that differs."""
    ours = [list(g.token_ids) for g in generate(half, texts, max_new_tokens=limit, batch_size=1)]
    batched = [list(g.token_ids) for g in generate(half, texts, max_new_tokens=limit, batch_size=8)]
    ours32 = [list(g.token_ids) for g in generate(whole, texts, max_new_tokens=limit, batch_size=8)]
    theirs16 = [theirs(half, text, limit) for text in texts]
    theirs32 = [theirs(whole, text, limit) for text in texts]
    compare("exitlens bf16, batch 1, beside transformers bf16", ours, theirs16)
    compare("exitlens bf16, batch 8, beside transformers bf16", batched, theirs16)
    compare("exitlens bf16, batch 1, beside transformers float32", ours, theirs32)
    compare("transformers bf16 beside transformers float32", theirs16, theirs32)
    compare("exitlens float32, batch 8, beside transformers float32", ours32, theirs32)


def compare(name: str, ours: Sequence[list[int]], other: Sequence[list[int]]) -> None:
    same = sum(a == b for a, b in zip(ours, other, strict=True))
    total = sum(max(len(a), len(b)) for a, b in zip(ours, other, strict=True))
    alike = 0
    for a, b in zip(ours, other, strict=True):
        length = max(len(a), len(b))
        alike += (
            length
            if a == b
            else next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        )
    print(
        f"{name}: {same} of {len(ours)} answers equal, {alike} of {total} tokens before the first that differs",
        flush=True,
    )


if __name__ == "__main__":
    main()

"""Greedy answers are, token by token, those of `transformers`, and of the published DoLa algorithm written out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from tests import tiny
from torch import Tensor
from torch.nn import functional as F

from exitlens.decoding import generate
from exitlens.models import wrap
from exitlens.models.native.runner import runner_of

# Llama-like, GPT-2-like and GPT-NeoX-like blocks are run one by one, the others through the model's own pass.
NATIVE = ["llama", "llama-tied", "mistral-sliding", "qwen2", "qwen3", "gpt2", "gpt-neox"]
OWN_PASS = ["gemma2", "gemma3", "cohere", "granite", "opt", "phi", "falcon"]
PROMPTS = [
    "How many whiskers does a human have?",
    "Q: What is true?",
    "Q: What is false? A: A false statement is not true. Q: What is true? A:",
    "Paris",
    "The capital of France is Paris, and 2 + 2",
    "A",
    "How many whiskers does a cat have? And a dog, or a mouse? None of them has",
    "and then",
]
NEW = 12


@lru_cache
def model(family: str) -> Any:
    return wrap(tiny.model(family, spread=0.3), tiny.tokenizer())


def plain(lm: Any, prompt: str, **options: Any) -> list[int]:
    """What transformers' own generate answers, end-of-text left out."""
    ids = torch.tensor([lm.encode(prompt)])
    out = lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0, **options
    )
    new = out[0, ids.shape[1] :].tolist()
    return new[: new.index(0)] if 0 in new else new


@pytest.mark.parametrize("family", [*NATIVE, *OWN_PASS])
def test_greedy_is_transformers_generate(family: str) -> None:
    lm = model(family)
    assert (runner_of(lm) is not None) == (family in NATIVE)
    want = [plain(lm, prompt) for prompt in PROMPTS]
    assert len({tuple(w) for w in want}) > 1  # a model that always says the same would prove little
    for batch_size in (1, 8):
        got = generate(lm, PROMPTS, batch_size=batch_size, max_new_tokens=NEW)
        assert [list(g.token_ids) for g in got] == want
        assert [g.finish for g in got] == ["eos" if len(w) < NEW else "length" for w in want]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_shared_prefix_and_a_penalty_change_nothing_else(family: str) -> None:
    lm = model(family)
    prompts = ["The capital of France is Paris. Q: What is true? " + p for p in PROMPTS]
    want = [plain(lm, prompt, repetition_penalty=1.3) for prompt in prompts]
    got = generate(lm, prompts, batch_size=3, max_new_tokens=NEW, repetition_penalty=1.3)
    assert [list(g.token_ids) for g in got] == want


# ---- DoLa as it was published, from its description: everything again from the first token, at every step


def published_dola(
    lm: Any, prompt: str, candidates: list[int], *, static: bool, alpha: float, penalty: float
) -> list[int]:
    net = lm.model
    ids = lm.encode(prompt)
    start = len(ids)
    while len(ids) - start < NEW:
        with torch.no_grad():
            out = net(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        final = out.logits[0, -1].float()
        head = net.get_output_embeddings()
        with torch.no_grad():
            early = {j: head(out.hidden_states[j][0, -1]).float() for j in candidates}
        chosen = candidates[0] if static else most_divergent(final, early)
        base = early[chosen]
        if alpha > 0:
            log_p = F.log_softmax(final, dim=-1)
            scores = log_p - F.log_softmax(base, dim=-1)
            limit = log_p.max() + torch.log(torch.tensor(alpha))
            scores = torch.where(log_p < limit, torch.tensor(-float("inf")), scores)
        else:
            scores = final - base
        for token in set(ids):
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
        token = int(scores.argmax())
        if token == 0:
            break
        ids = [*ids, token]
    return ids[start:]


def most_divergent(final: Tensor, early: dict[int, Tensor]) -> int:
    best, found = -1.0, -1
    p = F.softmax(final, dim=-1)
    for layer, z in early.items():
        q = F.softmax(z, dim=-1)
        m = (p + q) / 2
        first = (m * (m.log() - F.log_softmax(final, dim=-1))).mean()
        second = (m * (m.log() - F.log_softmax(z, dim=-1))).mean()
        value = float((first + second) / 2)
        if value > best:
            best, found = value, layer
    return found


@lru_cache
def deep(family: str) -> Any:
    """Eight layers, so that both halves hold several candidates."""
    before = tiny._BASE["num_hidden_layers"]
    tiny._BASE["num_hidden_layers"] = 8
    try:
        return wrap(tiny.model(family, spread=0.15), tiny.tokenizer())
    finally:
        tiny._BASE["num_hidden_layers"] = before


SETS = {"low": [0, 2], "high": [4, 6]}


@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("candidates", ["low", "high", "static"])
@pytest.mark.parametrize(("family", "alpha"), [("llama", 0.1), ("llama", 0.0), ("phi", 0.1)])
def test_reference_dola_is_the_published_algorithm(family: str, alpha: float, candidates: str, penalty: float) -> None:
    lm = deep(family)
    if candidates == "static":
        layers, text = [5], f"dola:5,choice=reference,top={alpha}"
    else:
        layers = SETS[candidates]
        text = f"dola:{candidates},choice=reference,top={alpha}"
    want = [
        published_dola(lm, p, layers, static=candidates == "static", alpha=alpha, penalty=penalty) for p in PROMPTS[:3]
    ]
    for batch_size in (1, 4):
        got = generate(
            lm, PROMPTS[:3], decoder=text, batch_size=batch_size, max_new_tokens=NEW, repetition_penalty=penalty
        )
        assert [list(g.token_ids) for g in got] == want


def test_the_dola_test_would_notice_a_wrong_layer_or_definition() -> None:
    """The tokens do depend on what is tested above: layer choice, contrast, filter and penalty."""
    lm = deep("llama")

    def tokens(decoder: str, penalty: float = 1.0) -> list[tuple[int, ...]]:
        answers = generate(lm, PROMPTS[:3], decoder=decoder, max_new_tokens=NEW, repetition_penalty=penalty)
        return [a.token_ids for a in answers]

    base = tokens("dola:low,choice=reference")
    for other in ("vanilla", "dola:high,choice=reference", "dola:low,choice=reference,lens=logit", "static:5"):
        assert tokens(other) != base
    assert tokens("dola:low,choice=reference,top=0") != base
    assert tokens("dola:low,choice=reference", 1.2) != base
    traced = generate(lm, PROMPTS[:3], decoder="dola:low,choice=reference", max_new_tokens=NEW, trace=True)
    assert {int(j) for g in traced for j in g.steps["choice"]} == {0, 2}

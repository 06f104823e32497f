"""A checkpoint's own generation settings, on request: greedy answers are then those of `transformers`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import exitlens
from exitlens.decoding.token_rules import TokenRules
from exitlens.errors import InputError
from exitlens.models import wrap

from .. import tiny

PROMPTS = [[5, 80, 33, 7], [9, 9, 61, 12, 9, 9], [100, 3]]


def _theirs(model: Any, prompt: list[int]) -> list[int]:
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
    return out[: out.index(0)] if 0 in out else out


def _first(model: Any) -> list[int]:
    return [_theirs(model, prompt)[0] for prompt in PROMPTS]


CASES = [
    "repetition_penalty",
    "no_repeat_ngram_size",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "all",
]


@pytest.mark.parametrize("kind", CASES)
def test_answers_with_the_models_own_settings_are_those_of_transformers(kind: str) -> None:
    model = tiny.model("llama")
    plain = [_theirs(model, prompt) for prompt in PROMPTS]
    first = _first(model)
    settings: dict[str, Any] = {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "suppress_tokens": first[:2],
        "begin_suppress_tokens": first,
        "bad_words_ids": [[first[0]], [plain[1][0], plain[1][1]]],
    }
    for name, value in settings.items():
        if kind in (name, "all"):
            setattr(model.generation_config, name, value)
    lm = wrap(model, tiny.tokenizer())
    want = [_theirs(model, prompt) for prompt in PROMPTS]
    assert want != plain  # the setting does something here
    got = exitlens.generate(lm, PROMPTS, max_new_tokens=12, generation_config="model")  # type: ignore[arg-type]
    assert [list(g.token_ids) for g in got] == want
    without = exitlens.generate(lm, PROMPTS, max_new_tokens=12)  # type: ignore[arg-type]
    assert [list(g.token_ids) for g in without] == plain


def test_ends_are_put_off() -> None:
    rules = TokenRules(least=3, ends=(0, 4))
    assert rules.forbidden([1], [2, 2]) == {0, 4}
    assert rules.forbidden([1], [2, 2, 2]) == set()


def test_what_cannot_be_applied_is_refused() -> None:
    model = tiny.model("llama")
    lm = wrap(model, tiny.tokenizer())
    with pytest.raises(InputError, match="unknown generation settings 'mine'"):
        exitlens.generate(lm, PROMPTS, generation_config="mine")  # type: ignore[arg-type]
    model.generation_config.sequence_bias = {(3,): -1.0}
    with pytest.raises(InputError, match="sequence_bias cannot be applied"):
        exitlens.generate(lm, PROMPTS, generation_config="model")  # type: ignore[arg-type]

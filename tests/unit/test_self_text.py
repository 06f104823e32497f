"""Texts that the model wrote itself are used by their token ids: their text, tokenised again, is other ids."""

from __future__ import annotations

from typing import Any

import pytest
from tests import tiny
from tokenizers import normalizers, pre_tokenizers, processors

from exitlens.decoding import Sampling, generate
from exitlens.models import wrap
from exitlens.studies.exits.files import own_texts, own_windows
from exitlens.studies.lens_training import pieces_of_own


def _bos(tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", pair="<|end|> $A $B", special_tokens=[("<|end|>", 0)]
    )
    return tokenizer


def _lower(tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def _spaced(tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


TOKENIZERS = {"plain": lambda t: t, "bos": _bos, "lower": _lower, "spaced": _spaced}


def _model(kind: str) -> Any:
    # Wide weights: a random model writes bytes that are no characters, and pairs that BPE would merge.
    return wrap(tiny.model("llama"), TOKENIZERS[kind](tiny.tokenizer()))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_own_texts_are_the_ids_that_were_chosen(kind: str) -> None:
    lm = _model(kind)
    texts = own_texts(lm, 20, tokens=24, seed=3)
    prompts = [lm.decode(ids) for ids in texts]
    assert len(texts) == 20
    changed = sum(lm.encode(text) != ids for text, ids in zip(prompts, texts, strict=True))
    assert changed >= 10, "this tokenizer would not tell"
    beginnings = [g.prompt_ids for g in generate(lm, ["The", "In"], max_new_tokens=1)]
    assert texts[0][: len(beginnings[0])] == list(beginnings[0])
    again = generate(lm, ["The", "In"], max_new_tokens=24, sampling=Sampling(temperature=1.0), seed=3)
    for ids, answer in zip(texts, again, strict=False):
        assert ids == [*answer.prompt_ids, *answer.token_ids]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_lens_and_exit_heads_are_fitted_on_those_ids(kind: str) -> None:
    lm = _model(kind)
    written = own_texts(lm, 20, seed=1)
    found = pieces_of_own(lm, 20, 100_000, seed=1)
    assert found.ids == [ids for ids in written if len(ids) > 1]
    assert found.source == "20 texts by the model itself, seed 1"
    windows = own_windows(lm, 20, length=16, seed=1)
    lead = int(kind == "bos")
    joined = [token for window in windows for token in window]
    between = lm.encode("A\n\n", special=False)[len(lm.encode("A", special=False)) :]
    want = [token for ids in own_texts(lm, 20, tokens=16, seed=1) for token in (*ids[lead:], *between)]
    assert joined == want[: len(joined)]
    assert len(want) - len(joined) < 16


def test_a_short_context_leaves_room_for_the_beginnings() -> None:
    built = tiny.model("llama")
    built.config.max_position_embeddings = 24
    lm = wrap(built, tiny.tokenizer())
    assert 4 < max(map(len, own_texts(lm, 4, tokens=128))) <= 24

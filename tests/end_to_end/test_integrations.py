"""Decoders inside transformers' own ``generate``: what it returns, and that its settings still hold."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from tests import tiny
from transformers import StoppingCriteria, TextStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

import exitlens
from exitlens.decoding import generate
from exitlens.errors import InputError
from exitlens.integrations.transformers_generate import transformers_generate
from exitlens.models import wrap

PROMPTS = ["How many whiskers does a human have?", "Q: What is true?", "Paris"]
NEW = 10
# transformers 5.24 renamed `past_key_values`, as an argument and as a field.
CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"


@lru_cache
def model(family: str) -> Any:
    return tiny.model(family, spread=0.2)


@lru_cache
def loop(decoder: str) -> Any:
    return transformers_generate(decoder)


def batch(prompts: list[str] = PROMPTS) -> dict[str, torch.Tensor]:
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    return dict(tokenizer(prompts, return_tensors="pt", padding=True))


def run(family: str, decoder: str, prompts: list[str] = PROMPTS, **options: Any) -> Any:
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | options
    return model(family).generate(**batch(prompts), custom_generate=loop(decoder), **options)


def answers(out: torch.Tensor, width: int) -> list[list[int]]:
    rows = [row[width:].tolist() for row in out]
    return [row[: row.index(0)] if 0 in row else row for row in rows]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "falcon"])
def test_vanilla_is_generate_itself(family: str) -> None:
    want = model(family).generate(**batch(), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    got = run(family, "vanilla")
    assert type(got) is type(want)
    assert torch.equal(got, want)


@pytest.mark.parametrize("decoder", ["dola:0/2", "sled", "end:1/2", "acd"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_contrasts_are_those_of_our_own_loop_on_a_left_padded_batch(decoder: str, use_cache: bool) -> None:
    lm = wrap(model("llama"), tiny.tokenizer())
    want = [list(g.token_ids) for g in generate(lm, PROMPTS, decoder=decoder, max_new_tokens=NEW)]
    got = run("llama", decoder, use_cache=use_cache)
    assert answers(got, batch()["input_ids"].shape[1]) == want
    assert want != [list(g.token_ids) for g in generate(lm, PROMPTS, max_new_tokens=NEW)]


def test_the_penalty_comes_after_the_contrast() -> None:
    lm = wrap(model("llama"), tiny.tokenizer())
    want = generate(lm, PROMPTS[:1], decoder="dola:0/2", max_new_tokens=NEW, repetition_penalty=1.3)[0].token_ids
    got = run("llama", "dola:0/2", PROMPTS[:1], repetition_penalty=1.3)
    assert answers(got, batch(PROMPTS[:1])["input_ids"].shape[1])[0] == list(want)


def test_a_model_output_where_one_is_asked_for() -> None:
    want = model("llama").generate(
        **batch(), max_new_tokens=4, do_sample=False, pad_token_id=0, return_dict_in_generate=True,
        output_scores=True, output_logits=True, output_hidden_states=True,
    )  # fmt: skip
    got = run(
        "llama", "dola:0/2", max_new_tokens=4, return_dict_in_generate=True, output_scores=True,
        output_logits=True, output_hidden_states=True,
    )  # fmt: skip
    assert type(got) is type(want)
    assert got.sequences.shape[0] == 3
    assert (
        len(got.scores)
        == len(got.logits)
        == len(got.hidden_states)
        == got.sequences.shape[1] - batch()["input_ids"].shape[1]
    )
    torch.testing.assert_close(got.logits[0], want.logits[0])
    assert not torch.equal(got.scores[0], want.scores[0])
    assert got[CACHE].get_seq_length() == got.sequences.shape[1] - 1
    assert run("llama", "dola:0/2", return_dict_in_generate=True).scores is None


def test_a_cache_of_the_caller_is_gone_on_from() -> None:
    first = run("llama", "dola:0/2", PROMPTS[:1], max_new_tokens=4, return_dict_in_generate=True)
    whole = run("llama", "dola:0/2", PROMPTS[:1], max_new_tokens=8)
    rest = model("llama").generate(
        first.sequences, **{CACHE: first[CACHE]}, custom_generate=loop("dola:0/2"),
        max_new_tokens=whole.shape[1] - first.sequences.shape[1], do_sample=False, pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(rest, whole)


def test_sampling_settings_hold() -> None:
    def sample(seed: int, **options: Any) -> torch.Tensor:
        torch.manual_seed(seed)
        found: torch.Tensor = run("llama", "dola:0/2", do_sample=True, **options)
        return found

    assert torch.equal(sample(1), sample(1))
    assert len({tuple(sample(s, temperature=3.0).flatten().tolist()) for s in range(4)}) > 1
    assert torch.equal(sample(5, top_k=1), run("llama", "dola:0/2"))
    assert sample(2, num_return_sequences=2).shape[0] == 6


class _After(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def test_stopping_criteria_hold() -> None:
    width = batch()["input_ids"].shape[1]
    assert run("llama", "sled", stopping_criteria=[_After(width + 3)]).shape[1] == width + 3


def test_finished_rows_are_padded() -> None:
    plain = run("llama", "dola:0/2")
    width = batch()["input_ids"].shape[1]
    eos = int(plain[0, width + 2])
    got = run("llama", "dola:0/2", eos_token_id=eos)
    for row in got[:, width:].tolist():
        if eos in row:
            assert set(row[row.index(eos) + 1 :]) <= {0}
    assert eos in got[0, width:].tolist()


def test_a_streamer_is_given_to_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer(tiny.tokenizer(), skip_prompt=True)
    given = transformers_generate("dola:0/2", streamer=streamer)
    out = model("llama").generate(
        **batch(PROMPTS[:1]), custom_generate=given, max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    text = tiny.tokenizer().decode(out[0, batch(PROMPTS[:1])["input_ids"].shape[1] :])
    assert capsys.readouterr().out.strip("\n") == text.strip("\n")


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(InputError, match="num_beams=2"):
        run("llama", "dola:0/2", num_beams=2)
    with pytest.raises(InputError, match="did you mean dola"):
        transformers_generate("dolla")


def test_no_hook_is_left_behind() -> None:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model("llama").modules())

    run("llama", "vanilla")  # transformers puts some of its own on a model that it has run
    before = hooks()
    run("llama", "dola:0/2")
    assert hooks() == before


def test_the_name_in_the_package() -> None:
    assert exitlens.transformers_generate is transformers_generate

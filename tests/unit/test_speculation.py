"""Drafting changes no token when greedy and no distribution when sampling; the test of that catches a planted error."""

from __future__ import annotations

import copy
import time
from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers as tf
from scipy import stats
from tests import tiny

from exitlens.decoding import Sampling, generate
from exitlens.errors import InputError, LayerError, UnsupportedModel
from exitlens.exits import draft_search as exit_search
from exitlens.exits import rounds
from exitlens.exits.draft import Draft
from exitlens.exits.speculation import SpeculationTally, speculate
from exitlens.models import wrap

PROMPTS = [
    "How many whiskers does a human have?",
    "Q: What is true?",
    "Q: What is false? A: A false statement is not true. Q: What is true? A:",
    "Paris",
    "The capital of France is Paris, and 2 + 2",
]
DRAFTS = [
    Draft(exit=1),
    Draft(exit=4, length=3),
    Draft(exit=5, length=1),
    Draft(skip_attention=(2, 4), skip_mlp=(5,), length=3),
    Draft(skip_attention=(1,), length=2),
    Draft(skip_attention=(3, 6), skip_mlp=(3, 6)),
]


@lru_cache
def model(family: str, spread: float = 0.11, vocab: int = tiny.VOCAB) -> Any:
    base = {**tiny._BASE, "num_hidden_layers": 6, "vocab_size": vocab}
    if family == "gpt2":
        config: Any = tf.GPT2Config(
            vocab_size=vocab, n_embd=32, n_layer=6, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0
        )
    elif family == "gpt-neox":
        del base["num_key_value_heads"]
        config = tf.GPTNeoXConfig(**base)
    else:
        config = tf.LlamaConfig(**base)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        built = tf.AutoModelForCausalLM.from_config(config)
        for name, parameter in built.named_parameters():
            if parameter.dim() > 1:
                outer = "emb" in name or "wte" in name or "head" in name
                torch.nn.init.normal_(parameter, std=0.3 if outer else spread)
    return wrap(built.eval(), tiny.tokenizer())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("draft", DRAFTS, ids=lambda d: f"{d.name}x{d.length}")
def test_greedy_tokens_are_those_of_plain_decoding(family: str, draft: Draft) -> None:
    lm = model(family)
    want = generate(lm, PROMPTS, max_new_tokens=20)
    for batch_size in (1, 4):
        tally = SpeculationTally()
        got = speculate(lm, PROMPTS, draft, max_new_tokens=20, batch_size=batch_size, tally=tally)
        assert [g.token_ids for g in got] == [w.token_ids for w in want]
        assert [g.finish for g in got] == [w.finish for w in want]
        assert 0 <= tally.accepted <= tally.drafted
        assert tally.rounds == len(tally.lengths)


def test_good_drafts_are_accepted_and_save_blocks_run() -> None:
    lm = model("llama", spread=0.02)  # deep blocks hardly change the stream: drafts hold
    tally = SpeculationTally()
    got = speculate(lm, PROMPTS, Draft(exit=3), max_new_tokens=20, tally=tally)
    assert tally.acceptance > 0.5
    tokens = sum(len(g.token_ids) - 1 for g in got)
    # Verification takes the kept states on from block 3: what was accepted ran each block once.
    assert tally.blocks <= 6 * tokens + 6 * (tally.drafted - tally.accepted) + 3 * tally.rounds


def test_stop_strings_end_an_answer_where_they_do_in_plain_decoding() -> None:
    lm = model("llama")
    whole = generate(lm, PROMPTS, max_new_tokens=20)
    stop = lm.decode(whole[0].token_ids[7:8])
    want = generate(lm, PROMPTS, max_new_tokens=20, stop=[stop])
    got = speculate(lm, PROMPTS, Draft(exit=2), max_new_tokens=20, stop=[stop], batch_size=4)
    assert [g.text for g in got] == [w.text for w in want]


def chi_square(lm: Any, draft: Draft, draws: int) -> float:
    """p-value of "the first three tokens after the prompt's own are distributed as in plain sampling"."""
    sampling = Sampling(temperature=0.7, top_k=4)
    prompt = "Paris"
    ids = lm.encode(prompt)
    exact: dict[tuple[int, ...], float] = {}
    layer: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        grown: dict[tuple[int, ...], float] = {}
        for tokens, mass in layer.items():
            hidden = lm.forward(torch.tensor([[*ids, *tokens]]), layers=[lm.n_layers], positions="last").hidden
            p = sampling.distribution(lm.logits(hidden[lm.n_layers][0], lm.n_layers).float())[0]
            for token in p.nonzero().flatten().tolist():
                grown[(*tokens, token)] = mass * float(p[token])
        layer = grown
    exact = layer
    got = speculate(lm, [prompt] * draws, draft, max_new_tokens=3, sampling=sampling, batch_size=200)
    seen = Counter(g.token_ids for g in got)
    # Rare outcomes are put together, as the test needs at least five expected in each.
    big = [key for key, mass in exact.items() if mass * draws >= 5]
    observed = [seen[key] for key in big]
    expected = [exact[key] * draws for key in big]
    if draws - sum(expected) > 5:
        observed.append(draws - sum(observed))
        expected.append(draws - sum(expected))
    else:
        expected = [e * sum(observed) / sum(expected) for e in expected]
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.fixture(scope="module")
def sampled() -> Any:
    lm = model("llama", spread=0.2)
    lm.model.generation_config.eos_token_id = []
    return lm


@pytest.mark.parametrize("draft", [Draft(exit=2, length=2), Draft(skip_attention=(3,), skip_mlp=(5,), length=2)])
def test_sampling_keeps_the_distribution(sampled: Any, draft: Draft) -> None:
    assert chi_square(sampled, draft, 2000) > 1e-3


def test_that_test_catches_accepting_always(sampled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(self: Any, row: Any, final: Any, draft: list[int], share: Any) -> tuple[list[int], int]:
        p = self.run.sampling.distribution(final)
        return [*draft, int(torch.multinomial(p[len(draft)], 1, generator=row.generator))], len(draft)

    monkeypatch.setattr(rounds.Rounds, "_verify", always)
    assert chi_square(sampled, Draft(exit=2, length=2), 2000) < 1e-6


def test_that_test_catches_drawing_the_replacement_from_the_whole(
    sampled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(self: Any, row: Any, final: Any, draft: list[int], share: Any) -> tuple[list[int], int]:
        p = self.run.sampling.distribution(final)
        for k, token in enumerate(draft):
            if float(torch.rand((), generator=row.generator)) >= float(p[k, token] / share[k][token]):
                return [*draft[:k], int(torch.multinomial(p[k], 1, generator=row.generator))], k
        return [*draft, int(torch.multinomial(p[len(draft)], 1, generator=row.generator))], len(draft)

    monkeypatch.setattr(rounds.Rounds, "_verify", careless)
    assert chi_square(sampled, Draft(exit=2, length=2), 2000) < 1e-3


def test_the_search_finds_sub_layers_that_do_nothing() -> None:
    built = copy.deepcopy(model("llama", spread=0.2).model)
    with torch.no_grad():
        built.model.layers[2].self_attn.o_proj.weight.zero_()
        built.model.layers[3].mlp.down_proj.weight.zero_()
    lm = wrap(built, tiny.tokenizer())
    found = exit_search.search_skips(lm, lm.encode(PROMPTS[2]), least=1.0, most=2)
    assert found is not None
    assert (found.skip_attention, found.skip_mlp) == ((3,), (4,))


@pytest.mark.parametrize("slow", ["generate", "speculate"])
def test_auto_takes_the_draft_that_is_faster_and_plain_decoding_where_none_is(
    monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """Either way of decoding is made slow by hand: what is chosen must follow."""
    real = getattr(exit_search, slow)

    def slowly(*given: Any, **more: Any) -> Any:
        made = real(*given, **more)
        time.sleep(0.5 + 0.01 * sum(len(g.token_ids) for g in made))
        return made

    monkeypatch.setattr(exit_search, slow, slowly)
    drafts = [Draft(exit=2), Draft(exit=5)]
    chosen, trials = exit_search.best_draft(model("llama"), PROMPTS[:2], drafts=drafts, max_new_tokens=6, repeats=1)
    assert [t.name for t in trials] == ["plain", "exit=2", "exit=5"]
    if slow == "generate":
        assert chosen in drafts
        assert max(t.speedup for t in trials) == next(t.speedup for t in trials if t.draft == chosen) > 1.03
    else:
        assert chosen is None


@pytest.mark.parametrize(
    ("draft", "error", "says"),
    [
        (Draft(exit=0), LayerError, "draft exit 0"),
        (Draft(exit=6), LayerError, "draft exit 6"),
        (Draft(skip_mlp=(7,)), LayerError, "block 7"),
        (Draft(), InputError, "skips nothing"),
        (Draft(exit=2, skip_mlp=(3,)), InputError, "give one"),
        (Draft(exit=2, length=0), InputError, "draft length 0"),
    ],
)
def test_what_cannot_be_is_refused(draft: Draft, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        speculate(model("llama"), PROMPTS[:1], draft)


def test_a_family_whose_blocks_cannot_be_run_apart_is_refused() -> None:
    lm = wrap(tiny.model("opt"), tiny.tokenizer())
    with pytest.raises(UnsupportedModel, match="decode plainly"):
        speculate(lm, PROMPTS[:1], Draft(exit=1))

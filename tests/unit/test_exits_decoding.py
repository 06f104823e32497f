"""Leaving early: the deferred cache is that of a full pass, and decoding does what the analysis predicts."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from tests import tiny

from exitlens.decoding import generate
from exitlens.errors import InputError, LayerError, UnsupportedModel
from exitlens.exits.depth_cache import CachePolicy
from exitlens.exits.policies import ExitPolicy, parse_policy
from exitlens.exits.replay_policies import Cost, Outcome, Signals, apply_policy, oracle, signals_of
from exitlens.exits.session import ExitPrefix, Tally
from exitlens.exits.shortlist import ExitReader
from exitlens.models import wrap

FAMILIES = ["llama", "gpt2", "gpt-neox"]
LAYERS = 6
PROMPTS = [
    "How many whiskers does a human have?",
    "Q: What is true?",
    "Q: What is false? A: A false statement is not true. Q: What is true? A:",
    "Paris",
    "The capital of France is Paris, and 2 + 2",
]
NEW = 14
EVERY = tuple(range(1, LAYERS))


@lru_cache
def model(family: str) -> Any:
    """Six blocks, so that there is something to leave out; weights small enough that some exits do agree."""
    sizes = {
        "llama": partial(tf.LlamaConfig, **{**tiny._BASE, "num_hidden_layers": LAYERS}),
        "gpt2": partial(
            tf.GPT2Config,
            vocab_size=tiny.VOCAB,
            n_embd=32,
            n_layer=LAYERS,
            n_head=4,
            n_positions=256,
            bos_token_id=0,
            eos_token_id=0,
        ),
        "gpt-neox": partial(tf.GPTNeoXConfig, **{**tiny._without("num_key_value_heads"), "num_hidden_layers": LAYERS}),
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        built = tf.AutoModelForCausalLM.from_config(sizes[family]())
        for name, parameter in built.named_parameters():
            if parameter.dim() > 1:
                # The residual stream keeps most of its direction, as in a real model: tokens leave at every layer.
                torch.nn.init.normal_(parameter, std=0.3 if "emb" in name or "wte" in name or "head" in name else 0.11)
    built.generation_config.eos_token_id = []  # every answer runs to its full length
    return wrap(built.eval(), tiny.tokenizer())


def decode(
    lm: Any, policy: ExitPolicy, *, cache: CachePolicy = "defer", batch_size: int = 1, prompts: list[str] = PROMPTS,
    **more: Any,
) -> tuple[list[Any], Tally, list[Any]]:  # fmt: skip
    tally, sessions = Tally(), []

    def open_with(ids: Any) -> Any:
        prefix = ExitPrefix(lm, ids, policy, cache=cache, steps=NEW, tally=tally, **more)
        inner = prefix.session

        def session(layers: Any, room: int) -> Any:
            sessions.append(inner(layers, room))
            return sessions[-1]

        prefix.session = session  # type: ignore[method-assign]
        return prefix

    options: dict[str, Any] = {"max_new_tokens": NEW, "batch_size": batch_size, "trace": True}
    return generate(lm, prompts, open_with=open_with, **options), tally, sessions


def predicted(lm: Any, prompt: str, answer: tuple[int, ...], policy: ExitPolicy) -> tuple[Outcome, Signals]:
    """One full pass over prompt and answer; answer tokens after the first (that one ends the prompt's pass)."""
    ids = lm.encode(prompt)
    hidden = lm.forward(torch.tensor([[*ids, *answer]]), layers="all").hidden
    at = slice(len(ids), len(ids) + len(answer) - 1)
    states = {j: hidden[j][0, at] for j in (*EVERY, LAYERS)}
    steps = np.arange(1, len(answer))
    signals = signals_of(lm, states, np.zeros(len(steps)), steps)
    return apply_policy(signals, policy, Cost(1.0, 1.0), steps=NEW), signals


@lru_cache
def policy_of(family: str, kind: Any, layers: tuple[int, ...] = EVERY, decay: bool = False) -> ExitPolicy:
    """A policy with a threshold that some tokens pass early, some late and some never."""
    if kind == "fixed":
        return ExitPolicy("fixed", layers=(4,))
    if kind == "patience":
        return ExitPolicy("patience", 3, layers)
    ids = model(family).encode(PROMPTS[2])
    hidden = model(family).forward(torch.tensor([ids]), layers="all").hidden
    signals = signals_of(model(family), {j: hidden[j][0] for j in (*EVERY, LAYERS)}, [0] * len(ids), range(len(ids)))
    best = np.nanmin(signals.values[kind], 0) if kind == "entropy" else np.nanmax(signals.values[kind], 0)
    return ExitPolicy(kind, float(np.quantile(best, 0.5)), layers, decay)


POLICIES: list[tuple[Any, ...]] = [
    ("probability",), ("probability", EVERY, True), ("margin",), ("entropy",), ("patience",), ("cosine",), ("fixed",),
    ("probability", (2, 5)),
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("made", POLICIES, ids=str)
def test_decoding_does_what_the_analysis_predicts(family: str, made: tuple[Any, ...]) -> None:
    lm, policy = model(family), policy_of(family, *made)
    answers, tally, _ = decode(lm, policy, batch_size=3)
    left: list[int] = []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        outcome, signals = predicted(lm, prompt, answer.token_ids, policy)
        exits = answer.steps["exit"][1:]
        assert exits.tolist() == outcome.exit.tolist()
        assert answer.steps["exit"][0] == LAYERS
        rows = [signals.layers.index(e) if e < LAYERS else len(signals.layers) for e in exits]
        assert list(answer.token_ids[1:]) == signals.top[rows, np.arange(len(rows))].tolist()
        left += exits.tolist()
    # Leaving and staying both occur; otherwise nothing was shown.
    assert min(left) < LAYERS
    assert policy.kind == "fixed" or len(set(left)) > 1
    assert tally.exits is not None
    assert sum(tally.exits.values()) == sum(len(a.token_ids) for a in answers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["probability", "fixed"])
def test_deferred_keys_and_values_are_those_of_a_full_pass(family: str, kind: str) -> None:
    lm = model(family)
    answers, _, sessions = decode(lm, policy_of(family, kind), prompts=PROMPTS[:2], batch_size=2)
    depths = sessions[0].depths
    runner, everyone = depths.runner, np.arange(len(answers))
    assert min(min(a.steps["exit"]) for a in answers) < LAYERS
    for block in range(1, LAYERS + 1):
        waits = (depths.depth[:, : int(depths.lengths.max())] == block - 1).any(1)
        if waits.any():
            depths.advance(everyone[waits], block)
    order = sorted(range(len(answers)), key=lambda i: -len(lm.encode(PROMPTS[i])))
    for row, i in enumerate(order):
        n = int(depths.lengths[row])
        ids = torch.tensor([[*lm.encode(PROMPTS[i]), *answers[i].token_ids][:n]])
        kv, where = runner.new_kv(1, n), runner.where(0, n)
        runner.run(runner.embed(ids, where), kv, where)
        for layer in range(LAYERS):
            for mine, full in ((depths.kv.keys, kv.keys), (depths.kv.values, kv.values)):
                torch.testing.assert_close(mine[layer][row, :, :n], full[layer][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["defer", "propagate", "recompute"])
def test_never_leaving_is_plain_decoding(family: str, cache: CachePolicy) -> None:
    lm = model(family)
    want = [g.token_ids for g in generate(lm, PROMPTS, max_new_tokens=NEW)]
    for policy in (ExitPolicy("never"), ExitPolicy("probability", 1.0, EVERY)):
        answers, tally, _ = decode(lm, policy, cache=cache, batch_size=3)
        assert [g.token_ids for g in answers] == want
        assert tally.blocks == LAYERS * sum(len(w) - 1 for w in want)


@pytest.mark.parametrize("cache", ["defer", "propagate", "recompute"])
def test_a_batch_is_each_row_alone(cache: CachePolicy) -> None:
    lm = model("llama")
    policy = policy_of("llama", "probability")
    alone, _, _ = decode(lm, policy, cache=cache, batch_size=1)
    together, tally, _ = decode(lm, policy, cache=cache, batch_size=5)
    for a, b in zip(alone, together, strict=True):
        assert a.token_ids == b.token_ids
        assert a.steps["exit"].tolist() == b.steps["exit"].tolist()
    assert tally.blocks < LAYERS * sum(len(a.token_ids) - 1 for a in alone) or cache == "recompute"


def test_deferring_equals_recomputing_and_costs_less() -> None:
    lm = model("llama")
    policy = policy_of("llama", "probability")
    deferred, cheap, _ = decode(lm, policy)
    again, dear, _ = decode(lm, policy, cache="recompute")
    assert [a.token_ids for a in deferred] == [a.token_ids for a in again]
    assert cheap.blocks < dear.blocks


def test_finished_rows_leave_and_the_others_go_on() -> None:
    lm = model("llama")
    policy = policy_of("llama", "probability")
    whole, _, _ = decode(lm, policy, batch_size=5)
    texts = [lm.decode([t]) for t in whole[2].token_ids]
    stop = next(t for t in texts[3:] if t.strip())

    def run(size: int) -> list[Any]:
        return generate(
            lm, PROMPTS, max_new_tokens=NEW, batch_size=size, stop=[stop],
            open_with=lambda ids: ExitPrefix(lm, ids, policy, steps=NEW),
        )  # fmt: skip

    cut, alone = run(5), run(1)
    assert len({len(g.token_ids) for g in cut}) > 1
    assert [g.token_ids for g in cut] == [g.token_ids for g in alone]


def test_the_oracle_always_agrees_and_no_policy_without_errors_leaves_earlier() -> None:
    lm = model("llama")
    ids = torch.tensor([lm.encode(PROMPTS[2])])
    hidden = lm.forward(ids, layers="all").hidden
    states = {j: hidden[j][0] for j in (*EVERY, LAYERS)}
    steps = np.arange(ids.shape[1])
    signals = signals_of(lm, states, np.zeros(len(steps)), steps)
    cost = Cost(1.0, 2.0)
    bound = oracle(signals, cost)
    assert bound.agrees.all()
    assert (bound.exit < LAYERS).any()
    for threshold in (0.05, 0.12, 0.5):
        outcome = apply_policy(signals, ExitPolicy("probability", threshold, EVERY), cost)
        stays = outcome.exit < bound.exit
        # Leaving before the token settled is only right where the top token wavers afterwards.
        settled = np.array([np.flatnonzero(signals.top[:-1, t] == signals.top[-1, t]).min(initial=99) for t in steps])
        assert not outcome.agrees[stays & (settled == 99)].any()
    never = apply_policy(signals, ExitPolicy("never"), cost)
    assert never.flops_saved == 0.0
    assert never.agrees.all()
    # Asking at every exit and never leaving costs more than the model: the price of asking is counted.
    assert apply_policy(signals, ExitPolicy("probability", 1.0, EVERY), cost).flops_saved == pytest.approx(-10 / 8)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("fixed:0", LayerError, "exit layer 0"),
        ("fixed:6", LayerError, "exit layer 6"),
        ("probability:0.9@2,9", LayerError, "exit layer 9"),
        ("probability:1.5", InputError, "1.5"),
        ("entropy:-1", InputError, "-1"),
        ("patience:0", InputError, "patience"),
        ("probability", InputError, "needs a threshold"),
        ("softmax:0.9", InputError, "softmax"),
        ("probability:high", InputError, "probability:high"),
        ("probability:nan", InputError, "nan"),
        ("fixed:2.5", InputError, "2.5"),
        ("fixed:2@3", InputError, "takes no @layers"),
        ("fixed", InputError, "needs its layer"),
        ("margin:0.5@", InputError, "is not a layer"),
        ("margin:0.5@2/9,x", InputError, "'x' in layers"),
    ],
)
def test_what_cannot_be_is_refused(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        parse_policy(text).exits(LAYERS)


def test_a_family_whose_blocks_cannot_be_run_apart_can_still_be_analysed() -> None:
    lm = wrap(tiny.model("opt"), tiny.tokenizer())
    with pytest.raises(UnsupportedModel, match="cannot exit early"):
        ExitPrefix(lm, (), ExitPolicy("never"))
    ids = torch.tensor([lm.encode(PROMPTS[0])])
    hidden = lm.forward(ids, layers="all").hidden
    steps = np.arange(ids.shape[1])
    signals = signals_of(lm, {j: h[0] for j, h in hidden.items()}, np.zeros(len(steps)), steps)
    assert signals.layers == (1, 2)


def test_classifier_needs_heads_and_a_reader_reads() -> None:
    lm = model("llama")
    with pytest.raises(InputError, match="--heads"):
        ExitPrefix(lm, (), ExitPolicy("classifier", 0.5, EVERY))
    answers, tally, _ = decode(
        lm, ExitPolicy("classifier", 0.5, EVERY),
        reader=ExitReader(lm, classifier=lambda h, layer: torch.full(h.shape[:-1], 1.0 if layer == 3 else 0.0)),
    )  # fmt: skip
    assert {e for a in answers for e in a.steps["exit"][1:].tolist()} == {3}
    # No vocabulary product is spent on asking: one a token, where it leaves.
    assert tally.unembeddings == sum(len(a.token_ids) - 1 for a in answers)

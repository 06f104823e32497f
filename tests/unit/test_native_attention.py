"""Attention of decoding against the formula, with and without a beginning that all rows share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from torch import Tensor

from exitlens.decoding import generate, session
from exitlens.models import wrap
from exitlens.models.native import attention as native_attention
from exitlens.models.native.attention import attend, attend_shared, attend_whole
from exitlens.models.native.runner import Shared, runner_of

SCALING = 0.4


def formula(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
    """Head by head and query by query, in float64; ``hidden [r, s, n]``: what a query may not see."""
    r, heads, s, hd = q.shape
    group = heads // keys.shape[1]
    out = torch.zeros(r, s, heads * hd, dtype=torch.float64)
    for i in range(r):
        for h in range(heads):
            weights = q[i, h].double() @ keys[i, h // group].double().T * SCALING
            weights = weights.masked_fill(hidden[i], -torch.inf).softmax(-1)
            out[i, :, h * hd : (h + 1) * hd] = weights @ values[i, h // group].double()
    return out


def case(r: int, group: int, s: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(r * 100 + s)
    q = torch.randn(r, s, 2 * group, 8, generator=generator).transpose(1, 2)
    keys, values = (torch.randn(r, 2, n, 8, generator=generator) for _ in range(2))
    own = torch.randint(1, n - s + 2, (r,), generator=generator)  # keys that a row's first query sees
    hidden = torch.arange(n)[None, None] >= (own[:, None] + torch.arange(s))[..., None]
    mask = torch.zeros(r, s, n).masked_fill(hidden, -torch.inf).repeat(1, group, 1)[:, None]
    return q, keys, values, hidden, mask


@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("s", [1, 4])
def test_attention_is_the_formula(r: int, group: int, s: int) -> None:
    q, keys, values, hidden, mask = case(r, group, s, 6)
    got = attend(q, keys, values, mask, SCALING)
    torch.testing.assert_close(got.double(), formula(q, keys, values, hidden), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 1 << 23])
@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("s", [1, 4])
def test_a_shared_beginning_is_keys_that_every_row_has(
    r: int, group: int, s: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_attention, "_AT_ONCE", at_once)
    q, keys, values, hidden, mask = case(r, group, s, 6)
    early, given = torch.randn(2, 2, 5, 8).unbind(0)
    want = formula(
        q,
        torch.cat([early[None].expand(r, -1, -1, -1), keys], 2),
        torch.cat([given[None].expand(r, -1, -1, -1), values], 2),
        torch.cat([torch.zeros(r, s, 5, dtype=torch.bool), hidden], 2),
    )
    got = attend_shared(q, (early.transpose(1, 2).contiguous(), given), keys, values, mask, SCALING)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


BEGINNING = "Q: What is the capital of France? A: The capital of France is Paris. Q: How many whiskers has a cat? A: "
PROMPTS = [BEGINNING + rest for rest in ("Many. Q: What is true? A:", "A", "Some of them. Q:", "None")]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt-neox", "mistral-sliding"])
def test_a_beginning_held_once_changes_no_state(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm: Any = wrap(tiny.model(family, spread=0.3), tiny.tokenizer())
    ids = [lm.encode(prompt) for prompt in PROMPTS]
    p = next(i for i, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1)
    tokens = torch.tensor([7, 8, 9, 10])
    found = []
    for least in (4, 10**6):
        monkeypatch.setattr(session, "_SHARED_TOKENS", least)
        made = session.open_prefix(lm, ids[0][:p]).session(range(lm.n_layers + 1), 8)
        steps = [made.start(ids), made.step(tokens)]
        made.keep(torch.tensor([0, 2, 3]))
        steps.append(made.step(tokens[:3]))
        found.append([torch.stack(list(step.values())) for step in steps])
        sharing = isinstance(made, session.NativeSession) and isinstance(made.kv.shared, Shared)
        assert sharing == (least == 4 and family != "mistral-sliding")  # a sliding window does not see the whole of it
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_beginning_held_once_gives_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    lm: Any = wrap(tiny.model("llama", spread=0.3), tiny.tokenizer())
    monkeypatch.setattr(session, "_SHARED_TOKENS", 4)
    together = generate(lm, PROMPTS, max_new_tokens=12, batch_size=3, decoder="dola:0/2")
    monkeypatch.setattr(session, "_SHARED_TOKENS", 10**6)
    assert [g.token_ids for g in together] == [
        g.token_ids for g in generate(lm, PROMPTS, max_new_tokens=12, batch_size=1, decoder="dola:0/2")
    ]


def test_positions_of_any_order_in_a_shared_cache() -> None:
    """What early exits do: some rows only, at places that do not follow one another."""
    lm: Any = wrap(tiny.model("llama", spread=0.3), tiny.tokenizer())
    runner = runner_of(lm)
    assert runner is not None
    ids = torch.arange(20)[None] % 300
    with torch.no_grad():
        one = runner.new_kv(1, 20)
        at = runner.where(0, 12)
        runner.run(runner.embed(ids[:, :12], at), one, at)
        kept = []
        for shared in (None, Shared.of(one, 12)):
            kv = runner.new_kv(3, 20, shared)
            if shared is None:
                for mine, theirs in zip((*kv.keys, *kv.values), (*one.keys, *one.values), strict=True):
                    mine[:, :, :12] = theirs[:, :, :12]
            rows, where = torch.tensor([0, 2]), np.array([[12, 13, 14], [12, 14, 13]])
            at = runner.where_at(where, rows)
            x = runner.embed(torch.tensor([[5, 6, 7], [8, 9, 10]]), at)
            kept.append(runner.run(x, kv, at)[lm.n_layers])
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", [1, 3])
def test_a_text_from_its_first_token_on(group: int) -> None:
    q, keys, values, _, _ = case(2, group, 9, 9)
    later = (torch.arange(9)[None] > torch.arange(9)[:, None]).expand(2, 9, 9)
    got = attend_whole(q, keys, values, SCALING)
    torch.testing.assert_close(got, formula(q, keys, values, later).float())

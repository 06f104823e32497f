"""Exit heads: a planted rotation is undone, the classifier knows when, and a file of another model is refused."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from tests import tiny
from torch import Tensor

from exitlens.decoding import generate
from exitlens.decoding.exit_analysis import signals_of
from exitlens.decoding.exits import ExitPrefix
from exitlens.decoding.heads import ExitHeads, train_heads
from exitlens.decoding.policies import ExitPolicy
from exitlens.errors import InputError, ProbeError
from exitlens.models import wrap


@lru_cache
def model(seed: int = 0) -> Any:
    return wrap(tiny.model("llama", seed=seed), tiny.tokenizer())


@lru_cache
def planted() -> tuple[dict[int, Tensor], ExitHeads]:
    """Layer 1 is layer N under a low-rank change and a shift; layer 2 is noise for a third of the tokens."""
    lm = model()
    g = torch.Generator().manual_seed(0)
    final = torch.randn(1500, lm.d_model, generator=g)
    u, v = torch.randn(2, lm.d_model, 4, generator=g)
    one = final + 0.2 * (final @ v) @ u.T + 1.5 * torch.randn(lm.d_model, generator=g)
    noisy = final[:, 0] > 0.43
    two = torch.where(noisy[:, None], torch.randn(1500, lm.d_model, generator=g) + 3.0, final)
    hidden = {1: one, 2: two, 3: final}
    heads = train_heads(lm, hidden, layers=[1, 2], shortlist_size=tiny.VOCAB, rank=16, epochs=25, batch=64, rate=1e-2)
    return hidden, heads


def agreement(z: Tensor, want: Tensor) -> float:
    return float((z.argmax(-1) == want).float().mean())


def test_a_planted_change_is_undone() -> None:
    lm = model()
    hidden, heads = planted()
    held = slice(1350, None)
    want = lm.logits(hidden[3][held], 3).argmax(-1)
    before = agreement(lm.logits(hidden[1][held], 1), want)
    after = agreement(heads.reader(lm)(hidden[1][held], 1), want)
    assert after > before + 0.2
    assert float(heads.notes["agreement.1"]) == pytest.approx(after, abs=0.02)


def test_the_classifier_knows_when_the_token_is_final() -> None:
    lm = model()
    hidden, heads = planted()
    held = slice(1350, None)
    right = heads.reader(lm)(hidden[2][held], 2).argmax(-1) == lm.logits(hidden[3][held], 3).argmax(-1)
    score = heads.scorer(lm)(hidden[2][held], 2)
    assert 0.2 < float(right.float().mean()) < 0.95
    noisy = hidden[3][held, 0] > 0.43
    assert float(right[noisy].float().mean()) < 0.1
    assert float(score[noisy].mean()) < 0.2
    assert float(score[~noisy].mean()) > 0.6


def test_tokens_outside_the_shortlist_are_never_given() -> None:
    lm = model()
    hidden, _ = planted()
    heads = train_heads(lm, hidden, layers=[2], shortlist_size=20, rank=4, epochs=1)
    z = heads.reader(lm)(hidden[2][:50], 2)
    assert z.shape == (50, tiny.VOCAB)
    assert torch.isfinite(z).sum(-1).tolist() == [20] * 50
    assert set(z.argmax(-1).tolist()) <= set(heads.shortlist.tolist())


def test_the_entropy_over_a_shortlist_is_a_number_and_rows_leave_by_it() -> None:
    lm = model()
    hidden, _ = planted()
    heads = train_heads(lm, hidden, layers=[1, 2], shortlist_size=20, rank=4, epochs=1)
    read = heads.reader(lm)
    questions, steps = [0] * 50, list(range(50))
    signals = signals_of(lm, {j: h[:50] for j, h in hidden.items()}, questions, steps, reader=read)
    for e, layer in enumerate((1, 2)):
        p = read(hidden[layer][:50], layer)[:, heads.shortlist].double().softmax(-1)
        want = -(p * p.log()).sum(-1).detach()
        assert signals.values["entropy"][e] == pytest.approx(want.numpy(), abs=1e-4)
    prefix: list[Any] = []

    def open_with(ids: Any) -> Any:
        prefix.append(ExitPrefix(lm, ids, ExitPolicy("entropy", 50.0, (1, 2)), reader=read))
        return prefix[0]

    generate(lm, ["Q: What is true?"], max_new_tokens=6, open_with=open_with)
    assert set(prefix[0].tally.exits) & {1, 2} == {1}  # the first token comes from the prompt's own pass


def test_round_trip_and_the_same_seed_gives_the_same_heads() -> None:
    hidden, heads = planted()
    again = ExitHeads.from_tensors(*heads.to_tensors())
    for name in ("shortlist", "down", "up", "shift", "direction", "offset"):
        assert torch.equal(getattr(heads, name), getattr(again, name))
    assert (again.layers, again.fingerprint, dict(again.notes)) == (heads.layers, heads.fingerprint, dict(heads.notes))
    small = {"shortlist_size": 30, "rank": 4, "epochs": 1}
    a, b = (train_heads(model(), hidden, layers=[1], **small) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(a.up, b.up)


def test_decoding_leaves_by_the_classifier_with_the_heads_tokens() -> None:
    lm = model()
    _, heads = planted()
    prefix: list[Any] = []

    def open_with(ids: Any) -> Any:
        policy = ExitPolicy("classifier", 0.5, (1, 2))
        prefix.append(ExitPrefix(lm, ids, policy, reader=heads.reader(lm), scorer=heads.scorer(lm)))
        return prefix[0]

    (answer,) = generate(lm, ["Q: What is true?"], max_new_tokens=12, open_with=open_with, trace=True)
    assert len(answer.token_ids) > 1
    assert set(prefix[0].tally.exits) & {1, 2}


def test_what_cannot_be_is_refused() -> None:
    hidden, heads = planted()
    with pytest.raises(ProbeError, match="another model"):
        heads.reader(model(seed=1))
    with pytest.raises(InputError, match="no exit head at layer 3"):
        heads.scorer(model())(hidden[3], 3)
    with pytest.raises(InputError, match="layer 3"):
        train_heads(model(), hidden, layers=[3])
    with pytest.raises(InputError, match="100 positions"):
        train_heads(model(), {j: h[:100] for j, h in hidden.items()}, layers=[1])
    with pytest.raises(ProbeError, match="tuned-lens"):
        ExitHeads.from_tensors({}, {"kind": "tuned-lens"})

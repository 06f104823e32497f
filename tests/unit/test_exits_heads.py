"""Exit heads: a planted rotation is undone, the classifier knows when, and a file of another model is refused."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from torch import Tensor

from exitlens.decoding import generate
from exitlens.errors import InputError, ProbeError
from exitlens.exits.draft import Draft
from exitlens.exits.heads import ExitHeads, train_heads
from exitlens.exits.policies import ExitPolicy
from exitlens.exits.replay_policies import Cost, apply_policy, signals_of
from exitlens.exits.session import ExitPrefix
from exitlens.exits.shortlist import ExitReader
from exitlens.exits.speculation import SpeculationTally, speculate
from exitlens.exits.timing import measure_times
from exitlens.models import wrap
from exitlens.storage.atomic import write_tensors
from exitlens.studies.exits.files import load_heads, save_heads


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
    after = agreement(ExitReader(lm, heads).show(hidden[1][held], 1).whole(lm.vocab_size), want)
    assert after > before + 0.2
    assert float(heads.notes["agreement.1"]) == pytest.approx(after, abs=0.02)


def test_the_classifier_knows_when_the_token_is_final() -> None:
    lm = model()
    hidden, heads = planted()
    held = slice(1350, None)
    right = ExitReader(lm, heads).show(hidden[2][held], 2).top() == lm.logits(hidden[3][held], 3).argmax(-1)
    score = heads.confidence(hidden[2][held], 2)
    assert 0.2 < float(right.float().mean()) < 0.95
    noisy = hidden[3][held, 0] > 0.43
    assert float(right[noisy].float().mean()) < 0.1
    assert float(score[noisy].mean()) < 0.2
    assert float(score[~noisy].mean()) > 0.6


def test_tokens_outside_the_shortlist_are_never_given() -> None:
    lm = model()
    hidden, _ = planted()
    heads = train_heads(lm, hidden, layers=[2], shortlist_size=20, rank=4, epochs=1)
    z = ExitReader(lm, heads).show(hidden[2][:50], 2).whole(lm.vocab_size)
    assert z.shape == (50, tiny.VOCAB)
    assert torch.isfinite(z).sum(-1).tolist() == [20] * 50
    assert set(z.argmax(-1).tolist()) <= set(heads.shortlist.tolist())


def test_the_entropy_over_a_shortlist_is_a_number_and_rows_leave_by_it() -> None:
    lm = model()
    hidden, _ = planted()
    heads = train_heads(lm, hidden, layers=[1, 2], shortlist_size=20, rank=4, epochs=1)
    read = ExitReader(lm, heads)
    questions, steps = [0] * 50, list(range(50))
    signals = signals_of(lm, {j: h[:50] for j, h in hidden.items()}, questions, steps, reader=read)
    for e, layer in enumerate((1, 2)):
        p = read.show(hidden[layer][:50], layer).z.double().softmax(-1)
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
        prefix.append(ExitPrefix(lm, ids, policy, reader=ExitReader(lm, heads)))
        return prefix[0]

    (answer,) = generate(lm, ["Q: What is true?"], max_new_tokens=12, open_with=open_with, trace=True)
    assert len(answer.token_ids) > 1
    assert set(prefix[0].tally.exits) & {1, 2}


def test_a_head_at_the_last_layer_gives_the_models_own_tokens_from_the_shortlist() -> None:
    """It runs every block and saves the product with the rest of the vocabulary; decoding does what was predicted."""
    built = tiny.model("llama")
    built.generation_config.eos_token_id = []  # an end token is asked about too, and is no part of the answer
    lm = wrap(built, tiny.tokenizer())
    hidden, _ = planted()
    heads = train_heads(lm, hidden, layers=[1, 3], shortlist_size=tiny.VOCAB // 2, rank=4, epochs=1)
    read = ExitReader(lm, heads)
    full = lm.logits(hidden[3][:200], 3)
    torch.testing.assert_close(read.show(hidden[3][:200], 3).z, full[:, heads.shortlist], rtol=1e-4, atol=1e-4)
    prompt = "Q: What is true?"
    (plain,) = generate(lm, [prompt], max_new_tokens=60)
    whole = torch.tensor([[*lm.encode(prompt), *plain.token_ids]])
    seen = {j: h[0] for j, h in lm.forward(whole, layers=[1, 3]).hidden.items()}
    n = whole.shape[1]
    sure = signals_of(lm, seen, [0] * n, range(n), reader=read, texts=whole.tolist(), places=range(n)).values
    policy = ExitPolicy("probability", float(np.quantile(sure["probability"][0], 0.7)), (1, 3))
    prefix: list[Any] = []

    def open_with(ids: Any) -> Any:
        prefix.append(ExitPrefix(lm, ids, policy, reader=read))
        return prefix[0]

    (answer,) = generate(lm, [prompt], max_new_tokens=60, open_with=open_with, trace=True)
    ids = lm.encode(prompt)
    states = lm.forward(torch.tensor([[*ids, *answer.token_ids]]), layers=[1, 3]).hidden
    asked = {j: h[0, len(ids) : len(ids) + len(answer.token_ids) - 1] for j, h in states.items()}
    steps = list(range(1, len(answer.token_ids)))
    text, places = [*ids, *answer.token_ids], range(len(ids), len(ids) + len(steps))
    signals = signals_of(lm, asked, [0] * len(steps), steps, reader=read, texts=[text], places=places)
    assert signals.layers == (1, 3)
    outcome = apply_policy(signals, policy, Cost(1.0, 1.0, exit_unembed=0.1))
    assert answer.steps["exit"][1:].tolist() == outcome.exit.tolist()
    rows = np.where(outcome.exited, np.searchsorted(signals.layers, outcome.exit), 2)
    assert list(answer.token_ids[1:]) == signals.top[rows, np.arange(len(steps))].tolist()
    # A row of the whole vocabulary only where neither head was sure enough; the prompt's own pass is not counted.
    assert prefix[0].tally.unembeddings == int((~outcome.exited).sum())
    assert prefix[0].tally.short == int(outcome.checks.sum())
    assert 0 < outcome.exited.sum() < len(steps)
    assert (outcome.exited & (outcome.exit == 3)).any()


def test_what_a_text_holds_can_be_said_without_being_on_the_shortlist() -> None:
    lm = model()
    hidden, _ = planted()
    heads = train_heads(lm, hidden, layers=[1, 3], shortlist_size=10, rank=4, epochs=1)
    read = ExitReader(lm, heads)
    texts = [[1, 2, 3, 2], [250, 251]]
    rows, everyone = read.bind(texts), np.arange(2)
    state, full = hidden[3][:2], lm.logits(hidden[3][:2], 3).float()
    for _ in range(2):
        shown = rows.show(state, 3, everyone)
        whole = shown.whole(lm.vocab_size)
        for row, text in enumerate(texts):
            known = sorted({*heads.shortlist.tolist(), *text})
            assert torch.isfinite(whole[row]).nonzero().flatten().tolist() == known
            torch.testing.assert_close(whole[row, known], full[row, known], rtol=1e-4, atol=1e-4)
            assert int(shown.top()[row]) == known[int(full[row, known].argmax())]
        # All of a pass at once gives the same.
        at_once = read.show_at(state, 3, texts, [len(text) - 1 for text in texts])
        torch.testing.assert_close(at_once.whole(lm.vocab_size), whole)
        texts = [[*texts[0], 7], [*texts[1], 251]]
        rows.add(everyone, [7, 251])
    rows.keep(np.array([1]))
    alone = rows.show(state[1:], 3, np.array([0])).whole(lm.vocab_size)
    torch.testing.assert_close(alone, whole[1:])
    # What comes later in the text is not known yet.
    early = read.show_at(state[:1], 3, [texts[0]], [1]).whole(lm.vocab_size)
    assert torch.isfinite(early[0]).nonzero().flatten().tolist() == sorted({*heads.shortlist.tolist(), 1, 2})


def test_classifiers_learn_that_a_texts_own_tokens_can_be_said() -> None:
    """With a shortlist that holds next to nothing, the text decides which positions agree."""
    lm = model()
    hidden, _ = planted()
    final = [lm.logits(part, 3).argmax(-1) for part in hidden[3].split(64)]
    texts = torch.cat(final).view(-1, 10).tolist()  # each text holds at its own place what layer N says there
    made = [
        train_heads(lm, hidden, layers=[3], shortlist_size=2, rank=4, epochs=1, texts=given) for given in (None, texts)
    ]
    apart, together = (float(heads.notes["agreement.3"]) for heads in made)
    assert apart < 0.5
    assert together == 1.0


@pytest.mark.parametrize("draft", [Draft(exit=1), Draft(skip_mlp=(2,), length=2)])
def test_drafts_verified_by_the_last_layers_head_give_what_leaving_there_gives(draft: Draft) -> None:
    lm = model()
    hidden, _ = planted()
    heads = train_heads(lm, hidden, layers=[1, 3], shortlist_size=20, rank=4, epochs=1)
    read = ExitReader(lm, heads)
    prompts = ["Q: What is true?", "Paris", "How many whiskers does a human have?"]
    want = generate(
        lm, prompts, max_new_tokens=20, batch_size=1,
        open_with=lambda ids: ExitPrefix(lm, ids, ExitPolicy("fixed", layers=(3,)), reader=read),
    )  # fmt: skip
    plain = generate(lm, prompts, max_new_tokens=20)
    assert [g.token_ids for g in want] != [g.token_ids for g in plain]  # the shortlist does make a difference here
    for batch_size in (1, 3):
        tally = SpeculationTally()
        got = speculate(
            lm, prompts, draft, max_new_tokens=20, batch_size=batch_size, reader=read, short=True, tally=tally
        )
        assert [g.token_ids for g in got] == [g.token_ids for g in want]
        assert tally.short > 0
    with pytest.raises(InputError, match="exit head at layer 3"):
        speculate(lm, prompts, draft, short=True)


def test_times_are_measured_with_heads_at_any_layer() -> None:
    lm = model()
    hidden, _ = planted()
    for layers in ([1], [3]):  # not at the last layer but one, where a model without heads is asked
        heads = train_heads(lm, hidden, layers=layers, shortlist_size=20, rank=4, epochs=1)
        times = measure_times(lm, reader=ExitReader(lm, heads), context=20, repeats=3)
        assert {"probability", "cosine", "classifier"} < set(times.check)
        assert min(times.check["classifier"], times.exit_logits) > 0


def test_what_cannot_be_is_refused() -> None:
    hidden, heads = planted()
    with pytest.raises(ProbeError, match="another model"):
        ExitReader(model(seed=1), heads)
    with pytest.raises(InputError, match="no exit head at layer 3"):
        heads.confidence(hidden[3], 3)
    for layer in (0, 4):
        with pytest.raises(InputError, match=f"exit head at layer {layer}"):
            train_heads(model(), hidden, layers=[layer])
    with pytest.raises(InputError, match="shortlist_size=1"):
        train_heads(model(), hidden, layers=[1], shortlist_size=1)
    with pytest.raises(InputError, match="100 positions"):
        train_heads(model(), {j: h[:100] for j, h in hidden.items()}, layers=[1])
    with pytest.raises(ProbeError, match="tuned-lens"):
        ExitHeads.from_tensors({}, {"kind": "tuned-lens"})


@pytest.mark.parametrize(
    ("name", "forged"),
    [
        ("down", torch.zeros(2, 3)), ("down", torch.zeros(2, 16, 7)), ("up", torch.zeros(3, 32, 16)),
        ("shift", torch.zeros(2, 32, dtype=torch.long)), ("offset", torch.full((2,), torch.nan)),
        ("direction", torch.zeros(2)), ("shortlist", torch.zeros(4)), ("shortlist", torch.tensor([-1])),
        ("shortlist", torch.zeros(0, dtype=torch.long)), ("shortlist", torch.tensor([tiny.VOCAB])),
        ("layers", torch.tensor([1.0, 2.0])), ("layers", torch.tensor([1, 1])), ("layers", torch.tensor([1, 9])),
        ("layers", torch.tensor([[1, 2]])), ("more", torch.zeros(1)), ("up", None),
    ],
)  # fmt: skip
@pytest.mark.wrong_types  # layers that are no whole numbers
def test_forged_heads_are_refused_in_one_line(tmp_path: Path, name: str, forged: Tensor | None) -> None:
    tensors, text = planted()[1].to_tensors()
    whole = {**tensors, name: forged} if forged is not None else {k: v for k, v in tensors.items() if k != name}
    write_tensors(tmp_path / "heads", {k: v for k, v in whole.items() if v is not None}, text)
    with pytest.raises(
        ProbeError, match=r"not a whole file of exit heads|another width, depth or vocabulary"
    ) as caught:
        load_heads(tmp_path / "heads", model())
    assert "\n" not in str(caught.value)


def test_heads_come_back_as_they_were_saved(tmp_path: Path) -> None:
    heads = planted()[1]
    save_heads(heads, tmp_path / "heads", {"text": "own"})
    again = load_heads(tmp_path / "heads", model())
    assert again.layers == heads.layers
    assert torch.equal(again.up, heads.up)
    assert again.notes.items() >= heads.notes.items()

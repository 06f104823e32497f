"""Reading, answering, exiting and fitting on a GPU, and on two, where none is there: see :mod:`tests.pretend`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests import tiny
from tests.pretend import GPU, Devices, pretended

from exitlens.decoding import Sampling, generate
from exitlens.exits.draft import Draft
from exitlens.exits.heads import ExitHeads, train_heads
from exitlens.exits.policies import RULES, ExitPolicy
from exitlens.exits.session import ExitPrefix
from exitlens.exits.shortlist import ExitReader
from exitlens.exits.speculation import speculate
from exitlens.lenses import fit_jacobian_lens, read, train_tuned_lens
from exitlens.lenses.attribution import Target, attribute_ids
from exitlens.models.checkpoint.loading import wrap
from exitlens.models.forward import passes
from exitlens.models.native.runner import runner_of
from exitlens.probes import fit

SECOND = torch.device("cuda:1")
TEXTS = ["The capital of France is", "How many whiskers does a human have?", "The capital of France is not"]
STATS = ("entropy", "varentropy", "top_k", "margin", "logprob", "rank", "kl", "jsd", "tv", "agreement", "saturation",
         "cosine")  # fmt: skip


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Devices]:
    with pretended(monkeypatch) as found:
        yield found


def _model(family: str) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(tiny.FAMILIES[family]()).eval()


def _on_one(devices: Devices, family: str = "llama") -> Any:
    return wrap(devices.place(_model(family)), tiny.tokenizer(), name="tiny")


def _on_two(devices: Devices, family: str) -> Any:
    """The last block, the norm and (where it is a matrix of its own) the unembedding on a second GPU, by accelerate."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = devices.place(_model(family))
    own = [] if model.lm_head.weight is model.model.embed_tokens.weight else [model.lm_head]
    for module in (model.model.layers[-1], model.model.norm, *own):
        devices.place(module, SECOND)
    for module in (*model.model.layers, model.model.embed_tokens, model.model.norm, model.lm_head):
        add_hook_to_module(module, AlignDevicesHook(execution_device=devices.of(next(module.parameters()))))
    add_hook_to_module(model, AlignDevicesHook(execution_device=GPU, io_same_device=True))
    return wrap(model, tiny.tokenizer(), name="tiny")


def _same(got: Any, want: Any) -> None:
    for name, value in want.values.items():
        assert np.allclose(got.values[name], value, atol=1e-6, equal_nan=True), name


# ---- what is pretended is what a GPU would do


def test_mixed_devices_raise_as_they_would(devices: Devices) -> None:
    x, y = torch.zeros(3, device="cuda"), torch.zeros(3)
    for wrong in (lambda: x + y, lambda: y[x.long()], lambda: torch.cat([x, y]), lambda: y.add_(x)):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    assert (x + torch.ones(())).device == x[torch.tensor([0])].device == torch.empty_like(x).device == GPU
    assert x.cpu().device.type == "cpu"
    assert not devices.moved["cuda:0", "cuda:1"]
    assert x.to("cuda:1").device == SECOND
    assert devices.moved["cuda:0", "cuda:1"] == 12


def test_gradients_come_back_from_another_device(devices: Devices) -> None:
    x = torch.ones(3, device="cuda").requires_grad_()
    (grad,) = torch.autograd.grad((x.to("cuda:1") * 2).sum(), x)
    assert grad.device == GPU
    assert grad.tolist() == [2.0, 2.0, 2.0]


# ---- one GPU


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_layers_are_read_and_answers_written_on_a_gpu(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    plain = wrap(_model(family), tiny.tokenizer(), name="tiny")
    want = read(plain, TEXTS, stats=STATS)
    decoders = ("vanilla", "dola:high", "sled", "end")
    options: dict[str, Any] = {"max_new_tokens": 3, "trace": True, "read": ("entropy",), "repetition_penalty": 1.2}
    answers = [generate(plain, TEXTS, decoder=decoder, **options) for decoder in decoders]
    with pretended(monkeypatch) as devices:
        lm = _on_one(devices, family)
        assert lm.device == lm.weight.device == GPU
        assert (runner_of(lm) is None) == (family == "gemma2")
        _same(read(lm, TEXTS, stats=STATS), want)
        read(lm, TEXTS, stats=("choices",), choices=[[1, 2], [3]])
        for decoder, before in zip(decoders, answers, strict=True):
            after = generate(lm, TEXTS, decoder=decoder, **options)
            assert [a.token_ids for a in after] == [b.token_ids for b in before]
        generate(lm, TEXTS, sampling=Sampling(temperature=1.0, top_k=20, top_p=0.9), max_new_tokens=3)


@pytest.mark.parametrize("cache", ["defer", "propagate", "recompute"])
def test_exits_on_a_gpu(devices: Devices, cache: Any) -> None:
    lm = _on_one(devices)
    for kind, rule in RULES.items():
        if kind in ("classifier", "never"):
            continue
        policy = ExitPolicy(kind, rule.grid[-1] if rule.grid else 0.0, (1, 2))
        found = generate(
            lm, TEXTS, max_new_tokens=3, open_with=lambda ids, p=policy: ExitPrefix(lm, ids, p, cache=cache)
        )
        assert all(answer.token_ids or answer.finish == "eos" for answer in found)


def test_exit_heads_are_trained_and_used_on_a_gpu(devices: Devices) -> None:
    lm = _on_one(devices)
    ids = [lm.encode(text * 12)[:100] for text in TEXTS]
    parts = [lm.forward(torch.tensor([text], device=lm.device), layers="all").hidden for text in ids]
    hidden = {j: torch.cat([part[j][0] for part in parts]) for j in parts[0]}
    trained = train_heads(lm, hidden, layers=[2, 3], shortlist_size=64, rank=4, epochs=1, batch=64, texts=ids)
    kept, about = trained.to_tensors()
    assert all(tensor.device.type == "cpu" for tensor in kept.values())
    reader = ExitReader(lm, ExitHeads.from_tensors(kept, about))
    for kind, threshold in (("probability", 0.1), ("classifier", 0.3), ("patience", 2.0)):
        policy = ExitPolicy(kind, threshold)  # type: ignore[arg-type]
        generate(lm, TEXTS, max_new_tokens=3, open_with=lambda ids, p=policy: ExitPrefix(lm, ids, p, reader=reader))
    plain = generate(lm, TEXTS, max_new_tokens=3)
    drafted = speculate(lm, TEXTS, Draft(exit=2), max_new_tokens=3, batch_size=2)
    assert [a.token_ids for a in drafted] == [b.token_ids for b in plain]
    speculate(lm, TEXTS, Draft(exit=2), max_new_tokens=3, reader=reader, short=True)
    speculate(lm, TEXTS, Draft(skip_attention=(2,)), max_new_tokens=3, sampling=Sampling(temperature=1.0))


def test_lenses_are_fitted_and_probes_take_states_of_a_gpu(devices: Devices) -> None:
    lm = _on_one(devices)
    ids = [lm.encode(text * 9)[:40] for text in TEXTS * 3]
    jacobian, _ = fit_jacobian_lens(lm, ids, length=24, skip=4)
    tuned, _ = train_tuned_lens(lm, ids, steps=2)
    for lens in (jacobian, tuned):
        read(lm, TEXTS, lens=lens, stats=("entropy", "kl"))
    attribute_ids(lm, [ids[0][:9]], [[Target("a", 5), Target("b", 6, 7)]])
    states = torch.cat([batch.hidden[2][:, -1] for batch in passes(lm, ids, layers=[2])])
    assert states.device == GPU
    probe = fit("logistic", states[:8], [0, 1] * 4)
    assert probe.predict_proba(states[:8]).shape == (8,)


# ---- two GPUs


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_model_over_two_gpus_is_read_where_its_layers_lie(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    plain = wrap(_model(family), tiny.tokenizer(), name="tiny")
    want = read(plain, TEXTS, stats=STATS)
    options: dict[str, Any] = {"max_new_tokens": 3, "read": ("entropy", "kl")}
    answers = [generate(plain, TEXTS, decoder=decoder, **options) for decoder in ("vanilla", "dola:high")]
    with pretended(monkeypatch) as devices:
        lm = _on_two(devices, family)
        assert lm.cache_kind == "own"
        assert runner_of(lm) is None
        _same(read(lm, TEXTS, stats=STATS), want)
        for decoder, before in zip(("vanilla", "dola:high"), answers, strict=True):
            after = generate(lm, TEXTS, decoder=decoder, **options)
            assert [a.token_ids for a in after] == [b.token_ids for b in before]
        fit_jacobian_lens(lm, [lm.encode(text * 9)[:24] for text in TEXTS * 2], length=24, skip=4)
        attribute_ids(lm, [lm.encode(TEXTS[0])], [[Target("a", 5)]])


def _crossed(devices: Devices) -> int:
    return sum(size for (start, end), size in devices.moved.items() if start != end and "cpu" not in (start, end))


def test_nothing_but_statistics_crosses(devices: Devices) -> None:
    lm = _on_two(devices, "llama")
    stats = ("entropy", "max_probability")
    read(lm, TEXTS, stats=stats)  # the copy of the unembedding goes once
    ids = [lm.encode(text) for text in TEXTS]
    tokens, state = sum(map(len, ids)), 32 * 4
    devices.moved.clear()
    for _ in passes(lm, ids, layers="all", positions="all"):
        pass
    bare = _crossed(devices)
    devices.moved.clear()
    read(lm, TEXTS, stats=stats)
    of_reading = _crossed(devices) - 3 * tokens * len(stats) * 4 - bare  # three layers' statistics, float32
    # Texts of unequal length are padded here and not there: less than one layer's states in all.
    assert abs(of_reading) < tokens * state
    devices.moved.clear()
    read(lm, TEXTS, stats=(*stats, "kl"))
    assert _crossed(devices) - bare < 2 * tokens * state + 3 * tokens * 3 * 4  # layer N's states, compared with

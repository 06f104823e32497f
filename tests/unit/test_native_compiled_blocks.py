"""Compiled blocks give what blocks one by one give, for every kind of row, with any number of threads."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from exitlens.compute import compiled
from exitlens.decoding import generate
from exitlens.decoding.session import open_prefix
from exitlens.models import wrap
from exitlens.models.native import compiled_blocks as module
from exitlens.models.native.agreement import compiled_agrees
from exitlens.models.native.runner import KV, Shared, runner_of

from .. import tiny

pytest.importorskip("numba")
if not compiled.tile_registers():
    pytest.skip("this processor has no tile registers", allow_module_level=True)

SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
KINDS: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "tied": lambda: tf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "window": lambda: tf.MistralConfig(**SIZES, sliding_window=8),
    "biases": lambda: tf.Qwen2Config(**SIZES),
    "wide heads": lambda: tf.LlamaConfig(**{**SIZES, "num_attention_heads": 2, "num_key_value_heads": 1}, head_dim=64),
}


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_LEAST", 0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _model(config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = tf.AutoModelForCausalLM.from_config(config)
        for name, parameter in built.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
            else:
                torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    built.generation_config.eos_token_id = 0
    return wrap(built.to(dtype).eval(), tiny.tokenizer())


@pytest.fixture(scope="module")
def lm() -> Any:
    return _model(KINDS["llama"]())


def _begun(runner: Any, ids: torch.Tensor, room: int) -> KV:
    kv, at = runner.new_kv(len(ids), room), runner.where(0, ids.shape[1])
    with torch.no_grad():
        runner.one_by_one(runner.embed(ids, at), kv, at)
    return kv


def _copy(kv: KV) -> KV:
    return KV([k.clone() for k in kv.keys], [v.clone() for v in kv.values], kv.shared)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_taken_for_each_kind_and_gives_what_blocks_give(kind: str) -> None:
    lm = _model(KINDS[kind]())
    runner = runner_of(lm)
    assert runner is not None
    assert runner.compiled is not None
    n, generator = lm.n_layers, torch.Generator().manual_seed(1)
    for rows in (1, 2, 16, 17, 33, 50):
        ids = torch.randint(1, lm.vocab_size, (rows, 20), generator=generator)
        kv = _begun(runner, ids, 24)
        again, at = _copy(kv), runner.where(20, 1)
        with torch.no_grad():
            want = runner.one_by_one(runner.embed(ids[:, :1], at), kv, at, keep=range(n + 1))
            got, logits = runner.step(ids[:, 0], again, at, keep=range(n + 1))
            exact = runner.logits(want[n][:, 0], n).float()
        assert logits is not None
        for layer, state in want.items():
            assert got[layer].shape == state.shape
            assert got[layer].dtype == torch.bfloat16
            # One unit in the last place of bf16 is 0.8% of a number; a few of them add up over the blocks.
            assert float((got[layer] - state).float().abs().max()) <= 0.03 * float(state.float().abs().max())
        assert float((logits - exact).abs().max()) <= 0.03 * float(exact.abs().max())
        for ours, theirs in zip((*again.keys, *again.values), (*kv.keys, *kv.values), strict=True):
            torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.05)
            assert bool((ours[:, :, 20] != 0).any())
            assert bool((ours[:, :, 21:] == 0).all())


def test_rows_of_any_length_and_a_beginning_that_they_share(lm: Any) -> None:
    runner = runner_of(lm)
    assert runner is not None
    assert runner.compiled is not None
    assert compiled.compiled_before(*module.KERNELS)
    assert compiled_agrees(lm, runner, runner.compiled)


def test_a_row_does_not_depend_on_the_others_nor_on_the_number_of_threads(lm: Any) -> None:
    runner = runner_of(lm)
    assert runner is not None
    ids = torch.randint(1, lm.vocab_size, (5, 20), generator=torch.Generator().manual_seed(2))
    kv = _begun(runner, ids, 24)
    found = []
    with torch.no_grad():
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            at = runner.where(torch.tensor([20, 7, 20, 13, 1]), 1)
            states, logits = runner.step(ids[:, 0], _copy(kv), at, keep=(1, 2, 3))
            found.append((*(states[j] for j in (1, 2, 3)), logits))
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
        alone = KV([k[3:4].clone() for k in kv.keys], [v[3:4].clone() for v in kv.values])
        _, own = runner.step(ids[3:4, 0], alone, runner.where(torch.tensor([13]), 1))
    assert torch.equal(own[0], found[0][3][3])


def test_decoding_goes_through_it_and_its_logits_are_those_of_its_states(lm: Any, monkeypatch: Any) -> None:
    runner = runner_of(lm)
    assert runner is not None
    session = open_prefix(lm, ()).session([lm.n_layers], 8)
    hidden = session.start([[5, 6, 7], [8, 9]])
    first, _ = session.final(hidden)
    hidden = session.step(first.argmax(-1))
    logits, _ = session.final(hidden)
    want = runner.logits(hidden[lm.n_layers], lm.n_layers).float()
    assert float((logits - want).abs().max()) <= 0.02 * float(want.abs().max())
    session.keep(torch.tensor([1]))
    one, _ = session.final(session.step(logits.argmax(-1)[1:]))
    assert one.shape == (1, lm.vocab_size)
    calls: list[tuple[int, ...]] = []
    run = runner.compiled
    assert run is not None

    def counted(x: torch.Tensor, *given: Any, **more: Any) -> Any:
        calls.append(tuple(x.shape[:2]))
        return run(x, *given, **more)

    counted.fits, counted.open, counted.logits = run.fits, run.open, run.logits  # type: ignore[attr-defined]
    monkeypatch.setattr(runner, "compiled", counted)
    generate(lm, [[5, 6, 7]] * 40, max_new_tokens=3, batch_size=40)
    assert calls == [(40, 3), (40, 1), (40, 1)]


def _widths(runner: Any, ids: torch.Tensor, widths: list[int], shared: int = 0) -> list[torch.Tensor]:
    """States at all layers of ``ids``, run so many tokens at a time."""
    held = None
    with torch.no_grad():
        if shared:
            one, at = runner.new_kv(1, shared), runner.where(0, shared)
            runner.run(runner.embed(ids[:1, :shared], at), one, at)
            held = Shared.of(one, shared)
        kv, start, parts = runner.new_kv(len(ids), ids.shape[1], held), shared, []
        for width in widths:
            at = runner.where(start, width)
            got = runner.run(runner.embed(ids[:, start : start + width], at), kv, at, keep=range(runner.n_layers + 1))
            parts.append(torch.stack([got[j] for j in sorted(got)]))
            start += width
    return parts


@pytest.mark.parametrize("shared", [0, 11])
def test_tokens_are_the_same_one_by_one_and_together(lm: Any, shared: int) -> None:
    runner = runner_of(lm)
    ids = torch.randint(1, lm.vocab_size, (3, shared + 45), generator=torch.Generator().manual_seed(5))
    ids[:, :shared] = ids[:1, :shared]
    whole = _widths(runner, ids, [45], shared)[0]
    for widths in ([1] * 45, [20, 3, 1, 16, 5], [44, 1]):
        parts = torch.cat(_widths(runner, ids, widths, shared), dim=2)
        assert torch.equal(parts, whole)


def test_depths_skipped_sub_layers_and_keys_alone(lm: Any) -> None:
    runner = runner_of(lm)
    assert runner is not None
    ids = torch.randint(1, lm.vocab_size, (4, 21), generator=torch.Generator().manual_seed(6))
    first, second = _begun(runner, ids, 24), _begun(runner, ids, 24)
    at = runner.where(torch.tensor([20, 4, 21, 9]), 1)
    with torch.no_grad():
        x = runner.embed(ids[:, :1], at)
        whole = runner.run(x, first, at)[3]
        deep = runner.run(runner.run(x, second, at, last=1)[1], second, at, first=2)
        assert torch.equal(deep[3], whole)
        assert torch.equal(runner.run(x, second, at, keep=(0,), last=2)[0], x)
        for skip in (((2,), ()), ((), (1, 3)), ((1, 2), (2,)), ((1, 2, 3), (1, 2, 3))):
            got = runner.run(x, first, at, skip=skip)[3]
            want = runner.one_by_one(x, second, at, skip=skip)[3]
            assert float((got - want).float().abs().max()) <= 0.03 * float(want.float().abs().max())
        one, other = _copy(first), _copy(first)
        runner.store_only(2, x, one, at)
        blocks, runner.compiled = runner.compiled, None
        try:
            runner.store_only(2, x, other, at)
        finally:
            runner.compiled = blocks
        for ours, theirs in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
            torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.05)
        assert torch.equal(runner.run(x, one, at)[3], runner.run(x, other, at)[3])


def test_rows_chosen_copied_and_written_by_others_are_seen(lm: Any) -> None:
    runner = runner_of(lm)
    assert runner is not None
    ids = torch.randint(1, lm.vocab_size, (4, 20), generator=torch.Generator().manual_seed(7))

    def begun() -> KV:
        kv, at = runner.new_kv(4, 24), runner.where(0, 20)
        runner.run(runner.embed(ids, at), kv, at)
        return kv

    with torch.no_grad():
        kv, at = begun(), runner.where(20, 1)
        want = runner.run(runner.embed(ids[:, :1], at), kv, at)[3]
        some = torch.tensor([1, 3])
        assert torch.equal(runner.run(runner.embed(ids[some, :1], at), begun().select(some), at)[3], want[some])
        only = runner.where_at(np.array([[20], [20]]), rows=some)
        assert torch.equal(runner.run(runner.embed(ids[some, :1], only), begun(), only)[3], want[some])
        part = begun().first(2)
        assert torch.equal(runner.run(runner.embed(ids[:2, :1], at), part, at)[3], want[:2])
        # Another row's keys, copied into a cache that blocks have packed before: they must be packed again.
        other, one = begun(), begun().select(torch.tensor([2]))
        other.fill(one, 20)
        got = runner.run(runner.embed(ids[2:3, :1].expand(4, 1), at), other, at)[3]
        assert torch.equal(got, want[2:3].expand(4, 1, -1))


def test_logits_of_many_states(lm: Any) -> None:
    blocks = runner_of(lm).compiled  # type: ignore[union-attr]
    assert blocks is not None
    h = torch.randn(3, 23, 64, generator=torch.Generator().manual_seed(8)).bfloat16()
    for rows in (h, h[0, :5], h[:1, 0]):
        for normed, lens in ((True, "raw"), (False, "logit")):
            want = lm.logits(rows, 1, lens).float()
            got = blocks.logits(rows, normed=normed)
            assert got.shape == want.shape
            assert float((got - want).abs().max()) <= 0.02 * float(want.abs().max())
        some = torch.randint(0, lm.vocab_size, (21,), generator=torch.Generator().manual_seed(9))
        found = blocks.product(lm.weight[some])(rows)
        assert torch.equal(found, blocks.logits(rows, normed=True)[..., some])


def test_what_it_cannot_do_is_left_to_the_blocks(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(other: Any) -> Any:
        runner = runner_of(other)
        return None if runner is None else runner.compiled

    assert made(_model(KINDS["llama"](), torch.float32)) is None
    assert made(_model(tf.LlamaConfig(**{**SIZES, "intermediate_size": 48}))) is None
    assert made(_model(tf.LlamaConfig(**SIZES, hidden_act="gelu"))) is None
    assert made(_model(tf.Qwen3Config(**SIZES, head_dim=16))) is None
    hooked = _model(KINDS["llama"]())
    hooked.blocks[1].mlp.down_proj.register_forward_hook(lambda _m, _a, out: out * 2)
    assert made(hooked) is None
    monkeypatch.setattr(module, "_LEAST", 10**9)
    assert made(_model(KINDS["llama"]())) is None
    monkeypatch.setattr(module, "_LEAST", 0)
    monkeypatch.setattr(module, "_usable", lambda: False)  # no numba, or EXITLENS_COMPILED=0
    assert made(_model(KINDS["llama"]())) is None


def test_blocks_with_other_numbers_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    call = module.CompiledBlocks.__call__

    def slip(self: Any, *given: Any, **more: Any) -> Any:
        kept, logits = call(self, *given, **more)
        kept[2] = kept[2] * 1.2
        return kept, logits

    monkeypatch.setattr(module.CompiledBlocks, "__call__", slip)
    runner = runner_of(_model(KINDS["llama"]()))
    assert runner is not None
    assert runner.compiled is None


@pytest.mark.parametrize(("why", "lines"), [(None, 0), ("", 0), (compiled.MISSING, 0), ("numba does not load (x)", 1)])
def test_a_numba_that_does_not_load_is_logged_once(monkeypatch: Any, caplog: Any, why: str | None, lines: int) -> None:
    monkeypatch.setattr(module, "problem", lambda *_: why)
    module._usable.cache_clear()
    try:
        assert [module._usable(), module._usable()] == [why is None] * 2
    finally:
        module._usable.cache_clear()
    assert [r.getMessage() for r in caplog.records] == [f"decoding in bf16 takes about twice the time: {why}"] * lines


def test_numbers_are_rounded_as_torch_rounds_them_and_e_is_right_to_float32() -> None:
    compiled.kernels(*module.KERNELS)
    parts: Any = importlib.import_module("exitlens.models.native._machine")
    values = torch.randn(2000, generator=torch.Generator().manual_seed(3)) * 10
    values = torch.cat([values, torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, 3.4e38, torch.inf, -torch.inf])])
    got = [float(parts.rounded(np.float32(v))) for v in values.tolist()]
    assert got == values.bfloat16().float().tolist()
    assert np.isnan(parts.rounded(np.float32(np.nan)))
    x = np.linspace(-86, 87, 3001, dtype=np.float32)
    found = np.array([parts.exp(v) for v in x], np.float64)
    assert float(np.abs(found / np.exp(x.astype(np.float64)) - 1).max()) < 4e-7
    assert parts.exp(np.float32(-np.inf)) < 1e-37

"""Fitting a Jacobian lens: equal to torch's own Jacobians, position by position, on every kind of family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.parity import zoo
from tests.parity.decoding import taken
from torch import Tensor, nn

import exitlens
from exitlens.errors import InputError, ModelError, UnsupportedModel
from exitlens.lenses.jacobian.fit import fit_jacobian_lens
from exitlens.lenses.jacobian.lens import JacobianLens
from exitlens.lenses.jacobian.text import FitSettings, text_jacobian
from exitlens.models.pullback import Gradient, gradient_of

IDS = [(37 * i + 5) % 300 for i in range(14)]
SKIP = 4
VALID = slice(SKIP, len(IDS) - 1)


def wrapped(family: str, **options: Any) -> Any:
    return exitlens.wrap(tiny.model(family, **options), tiny.tokenizer(), name=family)


def by_jacrev(lm: Any, layer: int, ids: list[int] = IDS) -> Tensor:
    """``∂h_N[p', i]/∂h_layer[p, k]`` as ``[T, d, T, d]``, by torch.func.jacrev through the whole model."""
    h = lm.forward(torch.tensor([ids]), layers=[layer]).hidden[layer].clone()

    def last(h: Tensor) -> Tensor:
        found: dict[str, Tensor] = {}

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (h, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": h}

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            found["h"] = output[0] if isinstance(output, tuple) else output

        handles = [lm.blocks[layer].register_forward_pre_hook(enter, with_kwargs=True)]
        handles.append(lm.blocks[-1].register_forward_hook(leave))
        try:
            lm.model(input_ids=torch.tensor([ids]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return found["h"]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.func.jacrev(last)(h)[0, :, :, 0].detach()


def summed(full: Tensor) -> Tensor:
    return full[VALID, :, VALID].sum(0).mean(1)  # over targets, then the mean over sources


def same_position(full: Tensor) -> Tensor:
    part = full[VALID, :, VALID]
    return torch.stack([part[p, :, p] for p in range(len(part))]).mean(0)


NATIVE = ["llama", "mistral-sliding", "qwen2", "qwen3"]
FAMILIES = [*NATIVE, "gemma2", "gemma3", "cohere", "granite", "gpt2", "gpt-neox", "opt", "phi", "falcon"]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_jacrev(family: str) -> None:
    lm = wrapped(family)
    layers = range(lm.n_layers)
    how = gradient_of(lm, IDS, first=SKIP)
    assert how.method == ("native" if family in NATIVE else "blocks")
    settings = FitSettings(length=len(IDS), skip=SKIP, rows=7)
    for found in (text_jacobian(lm, IDS, layers, settings, how), text_jacobian(lm, IDS, layers, settings)):
        for layer in layers:
            want = summed(by_jacrev(lm, layer))
            torch.testing.assert_close(found[layer], want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("method", ["whole", "rows"])
def test_every_method_gives_the_same(method: Any) -> None:
    lm = wrapped("gemma2")
    settings = FitSettings(length=len(IDS), skip=SKIP)
    want = text_jacobian(lm, IDS, [0, 2], settings)
    torch.testing.assert_close(
        text_jacobian(lm, IDS, [0, 2], settings, Gradient(lm, method)), want, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("entry", "method"),
    [("gemma3n_text", "blocks"), ("deepseek_v4", "blocks"), ("zaya", "whole"), ("xlm", "whole"), ("mamba", "blocks")],
)
def test_several_streams_and_blocks_joined_by_more(entry: str, method: str) -> None:
    lm = taken(zoo.build(entry), entry)
    ids = [i % 190 for i in IDS]
    how = gradient_of(lm, ids, first=SKIP)
    assert how.method == method
    assert bool(how.note) == (method == "whole")
    settings = FitSettings(length=len(ids), skip=SKIP)
    layers = range(lm.n_layers)
    want = text_jacobian(lm, ids, layers, settings, Gradient(lm, "rows"))
    got = text_jacobian(lm, ids, layers, settings, how)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_same_position_with_all_patterns_is_exact_and_with_one_right_in_the_mean() -> None:
    lm = wrapped("llama")
    full = by_jacrev(lm, 1)
    want = same_position(full)
    assert not torch.allclose(want, summed(full), atol=0.1)
    exact = FitSettings("same-position", length=len(IDS), skip=SKIP, patterns=16)
    torch.testing.assert_close(text_jacobian(lm, IDS, [1], exact)[0], want, rtol=1e-4, atol=1e-4)
    one = text_jacobian(lm, IDS, [1], FitSettings("same-position", length=len(IDS), skip=SKIP))[0]
    assert float((one - want).norm() / want.norm()) < float((summed(full) - want).norm() / want.norm())


class _Linear(nn.Module):
    """A block that adds a linear map of its input, and of the position before."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.here, self.before = nn.Linear(d, d), nn.Linear(d, d, bias=False)

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        moved = torch.nn.functional.pad(hidden_states[:, :-1], (0, 0, 1, 0))
        return hidden_states + self.here(hidden_states) + self.before(moved)


def test_a_linear_model_is_exact() -> None:
    model = tiny.model("llama")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.model.layers = nn.ModuleList(_Linear(32) for _ in range(3))
    lm = exitlens.wrap(model.double(), tiny.tokenizer(), name="linear")
    a, b = lm.blocks[2].here.weight.detach(), lm.blocks[2].before.weight.detach()
    lens, report = fit_jacobian_lens(lm, [IDS, IDS[2:]], skip=SKIP, held_out=0)
    # The last valid position has no valid one after it, so of n positions n − 1 move their follower.
    share = sum((n - 1) / n for n in (len(IDS) - 1 - SKIP, len(IDS) - 3 - SKIP)) / 2
    want = torch.eye(32) + a + share * b
    torch.testing.assert_close(lens.matrices[2].double(), want.double(), rtol=1e-5, atol=1e-6)
    assert report.texts == 2
    same, _ = fit_jacobian_lens(lm, [IDS], skip=SKIP, held_out=0, estimator="same-position", patterns=16)
    torch.testing.assert_close(same.matrices[2].double(), (torch.eye(32) + a).double(), rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.model("gpt2").train()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 != 0)
    flags = [p.requires_grad for p in model.parameters()]
    lm = exitlens.wrap(model, tiny.tokenizer(), name="gpt2")
    fit_jacobian_lens(lm, [IDS, IDS], skip=SKIP, held_out=0)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.is_grad_enabled()


def test_only_layers_asked_for() -> None:
    lm = wrapped("llama")
    every, _ = fit_jacobian_lens(lm, [IDS], skip=SKIP, held_out=0)
    top, _ = fit_jacobian_lens(lm, [IDS], skip=SKIP, held_out=0, layers="2-last")
    assert top.layers == (2,)
    torch.testing.assert_close(top.matrices[0], every.matrices[2])
    with pytest.raises(InputError, match="no matrix for layer 1, only for 2"):
        top.transform(torch.zeros(1, 32), 1)


def test_stopped_and_started_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    lm = wrapped("llama")
    texts = [[(7 * i + k) % 300 for i in range(12)] for k in range(9)]
    whole, report = fit_jacobian_lens(lm, texts, skip=SKIP, held_out=2)
    assert [point["texts"] for point in report.curve] == [4, 7]

    class Killed(Exception):
        pass

    def kill(_phase: str, done: int, _total: int) -> None:
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        fit_jacobian_lens(lm, texts, skip=SKIP, held_out=2, keep=tmp_path / "sum", progress=kill)
    seen: list[int] = []
    again, second = fit_jacobian_lens(
        lm, texts, skip=SKIP, held_out=2, keep=tmp_path / "sum", progress=lambda _phase, done, _total: seen.append(done)
    )
    assert seen[0] > 1
    assert torch.equal(whole.matrices, again.matrices)
    assert second.curve == report.curve
    with pytest.raises(InputError, match="another fit"):
        fit_jacobian_lens(lm, texts[1:], skip=SKIP, held_out=2, keep=tmp_path / "sum")


def test_short_texts_are_left_out_and_counted() -> None:
    lm = wrapped("llama")
    said: list[str] = []
    lens, report = fit_jacobian_lens(lm, [IDS, IDS[:5], IDS], skip=SKIP, held_out=0, say=said.append)
    assert lens.texts == 2
    assert "1 of 3 texts are too short and left out (1)" in said[0] == report.notes[0]
    with pytest.raises(InputError, match=r"none of 1 texts is long enough .*text 0 has 5"):
        fit_jacobian_lens(lm, [IDS[:5]], skip=SKIP)
    with pytest.raises(InputError, match="text 0 holds token id 999"):
        fit_jacobian_lens(lm, [[*IDS, 999]], skip=SKIP)


def test_nan_names_the_text() -> None:
    model = tiny.model("llama")
    lm = exitlens.wrap(model, tiny.tokenizer(), name="llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[299] = torch.nan
    bad = [*IDS[:6], 299, *IDS[7:]]
    with pytest.raises(ModelError, match=r"text 1 .* at layer 2 of llama holds NaN"):
        fit_jacobian_lens(lm, [IDS, bad], skip=SKIP, held_out=0)


def test_hooks_are_refused() -> None:
    lm = wrapped("llama")
    handle = lm.model.model.layers[1].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModel, match=r"a hook on 'model.layers.1'"):
        fit_jacobian_lens(lm, [IDS], skip=SKIP)
    handle.remove()
    # Once asked for its states, a model keeps hooks that transformers put there: those only look.
    lm.model(input_ids=torch.tensor([IDS]), output_hidden_states=True)
    assert fit_jacobian_lens(lm, [IDS], skip=SKIP, held_out=0)[0].texts == 1


def test_fewer_rows_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    from exitlens.lenses.jacobian import fit

    lm = wrapped("llama")
    want, _ = fit_jacobian_lens(lm, [IDS], skip=SKIP, held_out=0)
    room = 3 * 4 * 3 * 32**2 + 20 * fit.row_bytes(lm, len(IDS))
    monkeypatch.setattr(fit, "free_bytes", lambda _device: room)
    said: list[str] = []
    got, _ = fit_jacobian_lens(lm, [IDS], length=len(IDS), skip=SKIP, held_out=0, say=said.append)
    assert "smaller batches: 5 rows at a time instead of 32" in said[0]
    torch.testing.assert_close(got.matrices, want.matrices, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(fit, "free_bytes", lambda _device: 1000)
    with pytest.raises(InputError, match="the matrices of 3 layers take"):
        fit_jacobian_lens(lm, [IDS], skip=SKIP)


def test_the_lens_reads_better_than_noise_and_says_how_well() -> None:
    lm = wrapped("llama")
    texts = [[(11 * i + 5 * k) % 300 for i in range(20)] for k in range(10)]
    lens, report = fit_jacobian_lens(lm, texts, skip=SKIP, held_out=2, measure=lambda lens: {"texts again": lens.texts})
    assert report.curve[-1]["texts again"] == 8
    assert report.held_out == 2
    assert isinstance(lens, JacobianLens)
    assert lens.provenance["curve"].startswith('[{"texts": 4')
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(lens.matrices.shape, generator=g) / 32**0.5
    junk = JacobianLens("junk", lens.fingerprint, noise, lens.layers, lens.depth, 1)
    kl = {
        used.name: float(exitlens.read(lm, "How many legs has a cat?", lens=used, stats=("kl",))["kl"][0, 2].mean())
        for used in (lens, junk)
    }
    assert kl["jacobian"] < kl["junk"]

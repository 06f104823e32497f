"""The GPU kernel against float64: on a CUDA device, or in Triton's interpreter where only that is installed."""

from __future__ import annotations

import os

import pytest
import torch
from tests.unit.lens_model import SmallModel, states

pytest.importorskip("triton", reason="Triton is not installed (it comes with GPU builds of torch)")


if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device; TRITON_INTERPRET=1 runs this on the CPU", allow_module_level=True)

from exitlens.lenses import read_hidden, readout
from exitlens.lenses.kernels import triton as kernel
from exitlens.models.protocol import LogitTransform


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "vocab", "width", "shares"), [(5, 100, 24, 1), (17, 131, 40, 3), (3, 16, 16, 1)])
@pytest.mark.parametrize("size", [1.0, 60.0])
def test_sums_equal_float64(rows, vocab, width, shares, bias, cap, size) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=g).to(device) * size / width**0.5
    w = torch.randn(vocab, width, generator=g).to(device)
    b = torch.randn(vocab, generator=g).to(device) if bias else None
    got = kernel.sums(x, w, b, cap, bm=16, bn=32, bk=16, shares=shares)
    z = x.double() @ w.double().T + (0 if b is None else b.double())
    z = z if cap is None else cap * torch.tanh(z)
    d = z - z.amax(1, keepdim=True)
    e = d.exp()
    assert torch.allclose(got["max"], z.amax(1), rtol=1e-5, atol=1e-5)
    assert torch.allclose(got["total"], e.sum(1), rtol=1e-4)
    assert torch.allclose(got["first"], (d * e).sum(1), rtol=1e-4, atol=1e-5)
    assert torch.allclose(got["second"], (d * d * e).sum(1), rtol=1e-4, atol=1e-5)
    if cap is None or size == 1.0:
        assert torch.equal(got["best"], z.argmax(1))


@pytest.mark.parametrize("logit_transform", [LogitTransform(), LogitTransform(0.5), LogitTransform(1.0, 4.0)])
def test_the_readout_is_the_same_with_the_fused_block(
    monkeypatch: pytest.MonkeyPatch, logit_transform: LogitTransform
) -> None:
    model = SmallModel(vocab=150, bias=True, logit_transform=logit_transform, n_layers=2)
    hidden = states(model, 6)
    stats = ("entropy", "varentropy", "logprob", "agreement", "saturation", "max_probability")
    stats = stats if logit_transform.cap else (*stats, "kl")
    plain = readout(model, hidden, stats=stats, targets=torch.arange(6))
    monkeypatch.setattr(read_hidden, "usable", lambda *_: True)
    fused = readout(model, hidden, stats=stats, targets=torch.arange(6))
    for name, want in plain.items():
        assert torch.allclose(fused[name].double(), want.double(), atol=1e-4), name


def test_ties_and_bfloat16() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    w = torch.zeros(70, 16, device=device)
    w[[66, 9, 40]] = 1.0
    x = torch.ones(2, 16, device=device)
    got = kernel.sums(x.bfloat16(), w.bfloat16(), None, None, bm=16, bn=16, bk=16, shares=2)
    assert got["best"].tolist() == [9, 9]
    assert torch.allclose(got["total"], (3 + 67 * torch.exp(torch.tensor(-16.0, dtype=torch.float64))).to(device))

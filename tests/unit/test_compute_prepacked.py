"""A weight laid out beforehand changes the speed of a product only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import tiny

from exitlens.compute import matmul as products
from exitlens.compute import prepacked as packed
from exitlens.decoding import generate
from exitlens.models import wrap
from exitlens.models.native.runner import runner_of


def able(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the way on any processor that has it, whether or not it is the faster one there."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        pytest.skip("this PyTorch has no oneDNN")
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16 products")
    monkeypatch.setattr(packed, "_helps", lambda _: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 24), (1, 1, 24), (2, 1, 24), (3, 24), (4, 24), (2, 5, 24), (0, 24), (300, 24)])
def test_it_is_the_product(
    shape: tuple[int, ...], with_bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    able(dtype, monkeypatch)
    generator = torch.Generator().manual_seed(len(shape))
    weight = torch.randn(40, 24, generator=generator).to(dtype)
    bias = torch.randn(40, generator=generator).to(dtype) if with_bias else None
    x = torch.randn(*shape, generator=generator).to(dtype)
    product = packed.packed(weight, bias)
    assert product is not None
    got = product(x)
    want = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert got.shape == (*shape[:-1], 40)
    assert got.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), want, rtol=bound, atol=bound * 4)


def test_an_input_that_is_not_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    able(torch.float32, monkeypatch)
    weight, x = torch.randn(40, 24), torch.randn(24, 6).t()
    product = packed.packed(weight)
    assert product is not None
    torch.testing.assert_close(product(x), x @ weight.T)
    torch.testing.assert_close(product(x[1:2]), x[1:2] @ weight.T)


def test_a_type_or_processor_it_is_not_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed.packed(torch.ones(4, 4, dtype=torch.float64)) is None
    monkeypatch.setattr(products, "onednn_is_exact", lambda: False)
    assert not packed._try(torch.float32)


def test_a_product_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)
    if not packed._try(torch.float32):
        pytest.skip("this PyTorch has no oneDNN")
    right = packed._product
    monkeypatch.setattr(packed, "_product", lambda w, b: lambda x: right(w, b)(x) * 1.01)
    assert not packed._try(torch.float32)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_a_model_whose_weights_change_is_laid_out_again(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    able(torch.float32, monkeypatch)
    lm: Any = wrap(tiny.model(family, spread=0.3), tiny.tokenizer())
    first = runner_of(lm)
    assert first is not None
    assert runner_of(lm) is first
    before = generate(lm, ["The capital of France"], max_new_tokens=8)[0].token_ids
    with torch.no_grad():
        for p in lm.model.parameters():
            p.copy_(p.flip(0))
    after = generate(lm, ["The capital of France"], max_new_tokens=8)[0].token_ids
    assert runner_of(lm) is not first
    ids = torch.tensor([lm.encode("The capital of France")])
    out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
    new = out[0, ids.shape[1] :].tolist()
    assert list(after) == (new[: new.index(0)] if 0 in new else new)
    assert before != after

"""The order of a product changes its speed only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exitlens.models import products


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 64, 65])
@pytest.mark.parametrize("outputs", [7, products._MANY])
@pytest.mark.parametrize("with_bias", [False, True])
def test_both_orders_are_one_product(rows: int, outputs: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_turned_is_faster", lambda: True)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 3, 16, generator=generator)[:, 1:2]  # not contiguous
    weight = torch.randn(outputs, 16, generator=generator)
    bias = torch.randn(outputs, generator=generator) if with_bias else None
    got = products.linear(x, weight, bias)
    want = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert got.shape == (rows, 1, outputs)
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_a_module_that_does_something_else_is_left_alone() -> None:
    plain, heard, moved = (nn.Linear(3, 2) for _ in range(3))
    heard.register_forward_hook(lambda _module, _given, out: out + 1)
    moved.forward = lambda x: x  # type: ignore[method-assign]
    assert products.plain_linear(plain)
    assert not products.plain_linear(heard)
    assert not products.plain_linear(moved)
    assert not products.plain_linear(nn.Identity())

"""The order of a product changes its speed only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exitlens.compute import matmul as products


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


@pytest.mark.parametrize("rows", [1, 2, 3, 70])
def test_the_other_library_gives_the_same_product_and_leaves_the_setting(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this PyTorch cannot choose the library")
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)
    setting = torch.backends.mkldnn.matmul
    before, setting.fp32_precision = setting.fp32_precision, "ieee"
    seen: list[str] = []
    monkeypatch.setattr(
        products.F, "linear", lambda *given: (seen.append(setting.fp32_precision), given[0] @ given[1].T)[1]
    )
    x, weight = torch.randn(rows, 16), torch.randn(7, 16)
    try:
        torch.testing.assert_close(products.linear(x, weight), x @ weight.T)
        assert ("bf16" in seen) == (rows >= 3)
        assert setting.fp32_precision == "ieee"
    finally:
        setting.fp32_precision = before


def test_the_setting_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this PyTorch cannot choose the library")
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(RuntimeError, match="shapes"), products.faster_float32():
        torch.mm(torch.ones(4, 3), torch.ones(4, 3))
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_two_threads_put_the_setting_back_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this PyTorch cannot choose the library")
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    first, second = products.faster_float32(), products.faster_float32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert setting.fp32_precision == "bf16"  # the second still needs it
    second.__exit__(None, None, None)
    assert setting.fp32_precision == before


def test_a_processor_whose_products_round_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.nn.functional.linear
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(products, "_maker", lambda: "AuthenticAMD")
    # In float64, so that the answer does not depend on whether this machine's own bf16 units would round.
    monkeypatch.setattr(products.F, "linear", lambda x, w: exact(x.double(), w.double()).float())
    assert products._try_onednn() == (torch.backends.mkldnn.is_available() and hasattr(torch.backends.mkldnn, "matmul"))
    monkeypatch.setattr(products.F, "linear", lambda x, w: exact(x.bfloat16(), w.bfloat16()).float())
    assert not products._try_onednn()


def test_a_module_that_does_something_else_is_left_alone() -> None:
    plain, heard, moved = (nn.Linear(3, 2) for _ in range(3))
    heard.register_forward_hook(lambda _module, _given, out: out + 1)
    moved.forward = lambda x: x  # type: ignore[method-assign]
    assert products.plain_linear(plain)
    assert not products.plain_linear(heard)
    assert not products.plain_linear(moved)
    assert not products.plain_linear(nn.Identity())

"""Networks trained by compiled kernels beside PyTorch's way, and when they are taken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("numba", reason="numba is not installed")

from exitlens.compute.compiled import wide_vectors
from exitlens.probes import Fold, fit_grid, fit_rows, make_data
from exitlens.probes.kinds import _mlp_compiled as compiled
from exitlens.probes.kinds.mlp_training import train_stack

pytestmark = pytest.mark.skipif(not wide_vectors(), reason="vectors of 16 numbers are not there")


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little the network sees."""
    monkeypatch.setattr(compiled, "LEAST", 0)


def planted(n: int, d: int, layers: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(layers, n, d, generator=g) * torch.arange(1, d + 1) ** -0.5 * 3
    return x, (x[-1, :, 0] + torch.randn(n, generator=g) > 0).float()


def both(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    found = train_stack(*arguments, **options)
    with monkeypatch.context() as plain:
        plain.setattr(compiled, "LEAST", 1 << 60)
        want = train_stack(*arguments, **options)
    assert any(not torch.equal(a, b) for a, b in zip(found[0], want[0], strict=True)), "the same code ran twice"
    return found, want


def same(found: Any, want: Any, bound: float = 2e-5) -> None:
    for ours, theirs in zip(found, want, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=bound, rtol=0)


@pytest.mark.parametrize(
    ("rows", "d", "batch"), [(64, 32, 16), (41, 24, 16), (17, 33, 16), (5, 7, 16), (23, 16, 1), (50, 20, 12)]
)
def test_weights_are_those_of_pytorchs_way(monkeypatch: pytest.MonkeyPatch, rows: int, d: int, batch: int) -> None:
    x, y = planted(70, d)
    which = torch.randperm(70, generator=torch.Generator().manual_seed(1))[:rows]
    found, want = both(monkeypatch, x, [(0, 3), (1, 3), (1, 8)], y, which, epochs=3, batch=batch)
    same(found, want)


def test_standardised_states(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = planted(60, 40)
    x = x * 30 + 4
    options = {"centre": x.mean(1, keepdim=True), "spread": x.std(1, keepdim=True)}
    same(*both(monkeypatch, x, [(1, 0), (0, 2)], y, torch.arange(60), **options))


def test_every_epoch_shows_its_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = planted(50, 20)
    seen: list[tuple[int, list[torch.Tensor], list[torch.Tensor]]] = []

    def look(epoch: int, weights: list[torch.Tensor], biases: list[torch.Tensor]) -> None:
        seen.append((epoch, [w.clone() for w in weights], [b.clone() for b in biases]))

    both(monkeypatch, x, [(0, 1), (1, 1)], y, torch.arange(50), epochs=3, on_epoch=look)
    assert [epoch for epoch, *_ in seen] == [1, 2, 3, 1, 2, 3]
    for ours, theirs in zip(seen[:3], seen[3:], strict=True):
        same(ours[1:], theirs[1:])


def test_long_training_with_units_that_never_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their moments fade to nothing over a thousand steps; and small numbers are left alone outside of the kernel."""
    x, y = planted(100, 16, 1)
    x[..., :8] = -x[..., :8].abs()
    found, want = both(monkeypatch, x, [(0, 0)], y, torch.arange(100), epochs=150)
    p, q = (_probabilities(x[0], network) for network in (found, want))
    torch.testing.assert_close(p, q, atol=5e-3, rtol=0)
    assert float(torch.tensor(1e-39) * 1.0) > 0


def _probabilities(x: torch.Tensor, network: Any) -> torch.Tensor:
    from exitlens.probes.kinds.mlp_training import forward

    return torch.sigmoid(forward(x[None], *network))[0]


def test_a_network_is_the_same_alone_to_the_last_bit() -> None:
    x, y = planted(80, 24, 3)
    items = [(0, 4), (2, 0), (1, 4)]
    weights, biases = train_stack(x, items, y, torch.arange(60))
    for m, item in enumerate(items):
        alone = train_stack(x, [item], y, torch.arange(60))
        for stacked, single in zip((*weights, *biases), (*alone[0], *alone[1]), strict=True):
            assert torch.equal(stacked[m], single[0])
    data = make_data(x, y.long().numpy())
    fold = Fold("f", torch.arange(60).numpy(), torch.arange(60, 80).numpy())
    grid = fit_grid("mlp", data, [fold], seeds=(4, 1, 7, 0, 2))
    p = fit_rows("mlp", data, 2, rows=fold.train, seed=0).predict_proba(x[2, fold.test])
    torch.testing.assert_close(grid.probabilities[0][2, 0, 3], p, atol=1e-6, rtol=0)


def test_what_they_cannot_do_is_left_to_pytorch() -> None:
    x = torch.zeros(1, 10, 4)
    assert compiled.usable(x, 10, 5, 16)
    assert not compiled.usable(x.double(), 10, 5, 16)
    assert not compiled.usable(x, 10, 5, 17)
    assert not compiled.usable(x.to("meta"), 10, 5, 16)


def test_small_trainings_do_not_load_numba() -> None:
    code = (
        "import sys, torch; from exitlens.probes import fit\n"
        "fit('mlp', torch.randn(40, 8), [0, 1] * 20)\n"
        "assert 'numba' not in sys.modules\n"
        "from exitlens.probes.kinds import _mlp_compiled as c; c.LEAST = 0\n"
        "assert not c.usable(torch.zeros(1, 9, 9), 9, 9, 9)\n"
    )
    environment = {**os.environ, "EXITLENS_COMPILED": "0", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)

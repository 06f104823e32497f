"""Each metric on a value worked out by hand, on its bounds, and on scores that overflow."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exitlens import metrics
from exitlens.errors import InputError

P = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
Q = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64).log()
INF = math.inf


def test_values_worked_out_by_hand() -> None:
    # H = −(.7 ln .7 + .2 ln .2 + .1 ln .1); KL = .7 ln 7 + 0 + .1 ln(1/7) = .6 ln 7
    h = 0.7 * 0.35667494394 + 0.2 * 1.60943791243 + 0.1 * 2.30258509299
    assert metrics.entropy(P).item() == pytest.approx(h, abs=1e-10)
    assert metrics.kl(P, Q).item() == pytest.approx(0.6 * math.log(7), abs=1e-12)
    # m = (.4, .2, .4): JSD = .7 ln(.7/.4) + .1 ln(.1/.4)
    assert metrics.jsd(P, Q).item() == pytest.approx(0.7 * math.log(1.75) - 0.1 * math.log(4), abs=1e-12)
    assert metrics.jsd(P, Q).item() == pytest.approx(0.2531, abs=5e-5)
    assert metrics.total_variation(P, Q).item() == pytest.approx(0.6)
    assert metrics.margin(P).item() == pytest.approx(0.5)
    second = 0.7 * 0.35667494394**2 + 0.2 * 1.60943791243**2 + 0.1 * 2.30258509299**2
    assert metrics.varentropy(P).item() == pytest.approx(second - h * h, abs=1e-9)


def test_a_constant_added_to_the_scores_changes_nothing() -> None:
    for f in (metrics.entropy, metrics.varentropy, metrics.margin):
        assert f(P + 50).item() == pytest.approx(f(P).item(), abs=1e-12)
    for g in (metrics.kl, metrics.jsd, metrics.total_variation):
        assert g(P - 7, Q + 90).item() == pytest.approx(g(P, Q).item(), abs=1e-12)


def test_bounds_are_reached() -> None:
    one, other = torch.tensor([0.0, -INF, -INF]), torch.tensor([-INF, 0.0, -INF])
    assert metrics.jsd(one, other).item() == pytest.approx(math.log(2))
    assert metrics.jsd(one, one).item() == 0
    assert metrics.kl(one, other).item() == INF
    assert metrics.kl(one, one).item() == 0
    assert metrics.total_variation(one, other).item() == 1
    assert metrics.entropy(one).item() == 0
    assert metrics.varentropy(one).item() == 0
    assert metrics.margin(one).item() == 1
    assert metrics.entropy(torch.zeros(8)).item() == pytest.approx(math.log(8))
    assert metrics.varentropy(torch.zeros(8)).item() == pytest.approx(0, abs=1e-10)
    assert metrics.margin(torch.zeros(8)).item() == 0
    assert metrics.margin(torch.zeros(1)).item() == 1


def test_huge_and_half_precision_scores() -> None:
    z = torch.tensor([60_000.0, 59_999.0, -60_000.0])
    expected = math.log(1 + math.exp(-1)) + math.exp(-1) / (1 + math.exp(-1))
    assert metrics.entropy(z).item() == pytest.approx(expected, abs=1e-6)
    half = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
    assert metrics.entropy(half).dtype == torch.float32
    assert metrics.entropy(half).item() == pytest.approx(metrics.entropy(half.double()).item(), abs=1e-6)


scores = st.lists(st.floats(-80, 80, width=32), min_size=5, max_size=5).map(torch.tensor)


@settings(deadline=None)
@given(scores, scores)
def test_divergences_stay_in_bounds(p: torch.Tensor, q: torch.Tensor) -> None:
    jsd, kl, tv = metrics.jsd(p, q).item(), metrics.kl(p, q).item(), metrics.total_variation(p, q).item()
    assert 0 <= jsd <= torch.tensor(math.log(2)).item()  # ln 2 as float32 writes it
    assert kl >= 0
    assert 0 <= tv <= 1
    assert jsd == pytest.approx(metrics.jsd(q, p).item(), abs=1e-6)
    # Pinsker: KL ≥ 2 TV²; and JSD ≤ ln 2 · TV.
    assert kl >= 2 * tv**2 - 1e-5
    assert jsd <= math.log(2) * tv + 1e-5
    assert 0 <= metrics.entropy(p).item() <= math.log(5) + 1e-6
    assert metrics.varentropy(p).item() >= 0


def test_rank_counts_strictly_larger_scores() -> None:
    z = torch.tensor([[3.0, 1.0, 3.0, 2.0]] * 4)
    assert metrics.rank(z, torch.tensor([0, 1, 2, 3])).tolist() == [0, 3, 0, 2]
    with pytest.raises(InputError, match="token id 4"):
        metrics.rank(z, torch.tensor([0, 1, 2, 4]))
    with pytest.raises(InputError, match="token id -1"):
        metrics.rank(z, torch.tensor([0, 1, 2, -1]))


def test_settling_depth() -> None:
    #                     never before N · from 2 on · always · left again, settled only at 3
    top = torch.tensor([[1, 5, 7, 2], [1, 6, 7, 9], [1, 9, 7, 1], [4, 9, 7, 2], [9, 9, 7, 2]])
    assert metrics.settling_depth(top).tolist() == [4, 2, 0, 3]
    with pytest.raises(InputError):
        metrics.settling_depth(torch.zeros(0, 3))


def test_shapes_broadcast_and_bad_shapes_are_refused() -> None:
    assert metrics.jsd(torch.randn(1, 4, 9), torch.randn(3, 1, 9)).shape == (3, 4)
    with pytest.raises(InputError, match="vocabular"):
        metrics.kl(torch.zeros(3), torch.zeros(4))
    with pytest.raises(InputError, match="vocabulary axis"):
        metrics.entropy(torch.zeros(2, 0))

"""Kinds of probe: they find what is planted, agree with scikit-learn, and one alone equals one of many."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from exitlens.compute.threads import side_by_side
from exitlens.errors import ProbeError
from exitlens.probes import (
    KINDS,
    FittedStack,
    Fold,
    Kind,
    LinearStack,
    ProbeData,
    Provenance,
    evaluate,
    fit,
    fit_grid,
    fit_rows,
    from_tensors,
    grouped_k_fold,
    kind_named,
    make_data,
    make_ensemble,
    register_kind,
)
from exitlens.probes import kinds as registry
from exitlens.probes.kinds.logistic import Logistic, fit_path
from exitlens.probes.kinds.mlp import MLP


def planted(layers: int = 3, n: int = 480, d: int = 24, strength: float = 1.5, seed: int = 0):
    """Layer 0: noise. Later layers: truth on one direction. An entity has true/false × affirmed/negated."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(layers, n, d))
    y = np.tile([1, 0, 0, 1], n // 4)
    negated = np.tile([False, False, True, True], n // 4)
    entity = np.arange(n) // 4
    topic = np.repeat(np.arange(4), n // 4)
    direction = rng.normal(size=d)
    direction /= np.linalg.norm(direction)
    polarity = rng.normal(size=d)
    x[1:] += (2 * y - 1)[:, None] * direction * strength
    x += negated[:, None] * polarity
    data = make_data(x, y, entity, topic, negated=negated)
    return data, direction


@pytest.mark.parametrize("kind", list(KINDS))
def test_planted_direction_is_found_and_nothing_where_nothing_is(kind: str) -> None:
    data, _ = planted()
    folds = [Fold("t", np.flatnonzero(data.topics != 0), np.flatnonzero(data.topics == 0))]
    p = fit_grid(kind, data, folds).probabilities[0][:, -1, 0]
    right = ((p > 0.5).numpy() == (data.labels[folds[0].test] == 1)).mean(1)
    assert right[1:].min() > 0.75
    assert abs(right[0] - 0.5) < 0.15  # 120 rows: three standard errors


@pytest.mark.parametrize("kind", ["mass-mean", "lda", "ttpd", "logistic"])
def test_direction_is_the_planted_one(kind: str) -> None:
    data, direction = planted(n=4000)
    weight = fit_rows(kind, data, 1).to_tensors()[0]["weight"].numpy()
    assert weight @ direction / np.linalg.norm(weight) > 0.95


@pytest.mark.parametrize("c", [1e-3, 1e-1, 10.0])
def test_logistic_is_scikit_learns(c: float) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 20)) @ rng.normal(size=(20, 20)) * 3 + 5
    y = (rng.random(300) < 1 / (1 + np.exp(-x[:, 0] / 4))).astype(int)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12)).fit(x, y)
    weight, bias = fit_path(
        torch.from_numpy(x), torch.from_numpy(y).double(), torch.ones(1, 300, dtype=torch.float64), [c], tol=1e-10
    )
    ours = weight[0, 0].numpy() * x.std(0)
    np.testing.assert_allclose(ours, theirs[-1].coef_[0], rtol=1e-5, atol=1e-7)
    p = torch.sigmoid(torch.from_numpy(x) @ weight[0, 0] + bias[0, 0]).numpy()
    np.testing.assert_allclose(p, theirs.predict_proba(x)[:, 1], atol=1e-7)


def test_logistic_float32_default_tolerance_gives_the_same_probabilities() -> None:
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(400, 30)) * np.logspace(0, 2, 30)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=400) > 0).astype(int)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=5000)).fit(x, y)
    ours = fit("logistic", x, y, setting=0.1).predict_proba(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(x)[:, 1], atol=2e-3)


def test_logistic_folds_that_share_no_row_are_as_if_alone() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(90, 6, generator=g, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.2, 1.0, 1.0, 3.0])
    y = (x[:, 0] + torch.randn(90, generator=g) > 0).double()
    member = torch.zeros(4, 90, dtype=torch.float64)
    member[0, :40] = 1
    member[1, 20:40] = 1  # shares rows with the first
    member[2, 40:70] = 1  # alone, and rows 70 to 90 belong to nobody
    member[3, 45:70] = 1
    weight, bias = fit_path(x, y, member, [0.01, 1.0], tol=1e-10)
    for fold in range(4):
        rows = member[fold].bool()
        w, b = fit_path(x[rows], y[rows], torch.ones(1, int(rows.sum()), dtype=torch.float64), [0.01, 1.0], tol=1e-10)
        torch.testing.assert_close(weight[fold], w[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(bias[fold], b[0], rtol=1e-6, atol=1e-7)


def test_logistic_separable_and_constant_features() -> None:
    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 7.0
    y = (x[:, 0] > 0).float()
    x[:, 0] += 4 * y
    weight, bias = fit_path(x, y, torch.ones(1, 200), [1e-4, 1e4])
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()
    assert (((x @ weight[0, 1] + bias[0, 1]) > 0).float() == y).all()


@pytest.mark.parametrize("shrinkage", [0.05, 0.5])
def test_lda_is_scikit_learns(shrinkage: float) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(240, 15)) @ rng.normal(size=(15, 15)) + 10
    y = (rng.random(240) < 0.3).astype(int)
    x[y == 1] += 0.5
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, y)
    ours = fit("lda", x, y, setting=shrinkage)
    np.testing.assert_allclose(ours.to_tensors()[0]["weight"].numpy(), theirs.coef_[0], rtol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(torch.from_numpy(x)), theirs.predict_proba(x)[:, 1], rtol=1e-6)


def test_mass_mean_directions_by_hand() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(100, 5)) * [1, 2, 3, 4, 5] + 3
    y = np.tile([0, 1], 50)
    gap = x[y == 1].mean(0) - x[y == 0].mean(0)
    plain = fit("mass-mean", x, y).to_tensors()[0]["weight"].numpy()
    np.testing.assert_allclose(plain / np.linalg.norm(plain), np.sign(plain @ gap) * gap / np.linalg.norm(gap))
    centred = x - np.where(y[:, None] == 1, x[y == 1].mean(0), x[y == 0].mean(0))
    cov = centred.T @ centred / 100
    want = np.linalg.solve(cov + 1e-3 * np.trace(cov) / 5 * np.eye(5), gap)
    white = fit("mass-mean-whitened", x, y).to_tensors()[0]["weight"].numpy()
    assert abs(white @ want) / np.linalg.norm(white) / np.linalg.norm(want) > 1 - 1e-9


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_of_many_is_the_same_as_one_alone(kind: str) -> None:
    data, _ = planted(layers=3, n=160)
    rows = np.arange(data.n)
    folds = [Fold(str(t), rows[data.topics != t], rows[data.topics == t]) for t in range(3)]
    grid = fit_grid(kind, data, folds, seeds=(3, 8))
    setting = len(grid.settings) // 2
    for f, layer, s in ((0, 1, 0), (2, 2, len(grid.seeds) - 1)):
        alone = fit_rows(kind, data, layer, rows=folds[f].train, seed=grid.seeds[s])
        p = alone.predict_proba(data.states[layer, folds[f].test])
        torch.testing.assert_close(grid.probabilities[f][layer, setting, s], p, atol=2e-4, rtol=0, check_dtype=False)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_grid_is_the_same_with_any_number_of_threads(threads: int) -> None:
    data, _ = planted(layers=2, n=80)
    rows = np.arange(data.n)
    folds = [Fold(str(t), rows[data.topics != t], rows[data.topics == t]) for t in range(3)]
    before = torch.get_num_threads()
    seeds = (4, 1, 7, 0, 2)  # more than one stack holds
    try:
        torch.set_num_threads(threads)
        grid = fit_grid("mlp", data, folds, seeds=seeds)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for f, layer, s in ((0, 0, 0), (1, 1, 2), (2, 0, 4)):
        alone = fit_rows("mlp", data, layer, rows=folds[f].train, seed=seeds[s])
        p = alone.predict_proba(data.states[layer, folds[f].test])
        torch.testing.assert_close(grid.probabilities[f][layer, 0, s], p, atol=1e-5, rtol=0, check_dtype=False)


def test_jobs_side_by_side_keep_their_order_and_end_at_the_first_error() -> None:
    before = torch.get_num_threads()
    assert list(side_by_side([lambda k=k: (k, torch.is_grad_enabled()) for k in range(20)])) == [
        (k, False) for k in range(20)
    ]

    def wrong() -> int:
        raise ProbeError("no")

    with pytest.raises(ProbeError, match="no"):
        list(side_by_side([lambda: 1, wrong, lambda: 3]))
    assert torch.get_num_threads() == before


def test_mlp_trains_as_torch_does() -> None:
    data, _ = planted(n=120)
    x, y = data.states[1].float(), data.y.float()
    probe = fit("mlp", x, data.labels, seed=5)
    g = torch.Generator().manual_seed(5)
    widths = (24, 256, 128, 64, 1)
    net: list[torch.nn.Module] = []
    for a, b in pairwise(widths):
        linear = torch.nn.Linear(a, b)
        with torch.no_grad():
            linear.weight.copy_(torch.empty(a, b).uniform_(-(a**-0.5), a**-0.5, generator=g).T)
            linear.bias.copy_(torch.empty(1, b).uniform_(-(a**-0.5), a**-0.5, generator=g)[0])
        net += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*net[:-1])
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    order = torch.Generator().manual_seed(5 + 1_000_003)
    for _ in range(MLP().epochs):
        for index in torch.randperm(len(y), generator=order).split(16):
            optimiser.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(model(x[index])[:, 0], y[index]).backward()
            optimiser.step()
    torch.testing.assert_close(probe.predict_proba(x), torch.sigmoid(model(x)[:, 0]).detach(), atol=2e-4, rtol=1e-3)


def test_mlp_standardised_equals_plain_on_standardised_states() -> None:
    data, _ = planted(n=120)
    x = data.states[1].float() * 30 + 4
    z = (x - x.mean(0)) / x.std(0, correction=0)
    ours = fit(MLP(standardize=True), x, data.labels).predict_proba(x)
    torch.testing.assert_close(ours, fit("mlp", z, data.labels).predict_proba(z), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["logistic", "mlp", "ttpd"])
def test_round_trip_keeps_numbers_and_provenance(kind: str) -> None:
    data, _ = planted(n=80)
    probe = fit_rows(kind, data, 2, provenance=Provenance(model="abc", position="last", lens="raw", prompt="truth"))
    tensors, metadata = probe.to_tensors()
    again = from_tensors(tensors, json.loads(json.dumps(metadata)))
    assert again.provenance == probe.provenance
    assert torch.equal(again.predict_proba(data.states[2]), probe.predict_proba(data.states[2]))


def test_ensemble_round_trip_and_votes() -> None:
    data, _ = planted(n=80)
    for how in ("mean", "majority"):
        ensemble = make_ensemble([fit_rows("logistic", data, j) for j in (0, 1, 2)], how)
        tensors, metadata = ensemble.to_tensors()
        again = from_tensors(tensors, json.loads(json.dumps(metadata)))
        p = again.predict_proba(data.states)
        assert torch.equal(p, ensemble.predict_proba(data.states))
        parts = torch.stack([m.predict_proba(x) for m, x in zip(ensemble.members, data.states, strict=True)])
        want = parts.mean(0) > 0.5 if how == "mean" else (parts > 0.5).sum(0) >= 2
        assert torch.equal(p > 0.5, want)


def test_probe_refuses_another_model_position_or_layer() -> None:
    data, _ = planted(n=80)
    probe = fit_rows("mass-mean", data, 1, provenance=Provenance(model="abc", position="last"))
    probe.check("abc", position="last", layer=1)
    with pytest.raises(ProbeError, match="'abc', not 'xyz'"):
        probe.check("xyz")
    with pytest.raises(ProbeError, match="position 'last', not 'mean'"):
        probe.check("abc", position="mean")
    with pytest.raises(ProbeError, match="layer 1, not 7"):
        probe.check("abc", layer=7)
    with pytest.raises(ProbeError, match="width 3"):
        probe.predict_proba(torch.zeros(2, 3))


def test_damaged_metadata_is_refused() -> None:
    data, _ = planted(n=80)
    tensors, metadata = fit_rows("logistic", data, 1).to_tensors()
    with pytest.raises(ProbeError, match="format"):
        from_tensors(tensors, metadata | {"format": 9})
    with pytest.raises(ProbeError, match="lacks"):
        from_tensors({}, metadata)
    with pytest.raises(ProbeError, match="unknown form"):
        from_tensors(tensors, metadata | {"form": "forest"})


def test_ccs_ignores_labels_but_for_the_sign() -> None:
    data, _ = planted(n=400, strength=3.0)
    ours = fit_rows("ccs", data, 1)
    flipped = make_data(data.states, 1 - data.labels, data.groups, data.topics, negated=data.negated)
    theirs = fit_rows("ccs", flipped, 1)
    a, b = ours.to_tensors()[0]["weight"], theirs.to_tensors()[0]["weight"]
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) < -0.99
    assert "unsupervised" in ours.provenance.notes


def test_kinds_that_need_negations_say_so() -> None:
    data, _ = planted(n=80)
    bare = make_data(data.states, data.labels, data.groups)
    for kind in ("ccs", "ttpd"):
        with pytest.raises(ProbeError, match="negated"):
            fit_rows(kind, bare, 1)
    with pytest.raises(ProbeError, match="unknown kind of probe 'svm'"):
        fit_rows("svm", bare, 1)


def test_progress_ends_at_the_total_and_settings_are_replaced() -> None:
    data, _ = planted(n=80)
    seen: list[tuple[int, int]] = []
    rows = np.arange(data.n)
    folds = [Fold("a", rows[:40], rows[40:]), Fold("b", rows[40:], rows[:40])]
    grid = fit_grid(Logistic(settings=(0.5,)), data, folds, progress=lambda done, total: seen.append((done, total)))
    assert grid.settings == (0.5,)
    assert seen[-1] == (6, 6)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


@dataclass(frozen=True, kw_only=True)
class FirstFeature(Kind):
    """Reads one feature and nothing else: the smallest kind of a user's own."""

    name: str = "first-feature"

    def fit(self, states: torch.Tensor, data: ProbeData, trains: Any, seeds: Any) -> list[FittedStack]:
        weight = torch.zeros(len(trains), 1, states.shape[-1])
        weight[..., 0] = 1.0
        return [LinearStack(self.name, weight, torch.zeros(len(trains), 1)) for _ in states]


def test_a_kind_of_one_s_own_is_named_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.KINDS, "own", {})
    with pytest.raises(ProbeError, match="unknown kind of probe 'first-feature'"):
        kind_named("first-feature")
    mine = register_kind(FirstFeature())
    assert kind_named("first-feature") is mine
    assert register_kind(FirstFeature()) == mine  # twice the same is no harm
    x = torch.randn(2, 80, 3, generator=torch.Generator().manual_seed(0))
    data = make_data(x, (x[1, :, 0] > 0).long().numpy())
    study = evaluate(data, grouped_k_fold(data), ["first-feature"], resamples=0)
    assert study.top.values["accuracy"].value == 1.0
    assert study.runs[0].chosen_layers == (1,) * 5


def test_registering_refuses_a_name_that_is_taken_or_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.KINDS, "own", {})
    with pytest.raises(ProbeError, match="'lda' is registered already"):
        register_kind(FirstFeature(name="lda"))
    for name in ("", "a,b", " a"):
        with pytest.raises(ProbeError, match="cannot name a kind"):
            register_kind(FirstFeature(name=name))


@pytest.mark.wrong_types
def test_registering_refuses_what_is_no_kind() -> None:
    with pytest.raises(ProbeError, match="is no kind of probe"):
        register_kind("logistic")  # type: ignore[arg-type]  # that is what is tested


def test_a_kind_says_itself_whether_it_needs_both_polarities() -> None:
    assert {name for name, kind in KINDS.items() if kind.both_polarities} == {"ccs", "ttpd"}

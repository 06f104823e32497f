"""Protocols, controls and the study: leaks show, the default does not leak, bad input is named in one line."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from exitlens import stats
from exitlens.errors import InputError, ProbeError
from exitlens.probes import (
    TABLES,
    evaluate,
    fixed_split,
    grouped_k_fold,
    join_groups,
    leave_one_topic_out,
    lm_baselines,
    make_data,
    make_split,
    original_study,
    random_k_fold,
    random_label_data,
    text_floor,
    to_frame,
    topic_transfer,
    verdict,
)
from exitlens.probes.controls import random_label_probes
from exitlens.probes.evaluation import fold_auroc, measure
from exitlens.probes.grid import Fold
from exitlens.probes.kinds.logistic import Logistic
from exitlens.probes.nested import run_kind
from exitlens.probes.splits import Split, affirmed_to_negated

QUICK = Logistic(settings=(1e-2, 1.0))


def study_data(n: int = 480, d: int = 16, layers: int = 3, strength: float = 2.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.tile([1, 0], n // 2)
    entity = np.arange(n) // 2
    topic = np.array(["animals", "companies", "elements", "cities"])[np.arange(n) * 4 // n]
    x = rng.normal(size=(layers, n, d)) + rng.normal(size=(n // 2, d))[entity]
    direction = rng.normal(size=d)
    x[-1] += (2 * y - 1)[:, None] * direction / np.linalg.norm(direction) * strength
    return make_data(x.astype(np.float32), y, entity, topic, negated=rng.random(n) < 0.5)


def test_leaking_random_split_misleads_a_bag_of_words_and_the_default_protocol_does_not() -> None:
    # Each entity has a true statement and its false twin, which differ in one word; which of two words is the true
    # one is a coin flip an entity, so the words alone cannot tell an unseen entity. But each statement comes in two
    # wordings, and a random split puts one of the two in training.
    rng = np.random.default_rng(0)
    texts, labels, entity, topic = [], [], [], []
    for e in range(160):
        first = int(rng.integers(2))
        for word in (0, 1):
            for ending in ("", " indeed"):
                texts.append(f"thing{e} is thing{e}{'xy'[word]}{ending}")
                labels.append(int(word == first))
                entity.append(e)
                topic.append(e % 4)
    data = make_data(rng.normal(size=(1, len(texts), 2)), labels, entity, topic)
    with pytest.warns(UserWarning, match="leak"):
        leaking = random_k_fold(data)
    accuracy = {
        split.name: float(np.mean((text_floor(texts, data.labels, split, c=100.0).probability > 0.5) == data.labels))
        for split in (leaking, leave_one_topic_out(data), grouped_k_fold(data))
    }
    assert accuracy["random-k-fold"] > 0.75
    assert abs(accuracy["leave-one-topic-out"] - 0.5) < 0.06
    assert abs(accuracy["grouped-k-fold"] - 0.5) < 0.06


def test_random_labels_give_chance_at_every_layer() -> None:
    data = random_label_data(study_data(n=1600, layers=4), seed=1)
    run = run_kind(QUICK, data, leave_one_topic_out(data))
    y = torch.from_numpy(data.labels[run.rows])
    right = ((run.by_layer[:, 0] > 0.5).long() == y).double().mean(1)
    assert (right - 0.5).abs().max() < 0.06  # 800 entities in pairs: three standard errors are 0.053


def test_random_labels_are_coins_of_their_own_so_that_a_probe_of_noise_is_at_chance() -> None:
    """Drawing exactly half would make a majority in training a minority in the test: chance would lie below .5."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 2)
    topics = [f"topic {group % 3}" for group in groups]
    data = make_data(rng.normal(size=(1, 48, 2)).astype(np.float32), np.tile([0, 1], 24), groups, topics)
    split = leave_one_topic_out(data, min_rows=8)
    run = run_kind(QUICK, data, split)
    found = []
    for seed in range(30):
        said, labels = random_label_probes(QUICK, run, data, split, seed)
        assert said.shape[:2] == (1, len(labels))
        found.append(float(((said[0].numpy() > 0.5) == labels).mean()))
    assert len({int(random_label_data(data, seed).labels.sum()) for seed in range(20)}) > 3
    # 30 seeds of 5 draws over 24 groups: the standard error is about .01; exactly half gives .43.
    assert abs(np.mean(found) - 0.5) < 0.035


def test_random_labels_refuse_groups_that_are_too_few() -> None:
    data = study_data(n=64, layers=1)
    run = run_kind(QUICK, data, leave_one_topic_out(data, min_rows=4))
    one_group = Split("one group", (Fold("a", np.arange(2), np.arange(2, 64)),), ((),))
    with pytest.raises(ProbeError, match="too few for random labels"):
        random_label_probes(QUICK, run, data, one_group)


@pytest.mark.parametrize("protocol", ["leave-one-topic-out", "grouped-k-fold", "original", "affirmed-to-negated"])
def test_no_group_is_on_both_sides_outside_or_inside(protocol: str) -> None:
    data = study_data()
    split = make_split(data, protocol, test=("cities",) if protocol == "original" else ())
    for fold, inner in zip(split.folds, split.inner, strict=True):
        assert not set(data.groups[fold.train]) & set(data.groups[fold.test])
        assert len(inner) >= 2
        for f in inner:
            assert not set(data.groups[f.train]) & set(data.groups[f.test])
            assert not set(f.train) & set(fold.test)
            assert not set(f.test) & set(fold.test)


def test_affirmed_to_negated_trains_on_affirmed_only() -> None:
    data = study_data()
    assert data.negated is not None
    for fold in affirmed_to_negated(data).folds:
        assert not data.negated[fold.train].any()
        assert data.negated[fold.test].all()


def test_groups_that_reach_into_a_tested_topic_leave_training() -> None:
    base = study_data()
    groups = base.groups.copy()
    groups[0] = groups[-1]  # an animal and a city share an entity
    data = make_data(base.states, base.labels, groups, [base.topic_names[t] for t in base.topics])
    split = leave_one_topic_out(data)
    assert 0 not in split.folds[-1].train
    assert "left out" in split.notes[0]


def test_layer_is_chosen_without_seeing_the_test_topic() -> None:
    # On three topics layer 1 tells truth; on the fourth only layer 2 does. A choice that saw the fourth would differ.
    data = study_data(n=800, layers=3)
    x = torch.randn(3, 800, 16, generator=torch.Generator().manual_seed(0))
    sign = torch.from_numpy(2.0 * data.labels - 1).float()
    last = torch.from_numpy(data.topics == 3)
    x[1, ~last, 0] += 3 * sign[~last]
    x[2, last, 0] += 3 * sign[last]
    data = make_data(x, data.labels, data.groups, [data.topic_names[t] for t in data.topics])
    run = run_kind(QUICK, data, fixed_split(data, ("cities",)))
    assert run.chosen_layers == (1,)
    y = torch.from_numpy(data.labels[run.rows])
    assert ((run.best[0] > 0.5).long() == y).double().mean() < 0.65


def test_shared_training_sets_are_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = study_data()
    from exitlens.probes import nested

    counts: list[int] = []
    fit_grid = nested.fit_grid

    def counting(kind, data, folds, **more):
        counts.append(len(folds))
        return fit_grid(kind, data, folds, **more)

    monkeypatch.setattr(nested, "fit_grid", counting)
    run_kind(QUICK, data, leave_one_topic_out(data))
    assert counts == [4 + 6]  # four topics: four outer sets and six pairs, instead of 4 + 4·3


def test_metrics_are_those_of_stats_and_the_bootstrap_is_centred() -> None:
    rng = np.random.default_rng(0)
    for p in (rng.random(300), rng.integers(0, 4, 300) / 3):  # without and with ties
        y = (rng.random(300) < p).astype(int)
        counts = stats.resample_counts(np.arange(300) // 3, 400, 0)
        t = torch.from_numpy(p).double()
        found = measure(t.float()[None], y, np.zeros(300, np.int64), np.arange(300) // 3, counts)
        p32 = t.float().double().numpy()
        confidence = np.abs(t.float().numpy() - np.float32(0.5)).astype(float)
        right = (p32 > 0.5) == (y == 1)
        want = {
            "accuracy": right.mean(),
            "auroc": stats.auroc(p32, y),
            "brier": stats.brier(p32, y),
            "ece": stats.ece(p32, y),
            "aurc": stats.aurc(confidence, right),
            "selective_accuracy": stats.selective_accuracy(confidence, right, 0.8),
        }
        for name, value in want.items():
            if name == "ece" and len(np.unique(p)) < 10:
                continue  # thirds lie on bin edges, where float32 and float64 may disagree
            assert found[name].value == pytest.approx(value, abs=2e-5), name
        drawn = stats.weighted_mean(right.astype(float), counts)[1:]
        assert drawn.mean() == pytest.approx(want["accuracy"], abs=4 * drawn.std() / 20)
        assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx(
            tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.015
        )


def test_study_finds_the_planted_layer_and_says_so() -> None:
    data = study_data(n=800)
    texts = [f"entity {g} of {data.topic_names[t]}" for g, t in zip(data.groups, data.topics, strict=True)]
    data = make_data(
        data.states, data.labels, data.groups, [data.topic_names[t] for t in data.topics], layers=(0, 4, 9), texts=texts
    )
    rng = np.random.default_rng(0)
    lm = lm_baselines(data.labels, rng.random(data.n) < 0.55, rng.random(data.n))
    study = evaluate(data, leave_one_topic_out(data), [QUICK, "mass-mean"], baselines=lm, resamples=200)
    assert set(study.runs[0].chosen_layers) == {9}
    layers = to_frame(study, "probe_layers")
    accuracy = layers[(layers.metric == "accuracy") & (layers.kind == "logistic")].set_index("layer")
    assert accuracy.value[9] > 0.85 > 0.65 > accuracy.value[0]
    assert ((accuracy.low < accuracy.value) & (accuracy.value < accuracy.high)).all()
    control = layers[(layers.metric == "accuracy") & (layers.role == "control")]
    assert (control.value - 0.5).abs().max() < 0.1
    words = verdict(study)
    assert "It beats the text-only floor" in words
    assert "It beats the model's own answer, LM next token," in words
    for table in TABLES:
        assert len(to_frame(study, table)) > 0
    assert to_frame(study, "probe_comparisons").p_holm.between(0, 1).all()


def test_a_note_of_a_kind_names_it() -> None:
    data = study_data(n=240)
    shaky = replace(QUICK, name="shaky", notes="restarts differ")
    study = evaluate(data, grouped_k_fold(data), [QUICK, shaky], resamples=10, control=False)
    assert study.notes == ("shaky: restarts differ",)
    assert "Note: shaky: restarts differ." in verdict(study)


def test_study_of_noise_says_that_nothing_is_shown() -> None:
    data = study_data(n=400, strength=0.0)
    data = make_data(
        data.states, data.labels, data.groups, [data.topic_names[t] for t in data.topics], texts=["same"] * data.n
    )
    study = evaluate(data, leave_one_topic_out(data), [QUICK], resamples=200)
    words = verdict(study)
    assert "does not demonstrably beat the text-only floor" in words
    assert "chance" in words


def test_transfer_matrix_has_every_cell_and_shows_a_topic_of_its_own() -> None:
    data = study_data(n=800, layers=1, strength=0.0)
    x = data.states.clone()
    odd = torch.from_numpy(data.topics == 3)
    sign = torch.from_numpy(2.0 * data.labels - 1).float()
    x[0, :, 0] += torch.where(odd, -4 * sign, 4 * sign)  # the last topic turns the direction round
    data = make_data(x, data.labels, data.groups, [data.topic_names[t] for t in data.topics])
    frame = topic_transfer(data, QUICK, resamples=50).to_frame()
    accuracy = frame[frame.metric == "accuracy"].pivot(index="train", columns="test", values="value")
    assert accuracy.shape == (4, 4)
    assert accuracy.loc["animals", "animals"] > 0.8
    assert accuracy.loc["cities", "cities"] > 0.8
    assert accuracy.loc["animals", "companies"] > 0.8
    assert accuracy.loc["animals", "cities"] < 0.3


def test_original_study_table() -> None:
    data = study_data(n=800, layers=9)
    topics = [data.topic_names[t] for t in data.topics]
    p = np.random.default_rng(0).random(data.n)
    study = original_study(
        {"few-shot": data.states, "zero-shot": data.states},
        data.labels,
        topics,
        {"few-shot": p < 0.6},
        {"few-shot": p},
        layers=range(9),
        probed_layers=(4, 6, 8),
        test_topic="cities",
        groups=data.groups,
        resamples=200,
    )
    table = study.to_frame("probes")
    assert list(table.method[table.setting == "few-shot"]) == [
        "LM next token", "LM token probability", "MLP", "MLP", "MLP", "majority",
    ]  # fmt: skip
    assert list(table.layer[table.method == "MLP"]) == [4, 6, 8] * 2
    assert (table.n_test == 200).all()
    mlp = table[(table.method == "MLP") & (table.setting == "few-shot")]
    assert mlp.test_accuracy.iloc[2] > 0.75 > mlp.test_accuracy.iloc[0]
    last = study.curves.groupby(["setting", "layer"]).last().loc["few-shot"]
    np.testing.assert_allclose(mlp.train_accuracy, last.train_accuracy)
    np.testing.assert_allclose(mlp.train_loss, last.train_loss)
    assert len(study.curves) == 2 * 3 * 5
    with pytest.raises(ProbeError, match="probed layer 40"):
        original_study({"zero-shot": data.states}, data.labels, topics, layers=range(9), probed_layers=(40,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [1] * 40}, "only label 1"),
        ({"labels": [0, 2] * 20}, "label 2 of example 1"),
        ({"labels": [0, 1] * 19}, "40 examples for 38 labels"),
        ({"groups": [1] * 39}, "39 groups for 40 rows"),
    ],
)
def test_bad_rows_are_named(change: dict, message: str) -> None:
    given = {"labels": [0, 1] * 20, "groups": list(range(40))} | change
    with pytest.raises(ProbeError, match=message):
        make_data(torch.randn(2, 40, 3), **given)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")])
def test_non_finite_states_are_named_by_layer_and_example(value: float, word: str) -> None:
    x = torch.randn(3, 40, 4)
    x[1, 17, 2] = value
    with pytest.raises(ProbeError, match=f"example 17 at layer 20 holds {word}"):
        make_data(x, [0, 1] * 20, layers=(10, 20, 30))


def test_protocols_refuse_what_they_cannot_split() -> None:
    x, y = torch.randn(1, 60, 3), np.tile([0, 1], 30)
    with pytest.raises(ProbeError, match="one topic only"):
        leave_one_topic_out(make_data(x, y))
    with pytest.raises(ProbeError, match="topic 'b' has 4 rows"):
        leave_one_topic_out(make_data(x, y, topics=["a"] * 56 + ["b"] * 4))
    with pytest.raises(ProbeError, match="groups span everything"):
        grouped_k_fold(make_data(x, y, groups=["all"] * 60))
    with pytest.raises(ProbeError, match="groups reach across"):
        leave_one_topic_out(make_data(x, y, groups=["all"] * 60, topics=["a"] * 30 + ["b"] * 30))
    with pytest.raises(ProbeError, match="no topic 'cities'"):
        fixed_split(make_data(x, y, topics=["a"] * 30 + ["b"] * 30))
    with pytest.raises(ProbeError, match="unknown protocol 'loo'"):
        make_split(make_data(x, y), "loo")


def test_join_groups_joins_through_either_key() -> None:
    assert join_groups(["p", "p", "q", None], ["a", "b", "b", None]).tolist() == [0, 0, 0, 1]


def test_same_seed_same_study() -> None:
    data = study_data(n=240)
    frames = [to_frame(evaluate(data, grouped_k_fold(data), [QUICK], resamples=50), "probe_layers") for _ in range(2)]
    assert frames[0].equals(frames[1])


def test_curves_are_those_of_stats_with_intervals_around_them() -> None:
    data = study_data(n=400, strength=0.7)
    study = evaluate(data, leave_one_topic_out(data), [QUICK, "mass-mean"], resamples=20)
    p = study.predictions["logistic"][0].numpy()
    correct = (p > 0.5) == study.labels
    frame = to_frame(study, "probe_calibration", resamples=200)
    assert list(frame.kind.unique()) == ["logistic", "mass-mean"]
    mine = frame[frame.kind == "logistic"]
    curve = stats.reliability_curve(p, study.labels)
    used = curve.count > 0
    np.testing.assert_allclose(mine.observed, curve.share[used])
    np.testing.assert_allclose(mine.confidence, curve.probability[used])
    assert mine.n.tolist() == curve.count[used].tolist()
    assert ((mine.observed_low <= mine.observed) & (mine.observed <= mine.observed_high)).all()
    frame = to_frame(study, "probe_risk", resamples=200)
    mine = frame[frame.kind == "logistic"]
    confidence = np.abs(p - np.float32(0.5))
    assert mine.coverage.iloc[[0, 39, -1]].tolist() == pytest.approx([0.02, 0.8, 1.0])
    assert mine.risk.iloc[39] == pytest.approx(1 - stats.selective_accuracy(confidence, correct, 0.8))
    assert mine.risk.iloc[-1] == pytest.approx(1 - correct.mean())
    assert (mine.risk_low < mine.risk_high).all()
    with pytest.raises(InputError, match="no table 'probe_x'"):
        to_frame(study, "probe_x")


def test_curves_of_several_seeds_are_means_over_them_and_an_answer_of_yes_or_no_has_no_calibration() -> None:
    data = study_data(n=240)
    run = evaluate(data, grouped_k_fold(data), [QUICK], resamples=0, control=False)
    p = torch.rand(3, run.predictions["logistic"].shape[1], generator=torch.Generator().manual_seed(0))
    study = replace(run, predictions={**run.predictions, "logistic": p})
    each = [stats.reliability_curve(one.numpy(), study.labels) for one in p]
    total = sum(c.count for c in each)
    frame = to_frame(study, "probe_calibration", resamples=0)
    np.testing.assert_allclose(frame.n, total / 3)
    np.testing.assert_allclose(frame.observed, sum(c.count * c.share for c in each) / total)
    assert frame.observed_low.isna().all()
    risk = to_frame(study, "probe_risk", resamples=0)
    assert risk.risk.iloc[-1] == pytest.approx(((p > 0.5).numpy() != study.labels).mean())
    said = replace(study, predictions={**run.predictions, "logistic": (p > 0.5).float()})
    assert len(to_frame(said, "probe_calibration", resamples=0)) == 0


def test_a_fold_counts_in_the_mean_auroc_by_its_rows() -> None:
    # Fold 0: four rows ranked perfectly. Fold 1: eight rows ranked the wrong way round. Fold 2: one class only.
    labels = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1])
    p = torch.tensor([0.1, 0.2, 0.8, 0.9, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.5, 0.6])
    folds = np.array([0] * 4 + [1] * 8 + [2] * 2)
    each = np.arange(14)
    found = measure(p[None], labels, folds, each, np.ones((14, 1), np.float32), ("auroc",))
    assert found["auroc"].value == pytest.approx(4 / 12)
    assert math.isnan(found["auroc"].low)
    # In a resample a fold counts by the rows drawn: twice the first fold, none of the last.
    counts = np.ones((14, 2), np.float32)
    counts[:4, 1], counts[12:, 1] = 2, 0
    assert fold_auroc(p.double().numpy(), labels == 1, folds, counts).tolist() == pytest.approx([4 / 12, 8 / 16])


def test_an_auroc_near_one_keeps_room_above_and_two_groups_of_a_class_give_no_interval() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    p = torch.from_numpy(np.clip(0.5 + 0.25 * (2 * labels - 1) + 0.22 * rng.normal(size=60), 0, 1)).float()
    groups, folds = np.arange(60) // 2, np.zeros(60, np.int64)
    found = measure(p[None], labels, folds, groups, stats.resample_counts(groups, 500, 0), ("auroc",))["auroc"]
    assert 0.8 < found.low < found.value < found.high < 1
    assert found.value - found.low > 1.5 * (found.high - found.value)
    assert found.n == 30
    perfect = measure(
        torch.from_numpy(labels)[None].float(), labels, folds, groups, stats.resample_counts(groups, 50, 0), ("auroc",)
    )["auroc"]
    assert perfect.value == perfect.high == 1.0
    assert 0.85 < perfect.low < 0.99
    few = np.arange(60) < 58
    counts = stats.resample_counts(np.arange(60), 50, 0)
    alone = measure(p[None], (~few).astype(np.int64), folds, np.arange(60), counts)
    assert math.isnan(alone["auroc"].low)
    assert alone["auroc"].note == "no interval: n = 2"
    assert not math.isnan(alone["accuracy"].low)

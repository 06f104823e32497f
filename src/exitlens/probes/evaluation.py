"""The study of one protocol: every kind at every layer, its chosen best, controls, and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.probes.controls import FLOOR, Baseline, on_rows, random_label_probes, text_floor
from exitlens.probes.dataset import ProbeData
from exitlens.probes.grid import Progress
from exitlens.probes.kinds import kind_named
from exitlens.probes.kinds.base import Kind
from exitlens.probes.nested import KindRun, run_kind
from exitlens.probes.results import Comparison, Measured, ProbeStudy, Role
from exitlens.probes.splits import Split
from exitlens.stats import (
    Interval,
    calibration_error_interval,
    holm,
    interval_of,
    logit_interval,
    mean_intervals,
    paired_differences,
    perfect_room,
    resample_counts,
    risk_area_interval,
    share_interval,
    weighted_auroc,
    weighted_ece_noise,
    weighted_risk,
)
from exitlens.stats.arrays import Array
from exitlens.stats.bootstrap import Counts

__all__ = ["METRICS", "evaluate", "fold_auroc", "measure"]

METRICS = ("accuracy", "auroc", "brier", "ece", "selective_accuracy", "aurc")
COVERAGE = 0.8
CONTROL = "random labels"


def evaluate(
    data: ProbeData,
    split: Split,
    kinds: Sequence[str | Kind] = ("logistic", "mass-mean", "mlp"),
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    baselines: Sequence[Baseline] = (),
    text: bool = True,
    control: bool = True,
    voting_layers: Sequence[int] | None = None,
    resamples: int = 1000,
    progress: Progress | None = None,
) -> ProbeStudy:
    """Run kinds through a split and measure them beside their controls.

    Args:
        data: States with labels, groups and topics.
        split: Outer and inner folds.
        kinds: Names of the registry, or kinds.
        seeds: Seeds of kinds that chance changes; the first also draws resamples and random labels.
        baselines: What the model itself says (see :func:`~exitlens.probes.controls.lm_baselines`).
        text: Add the text-only floor (needs ``data.texts``).
        control: Fit the first kind that needs no seed also on random labels per group, under the same folds and
            with the settings that it chose; five draws, averaged. Selectivity is its accuracy at the chosen layers less
            that of the control.
        voting_layers: Layers whose majority is also measured (None: a half, five eighths, three quarters of the depth).
        resamples: Bootstrap draws of groups.
        progress: Called with ``(done, total)`` in thousandths of the whole.

    Raises:
        ProbeError: No kinds, or what protocols and kinds refuse.
    """
    if not kinds:
        raise ProbeError("no kinds of probe: name at least one, for example logistic")
    todo = [kind_named(k) for k in kinds]
    part = _parts(progress, len(todo) + int(control))
    runs = tuple(
        run_kind(k, data, split, seeds=seeds, voting_layers=voting_layers, progress=part(i)) for i, k in enumerate(todo)
    )
    rows, folds, seed = runs[0].rows, runs[0].folds, int(seeds[0])
    labels, groups = data.labels[rows], data.groups[rows]
    counts = resample_counts(groups, resamples, seed)
    predictions, roles = _predictions(runs)
    known = {b.name: b for b in baselines}
    roles |= dict.fromkeys(known, "model")
    if text and data.texts:
        known[FLOOR], roles[FLOOR] = text_floor(data.texts, data.labels, split), "floor"
    predictions |= on_rows(known, rows)

    layers = [m for run in runs for m in _by_layer(run, run.kind, "probe", labels, groups, counts)]
    best = tuple(
        Measured(name, roles[name], None, len(p), measure(p, labels, folds, groups, counts))
        for name, p in predictions.items()
    )
    selectivity: dict[str, float] = {}
    if control:
        kind, own = next(((k, r) for k, r in zip(todo, runs, strict=True) if not k.random), (todo[0], runs[0]))
        chance = _by_chance(kind, own, data, split, counts, seed)
        layers += chance
        at = {m.layer: m.values["accuracy"].value for m in chance}
        reached = next(m for m in best if m.name == own.kind).values["accuracy"].value
        selectivity[own.kind] = reached - float(np.mean([at[j] for j in own.chosen_layers]))
        if progress is not None:
            progress(1000, 1000)
    return ProbeStudy(
        protocol=split.name,
        runs=runs,
        layers=tuple(layers),
        best=best,
        comparisons=_compare(predictions, roles, labels, groups, resamples, seed),
        predictions=predictions,
        labels=labels,
        groups=groups,
        rows=rows,
        notes=tuple(dict.fromkeys([*split.notes, *(f"{r.kind}: {n}" for r in runs for n in r.notes)])),
        selectivity=selectivity,
    )


def _parts(progress: Progress | None, jobs: int) -> Callable[[int], Progress | None]:
    """What each of ``jobs`` equal jobs reports to, in thousandths of the whole."""

    def part(job: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, total: progress(int(1000 * (job + done / total) / jobs), 1000)

    return part


def _by_chance(kind: Kind, own: KindRun, data: ProbeData, split: Split, counts: Counts, seed: int) -> list[Measured]:
    """``kind`` on random labels, at each layer of its own run."""
    said, drawn = random_label_probes(kind, own, data, split, seed)
    groups = data.groups[own.rows]
    return [
        Measured(CONTROL, "control", j, len(drawn), measure(said[k], drawn, own.folds, groups, counts))
        for k, j in enumerate(own.layers)
    ]


def _by_layer(
    run: KindRun, name: str, role: Role, labels: NDArray[np.int64], groups: NDArray[np.int64], counts: Counts
) -> list[Measured]:
    return [
        Measured(name, role, j, run.n_seeds, measure(run.by_layer[k], labels, run.folds, groups, counts))
        for k, j in enumerate(run.layers)
    ]


def measure(
    p: Tensor,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    groups: NDArray[np.int64],
    counts: Counts,
    names: Sequence[str] = METRICS,
) -> dict[str, Interval]:
    """Each metric of P(true), averaged over seeds within each resample.

    accuracy at 0.5; auroc within each test fold (each fold has its own probe on its own scale), averaged by the folds'
    rows; brier; ece; selective_accuracy at 80% coverage; aurc.

    Args:
        p: P(true) ``[seeds, m]``.
        labels: 0/1 ``[m]``, or ``[seeds, m]`` where they differ from seed to seed.
        folds: Test fold of each row ``[m]``.
        groups: Group of each row ``[m]``.
        counts: ``[m, 1 + resamples]`` of these groups, see :func:`~exitlens.stats.bootstrap.resample_counts`.
        names: Metrics wanted, of :data:`METRICS`.
    """
    seeds, units = p.float().numpy(), len(np.unique(groups))
    true = np.broadcast_to(labels == 1, seeds.shape)
    held = [min(len(np.unique(groups[row])) for row in side) for side in (true, ~true)]
    rows = {  # the metrics that are means over rows
        "accuracy": ((seeds > 0.5) == true).mean(axis=0),
        "brier": np.square(seeds.astype(np.float64) - labels).mean(axis=0),
    }
    found = [_metrics(one, row, folds, counts, names) for one, row in zip(seeds, true, strict=True)]
    out: dict[str, Interval] = {}
    for name in names:
        if name in rows:
            out[name] = mean_intervals(rows[name], groups, counts=counts)[0]
            continue
        values = np.mean([one[name] for one in found], axis=0)
        if name == "auroc":
            out[name] = _auroc_interval(values, *held)
        elif name == "ece":
            noise = np.mean([one["ece_noise"] for one in found], axis=0)
            out[name] = calibration_error_interval(values, noise, units)
        elif name == "aurc":
            out[name] = risk_area_interval(values, units)
        else:
            out[name] = share_interval(values, units, COVERAGE * len(labels))
    return out


def _auroc_interval(found: Array, ones: int, zeros: int) -> Interval:
    """Interval of an AUROC ``found [1 + resamples]`` from its bootstrap error, on the logit scale.

    Percentiles of an AUROC near 1 lie too low; and a perfect one of few groups (``ones`` and ``zeros`` of either label)
    is not certain, though every resample is perfect too.
    """
    whole = interval_of(found, min(ones, zeros))
    if math.isnan(whole.low):
        return whole
    room = perfect_room(ones, zeros)
    if whole.value in (0.0, 1.0):
        return replace(whole, low=whole.value * (1 - room), high=whole.value * (1 - room) + room)
    low, high = logit_interval(found[:1], np.array([np.nanstd(found[1:], ddof=1)]))
    return replace(whole, low=float(low[0]), high=float(high[0]))


def _metrics(
    p: NDArray[np.float32], true: NDArray[np.bool_], folds: NDArray[np.int64], counts: Counts, names: Sequence[str]
) -> dict[str, Array]:
    """The metrics that are no means over rows, of one seed: ``{name: [1 + resamples]}``; ``ece_noise [resamples]``."""
    y, wide = true.astype(np.float64), p.astype(np.float64)
    out: dict[str, Array] = {}
    if "auroc" in names:
        out["auroc"] = fold_auroc(wide, true, folds, counts)
    if "ece" in names:
        out["ece"], out["ece_noise"] = weighted_ece_noise(wide, y, counts)
    if "selective_accuracy" in names or "aurc" in names:
        wrong = ((p > 0.5) != true).astype(np.float64)
        # Distances from a half are taken in p's own precision: 0.3 and 0.7 are then equally confident.
        confidence = np.abs(p - np.float32(0.5)).astype(np.float64)
        out["aurc"], risk = weighted_risk(confidence, wrong, counts, [COVERAGE])
        out["selective_accuracy"] = 1.0 - risk[0]
    return out


def fold_auroc(p: Array, true: NDArray[np.bool_], folds: NDArray[np.int64], counts: Counts) -> Array:
    """Mean AUROC over the test folds, each by its number of rows ``[1 + resamples]``; a fold of one class is left out.

    A fold counts by its rows because a fold of 20 statements says less than one of 1,500.
    """
    value, mass = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for fold in np.unique(folds):
        here = folds == fold
        area = weighted_auroc(p[here], true[here], counts[here])
        size = np.where(np.isnan(area), 0.0, counts[here].sum(axis=0, dtype=np.float64))
        value += np.nan_to_num(area) * size
        mass += size
    return np.divide(value, mass, out=np.full_like(value, np.nan), where=mass > 0)


def _predictions(runs: Sequence[KindRun]) -> tuple[dict[str, Tensor], dict[str, Role]]:
    """P(true) ``[seeds, m]`` and role of each kind at its chosen layer, and of its layers together."""
    predictions: dict[str, Tensor] = {}
    roles: dict[str, Role] = {}
    for run in runs:
        predictions[run.kind], roles[run.kind] = run.best, "probe"
        together = {}
        if len(run.layers) > 1:
            together["mean of layers"] = run.mean
            if len(run.voting_layers) > 1:
                together[f"majority of {len(run.voting_layers)} layers"] = run.majority
        for how, p in together.items():
            predictions[f"{run.kind}, {how}"], roles[f"{run.kind}, {how}"] = p, "ensemble"
    return predictions, roles


def _compare(
    predictions: Mapping[str, Tensor],
    roles: Mapping[str, Role],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    resamples: int,
    seed: int,
) -> tuple[Comparison, ...]:
    """Every chosen probe against every other and every baseline, paired by statement, clustered by group."""
    y = torch.from_numpy(labels).float()
    right = {name: ((p > 0.5).float() == y).double().mean(0).numpy() for name, p in predictions.items()}
    names = list(right)
    pairs = [
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if roles[a] == "probe" and roles[b] != "ensemble"  # ensembles are shown, not tested: fewer tests, more power
    ]
    if not pairs:
        return ()
    found = paired_differences(
        np.stack([right[a] for a, _ in pairs], 1),
        np.stack([right[b] for _, b in pairs], 1),
        groups,
        max(resamples, 1),
        seed=seed,
        permutations=20_000,  # so that the smallest p stays below .05 after Holm over some hundred comparisons
    )
    corrected = holm(found.p)
    return tuple(
        Comparison(a, b, *(float(v[k]) for v in (found.value, found.low, found.high, found.p, corrected)))
        for k, (a, b) in enumerate(pairs)
    )

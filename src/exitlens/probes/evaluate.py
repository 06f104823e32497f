"""The study of one protocol: every kind at every layer, its chosen best, controls, and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.probes.controls import Baseline, as_tensor, random_label_data, text_floor
from exitlens.probes.dataset import ProbeData
from exitlens.probes.fit import Progress
from exitlens.probes.kinds import kind_named
from exitlens.probes.kinds.base import Kind
from exitlens.probes.nested import KindRun, run_kind
from exitlens.probes.resample import METRICS, bootstrap_weights, interval, metrics
from exitlens.probes.splits import Split
from exitlens.stats import holm, paired_differences

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "Measured", "ProbeStudy", "evaluate"]

CONTROL = "random labels"
FLOOR = "text only (TF-IDF)"


@dataclass(frozen=True)
class Measured:
    """Metrics of one predictor: ``{metric: (value, low, high)}``, mean over its seeds."""

    name: str
    role: str  # "probe", "ensemble", "control", "floor", "model"
    layer: int | None
    n_seeds: int
    values: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Comparison:
    """Accuracy of ``a`` minus that of ``b`` on the same statements; p corrected by Holm over all comparisons."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class ProbeStudy:
    """Everything measured under one protocol. ``to_frame(table)`` gives the long tables.

    ``predictions``: name → P(true) ``[seeds, m]`` of the chosen probes, ensembles and baselines on the tested
    ``rows [m]``.
    """

    protocol: str
    runs: tuple[KindRun, ...]
    control_runs: tuple[KindRun, ...]
    layers: tuple[Measured, ...]
    best: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]
    predictions: Mapping[str, Tensor]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    n_groups: int
    notes: tuple[str, ...]
    selectivity: Mapping[str, float]

    def to_frame(self, table: str) -> pd.DataFrame:
        """A long table: ``probe_`` + ``layers``, ``best``, ``comparisons``, ``calibration`` or ``risk_coverage``."""
        from exitlens.probes.tables import to_frame

        return to_frame(self, table)

    def sentence(self) -> str:
        """What was found, in words."""
        from exitlens.probes.verdict import verdict

        return verdict(self)


def measure(
    p: Tensor, y: Tensor, folds: Tensor, weights: Tensor, names: Sequence[str] = METRICS
) -> dict[str, tuple[float, float, float]]:
    """Value, low and high of each metric of ``p [seeds, m]``, averaged over seeds within each resample."""
    rows = [metrics(one, y, folds, weights, names) for one in p]
    return {name: interval(torch.stack([r[name] for r in rows]).mean(0)) for name in names}


def evaluate(
    data: ProbeData,
    split: Split,
    kinds: Sequence[str | Kind] = ("logistic", "mass-mean", "mlp"),
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    baselines: Sequence[Baseline] = (),
    text: bool = True,
    control: bool = True,
    taps: Sequence[int] | None = None,
    resamples: int = 1000,
    progress: Progress | None = None,
) -> ProbeStudy:
    """Run kinds through a split and measure them beside their controls.

    ``baselines``: what the model itself says (see :func:`controls.lm_baselines`). ``text``: add the text-only floor
    (needs ``data.texts``). ``control``: fit the first kind that needs no seed also on random labels per group, under
    the same folds; selectivity is its accuracy at the chosen layers less that of the control. ``progress(done, total)``
    counts thousandths of the whole. Raises :class:`ProbeError` as the protocols and kinds do.
    """
    if not kinds:
        raise ProbeError("no kinds of probe: name at least one, for example logistic")
    todo = [kind_named(k) for k in kinds]
    jobs = len(todo) + int(control)

    def part(job: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, total: progress(int(1000 * (job + done / total) / jobs), 1000)

    runs = tuple(run_kind(k, data, split, seeds=seeds, taps=taps, progress=part(i)) for i, k in enumerate(todo))
    rows, codes = runs[0].rows, torch.from_numpy(runs[0].folds)
    y = torch.from_numpy(data.labels[rows]).float()
    groups = data.groups[rows]
    weights = bootstrap_weights(groups, resamples, seed=int(seeds[0]))
    predictions: dict[str, Tensor] = {}
    roles: dict[str, str] = {}
    for run in runs:
        predictions[run.kind], roles[run.kind] = run.best, "probe"
        if len(run.layers) > 1:
            predictions[f"{run.kind}, mean of layers"], roles[f"{run.kind}, mean of layers"] = run.mean, "ensemble"
            if len(run.taps) > 1:
                name = f"{run.kind}, majority of {len(run.taps)} taps"
                predictions[name], roles[name] = run.majority, "ensemble"
    known = {b.name: b for b in baselines}
    for name in known:
        roles[name] = "model"
    if text and data.texts:
        known[FLOOR] = text_floor(data.texts, data.labels, split)
        roles[FLOOR] = "floor"
    predictions |= as_tensor(known, rows)

    control_runs: tuple[KindRun, ...] = ()
    if control:
        fixed = next((k for k in todo if not k.random), todo[0])
        control_runs = (_control(fixed, data, split, seeds, part(len(todo))),)
    layers = [
        Measured(run.kind, "probe", j, run.n_seeds, measure(run.by_layer[k], y, codes, weights))
        for run in runs
        for k, j in enumerate(run.layers)
    ]
    for run in control_runs:
        random_y = torch.from_numpy(random_label_data(data, int(seeds[0])).labels[rows]).float()
        layers += [
            Measured(CONTROL, "control", j, run.n_seeds, measure(run.by_layer[k], random_y, codes, weights))
            for k, j in enumerate(run.layers)
        ]
    best = tuple(
        Measured(name, roles[name], None, len(p), measure(p, y, codes, weights)) for name, p in predictions.items()
    )
    by_name = {m.name: m.values["accuracy"][0] for m in best}
    selectivity = {}
    for run in control_runs:
        at = {m.layer: m.values["accuracy"][0] for m in layers if m.name == CONTROL}
        own = next(r for r in runs if r.kind == run.kind)
        selectivity[run.kind] = by_name[run.kind] - float(np.mean([at[j] for j in own.chosen_layers]))
    return ProbeStudy(
        protocol=split.name,
        runs=runs,
        control_runs=control_runs,
        layers=tuple(layers),
        best=best,
        comparisons=_compare(predictions, roles, data.labels[rows], groups, resamples, int(seeds[0])),
        predictions=predictions,
        labels=data.labels[rows],
        rows=rows,
        n_groups=len(np.unique(groups)),
        notes=tuple(dict.fromkeys([*split.notes, *(f"{r.kind}: {n}" for r in runs for n in r.notes)])),
        selectivity=selectivity,
    )


def _control(kind: Kind, data: ProbeData, split: Split, seeds: Sequence[int], progress: Progress | None) -> KindRun:
    return run_kind(kind, random_label_data(data, int(seeds[0])), split, seeds=seeds[:1], progress=progress)


def _compare(
    predictions: Mapping[str, Tensor],
    roles: Mapping[str, str],
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
        permutations=20_000,
    )
    corrected = holm(found.p)
    return tuple(
        Comparison(a, b, *(float(v[k]) for v in (found.value, found.low, found.high, found.p, corrected)))
        for k, (a, b) in enumerate(pairs)
    )

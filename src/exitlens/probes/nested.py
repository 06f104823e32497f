"""Run a kind through a protocol: choose layer and setting inside the training folds, predict outside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.probes.dataset import ProbeData
from exitlens.probes.ensemble import combine
from exitlens.probes.grid import Fold, Progress, fit_grid
from exitlens.probes.kinds import kind_named
from exitlens.probes.kinds.base import Kind
from exitlens.probes.splits import Split
from exitlens.stats import auroc_columns

__all__ = ["KindRun", "run_kind"]


@dataclass(frozen=True)
class KindRun:
    """Out-of-fold predictions of a kind.

    ``rows [m]``: data rows that were tested, ``folds [m]``: by which outer fold. ``by_layer [layers, seeds, m]``:
    P(true) at each layer, setting chosen inside; ``best [seeds, m]``: layer chosen inside too.
    ``inner_auroc [folds, layers]``; ``chosen_layers`` and ``chosen_settings``: one an outer fold.
    ``mean [seeds, m]`` and ``majority [seeds, m]``: all layers' mean, and the vote of ``voting_layers`` (a half,
    five eighths and three quarters of the depth).
    """

    kind: str
    protocol: str
    layers: tuple[int, ...]
    rows: NDArray[np.int64]
    folds: NDArray[np.int64]
    fold_names: tuple[str, ...]
    by_layer: Tensor
    best: Tensor
    mean: Tensor
    majority: Tensor
    voting_layers: tuple[int, ...]
    inner_auroc: Tensor
    chosen_layers: tuple[int, ...]
    chosen_settings: tuple[float | None, ...]
    layer_settings: tuple[tuple[float | None, ...], ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def n_seeds(self) -> int:
        """Seeds that were fitted (1 for kinds that a seed does not change)."""
        return int(self.by_layer.shape[1])


def _unique(split: Split, limit: int | None, outer: bool) -> list[Fold]:
    """Each training set once, with every row it must predict: inner folds, and outer ones if asked."""
    seen: dict[bytes, tuple[Fold, list[NDArray[np.int64]]]] = {}
    wanted = [f for inner in split.inner for f in inner[:limit]] + (list(split.folds) if outer else [])
    for f in wanted:
        train = np.sort(f.train)
        seen.setdefault(train.tobytes(), (Fold(f.name, train, f.test), []))[1].append(f.test)
    return [Fold(f.name, f.train, np.unique(np.concatenate(tests))) for f, tests in seen.values()]


def middle_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """The original study's probed layers, a half, five eighths and three quarters of the depth, among ``layers``."""
    deepest = max(layers)
    wanted = [round(deepest * share) for share in (0.5, 0.625, 0.75)]
    return tuple(dict.fromkeys(min(layers, key=lambda j, w=w: abs(j - w)) for w in wanted))  # type: ignore[misc]  # mypy cannot type a lambda with a default


def run_kind(
    kind: str | Kind,
    data: ProbeData,
    split: Split,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    voting_layers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> KindRun:
    """Fit a kind on every outer and inner fold and predict the outer test rows.

    A training set that several folds share (holding out topics a and b serves both a's and b's inner folds) is
    fitted once. Random kinds choose with their first seed and are then fitted with all of ``seeds``.
    """
    k = kind_named(kind)
    joint = _unique(split, k.inner, outer=not k.random)
    sizes = [len(joint) * len(data.layers), len(split.folds) * len(data.layers) if k.random else 0]

    def part(offset: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, _total: progress(offset + done, sum(sizes))

    first = fit_grid(k, data, joint, seeds=seeds[:1], progress=part(0))
    where = {f.train.tobytes(): i for i, f in enumerate(joint)}
    labels = torch.from_numpy(data.labels)

    def said(f: Fold) -> Tensor:
        i = where[np.sort(f.train).tobytes()]
        return first.probabilities[i][..., torch.from_numpy(np.searchsorted(joint[i].test, f.test))]

    n_layers, n_settings = len(data.layers), len(k.settings)
    scores = torch.zeros(len(split.folds), n_layers, n_settings, dtype=torch.float64)
    for o, inner in enumerate(split.inner):
        used = 0
        for f in inner[: k.inner]:
            y = labels[torch.from_numpy(f.test)]
            if 0 < int(y.sum()) < len(y):
                p = said(f)[:, :, 0]
                found = auroc_columns(p.reshape(-1, len(y)).T.numpy(), y.numpy())
                scores[o] += torch.from_numpy(found).view(n_layers, n_settings)
                used += 1
        scores[o] /= max(used, 1)
    if k.random:
        outer = fit_grid(k, data, split.folds, seeds=seeds, progress=part(sizes[0])).probabilities
    else:
        outer = tuple(said(f) for f in split.folds)
    voting = tuple(voting_layers) if voting_layers is not None else middle_layers(data.layers)
    by_layer, best, chosen_layers, chosen_settings, layer_settings = [], [], [], [], []
    for o, p in enumerate(outer):
        setting = scores[o].argmax(1)
        at_layer = p[torch.arange(n_layers), setting]  # [layers, seeds, rows]
        top = int(scores[o].amax(1).argmax())
        by_layer.append(at_layer)
        best.append(at_layer[top])
        chosen_layers.append(data.layers[top])
        chosen_settings.append(k.settings[int(setting[top])])
        layer_settings.append(tuple(k.settings[int(s)] for s in setting))
    joined = torch.cat(by_layer, -1)
    return KindRun(
        kind=k.name,
        protocol=split.name,
        layers=data.layers,
        rows=np.concatenate([f.test for f in split.folds]),
        folds=np.concatenate([np.full(len(f.test), o) for o, f in enumerate(split.folds)]),
        fold_names=tuple(f.name for f in split.folds),
        by_layer=joined,
        best=torch.cat(best, -1),
        mean=combine(joined, "mean"),
        majority=combine(joined[[data.layers.index(j) for j in voting]], "majority"),
        voting_layers=voting,
        inner_auroc=scores.amax(2),
        chosen_layers=tuple(chosen_layers),
        chosen_settings=tuple(chosen_settings),
        layer_settings=tuple(layer_settings),
        seeds=tuple(seeds) if k.random else tuple(seeds[:1]),
        notes=(k.notes,) if k.notes else (),
    )

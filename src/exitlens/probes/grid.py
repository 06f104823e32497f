"""Fit one probe, or a whole grid: layers × folds × settings × seeds of a kind as batched computations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.compute.matmul import faster_float32
from exitlens.compute.threads import side_by_side
from exitlens.errors import ProbeError
from exitlens.probes.dataset import ProbeData, check_labels, make_data
from exitlens.probes.kinds import kind_named
from exitlens.probes.kinds.base import Kind
from exitlens.probes.probe import Probe, Provenance
from exitlens.stats.arrays import Numbers

__all__ = ["Fold", "Grid", "fit", "fit_grid", "fit_rows"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fold:
    """Row numbers to train on and to predict; ``name`` says what was held out."""

    name: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """What a grid of probes said about each fold's test rows.

    ``probabilities[f]``: P(true) ``[layers, settings, seeds, test rows of fold f]`` float32. The seed axis has length
    1 for kinds that a seed does not change.
    """

    kind: str
    layers: tuple[int, ...]
    settings: tuple[float | None, ...]
    seeds: tuple[int, ...]
    folds: tuple[Fold, ...]
    probabilities: tuple[Tensor, ...]


def fit_grid(
    kind: str | Kind,
    data: ProbeData,
    folds: Sequence[Fold],
    *,
    seeds: Sequence[int] = (0,),
    progress: Progress | None = None,
) -> Grid:
    """Train a kind on every layer × fold × setting × seed and predict each fold's test rows.

    A few layers are worked on at a time, so memory beyond the states themselves is that of a few models a thread.
    ``progress(done, total)`` counts layers × folds. Raises :class:`ProbeError` when a fold's training rows hold one
    class only.
    """
    k = kind_named(kind)
    if not folds or not seeds:
        raise ProbeError(f"{len(folds)} folds and {len(seeds)} seeds: a grid needs at least one of each")
    for fold in folds:
        check_labels(data.labels[fold.train], f"training rows of fold '{fold.name}'")
    used = tuple(seeds) if k.random else tuple(seeds[:1])
    tests = [torch.from_numpy(f.test) for f in folds]
    trains = [torch.from_numpy(f.train) for f in folds]
    out = [torch.empty(len(data.layers), len(k.settings), len(used), len(t)) for t in tests]
    parts = [_Part(k, data, trains, tests, used, *where) for where in _places(k, len(data.layers), len(folds), used)]
    done = 0
    # Products of many rows take all threads and the faster library; the small ones of networks run side by side.
    with torch.no_grad(), nullcontext() if k.random else faster_float32():
        for part, found in zip(parts, side_by_side(parts) if k.random else (part() for part in parts), strict=True):
            for f, p in zip(part.folds, found, strict=True):
                out[f][part.layers, :, part.seeds] = p
                done += p.shape[0] * p.shape[2]
            if progress is not None:
                progress(done // len(used), len(data.layers) * len(folds))
    return Grid(k.name, data.layers, k.settings, used, tuple(folds), tuple(out))


@dataclass(frozen=True)
class _Part:
    """Some layers, folds and seeds of a grid, which are fitted together; it is called to do so."""

    kind: Kind
    data: ProbeData
    trains: Sequence[Tensor]
    tests: Sequence[Tensor]
    used: tuple[int, ...]
    layers: slice
    folds: range
    seeds: slice

    def __call__(self) -> list[Tensor]:
        """P(true) ``[layers, settings, seeds, test rows]`` of each fold."""
        states = self.data.states[self.layers]
        stacks = self.kind.fit(states, self.data, [self.trains[f] for f in self.folds], self.used[self.seeds])
        return [
            torch.stack([stack.predict(at, x[self.tests[f]]) for stack, x in zip(stacks, states, strict=True)])
            for at, f in enumerate(self.folds)
        ]


def _places(k: Kind, layers: int, folds: int, used: Sequence[int]) -> Iterator[tuple[slice, range, slice]]:
    """The parts of a grid: layers, folds and seeds of each, at most ``k.stack`` models where a seed matters.

    Other kinds share work among folds, so they take all folds of a layer at once.
    """
    size = -(-len(used) // -(-len(used) // k.stack))  # as even as can be
    step = max(1, k.stack // size)
    for first in range(0, layers, step):
        at = slice(first, min(first + step, layers))
        if not k.random:
            yield at, range(folds), slice(0, 1)
            continue
        for f in range(folds):
            for s in range(0, len(used), size):
                yield at, range(f, f + 1), slice(s, min(s + size, len(used)))


def fit_rows(
    kind: str | Kind,
    data: ProbeData,
    layer: int,
    *,
    rows: NDArray[np.int64] | None = None,
    setting: float | None = None,
    seed: int = 0,
    provenance: Provenance | None = None,
) -> Probe:
    """One frozen probe of ``layer`` (a number from ``data.layers``) fitted on ``rows`` (all rows when None).

    ``setting`` is the kind's hyper-parameter; None takes the middle one of its path.
    """
    k = kind_named(kind)
    if layer not in data.layers:
        raise ProbeError(f"layer {layer} is not among the states' layers {', '.join(map(str, data.layers))}")
    value = setting if setting is not None else k.settings[len(k.settings) // 2]
    single = replace(k, settings=(value,))
    train = np.arange(data.n) if rows is None else rows
    check_labels(data.labels[train], "training rows")
    at = data.layers.index(layer)
    with torch.no_grad(), nullcontext() if k.random else faster_float32():
        stack = single.fit(data.states[at : at + 1], data, [torch.from_numpy(train)], (seed,))[0]
    base = provenance if provenance is not None else Provenance()
    notes = "; ".join(x for x in (base.notes, k.notes) if x)
    where = replace(base, layer=layer, data=base.data or data.fingerprint(), notes=notes)
    return stack.probe(0, 0, 0, where)


def fit(
    kind: str | Kind,
    states: Tensor | NDArray[Any],
    labels: Sequence[int] | NDArray[Any],
    groups: Numbers | None = None,
    *,
    topics: Numbers | None = None,
    negated: Numbers | None = None,
    setting: float | None = None,
    seed: int = 0,
    provenance: Provenance | None = None,
) -> Probe:
    """Fit one probe on states ``[n, d]`` of one layer. See :func:`make_data` for the checks and errors."""
    base = provenance if provenance is not None else Provenance()
    layer = 0 if base.layer is None else base.layer
    x = states if states.ndim == 3 else states[None]
    data = make_data(x, labels, groups, topics, layers=(layer,), negated=negated)
    return fit_rows(kind, data, layer, setting=setting, seed=seed, provenance=base)

"""Many probes of one kind at one layer, kept as stacked numbers: folds × settings × seeds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from exitlens.probes.dataset import ProbeData
from exitlens.probes.probe import LinearProbe, Probe, Provenance

__all__ = ["FittedStack", "Kind", "LinearStack"]


class FittedStack(Protocol):
    """Fitted probes ``[folds, settings, seeds]`` of one layer."""

    def predict(self, fold: int, x: Tensor) -> Tensor:
        """P(true) ``[settings, seeds, rows]`` of states ``x [rows, d]`` by the probes of one fold."""
        ...

    def probe(self, fold: int, setting: int, seed: int, provenance: Provenance) -> Probe:
        """One of them, frozen."""
        ...


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """A kind of probe: how to fit many at once, and what it needs. A kind of your own extends this.

    Attributes:
        name: As in ``--kinds``.
        settings: Values of its one hyper-parameter, tried in the inner folds (``(None,)`` when it has none).
        random: Whether the seed changes the result.
        stack: How many models are best trained side by side; one call of :meth:`fit` should get ``stack / seeds``
            layers.
        inner: How many inner folds are worth their time (None: all).
        both_polarities: Whether it can only be fitted on affirmed and negated statements together.
        notes: A warning that belongs beside its results, or ''.
    """

    name: str
    settings: tuple[float | None, ...] = (None,)
    random: bool = False
    stack: int = 1
    inner: int | None = None
    both_polarities: bool = False
    notes: str = ""

    @abstractmethod
    def fit(self, states: Tensor, data: ProbeData, trains: Sequence[Tensor], seeds: Sequence[int]) -> list[FittedStack]:
        """Fit on the rows ``trains`` (index tensors, one a fold) of ``states [layers, n, d]``: one stack a layer.

        ``data`` gives labels, groups, topics and polarity of the n rows; its own ``states`` are not read. ``seeds`` are
        for kinds that chance changes.
        """


@dataclass(frozen=True)
class LinearStack:
    """``weight [folds, k, d]``, ``bias [folds, k]``: linear probes; k counts settings, or seeds with ``per_seed``."""

    kind: str
    weight: Tensor
    bias: Tensor
    per_seed: bool = False

    def predict(self, fold: int, x: Tensor) -> Tensor:
        """P(true) ``[settings, seeds, rows]``; the axis that k does not count has length 1."""
        p = torch.sigmoid(self.weight[fold] @ x.T + self.bias[fold][:, None])
        return p[None] if self.per_seed else p[:, None]

    def probe(self, fold: int, setting: int, seed: int, provenance: Provenance) -> LinearProbe:
        """One linear probe."""
        k = seed if self.per_seed else setting
        return LinearProbe(self.kind, self.weight[fold, k].clone(), float(self.bias[fold, k]), provenance)


def mask(trains: Sequence[Tensor], n: int, dtype: torch.dtype) -> Tensor:
    """Row membership ``[folds, n]``, 1 where a row trains."""
    out = torch.zeros(len(trains), n, dtype=dtype)
    for f, rows in enumerate(trains):
        out[f, rows] = 1
    return out


def fold_grams(x: Tensor, member: Tensor) -> Tensor:
    """``X^T diag(member_f) X`` for every fold ``[folds, d, d]``.

    Rows that belong to the same folds form an atom; each atom's Gram matrix is made once and folds add them up, so
    the cost is that of one Gram matrix over all rows, however many folds there are.
    """
    patterns, atom_of = torch.unique(member.T, dim=0, return_inverse=True)
    d = x.shape[1]
    total = torch.zeros(member.shape[0], d * d, dtype=x.dtype)
    for start in range(0, len(patterns), 32):  # bounds memory: 32 d² numbers at a time
        block = patterns[start : start + 32]
        grams = torch.stack([x[atom_of == start + k].T @ x[atom_of == start + k] for k in range(len(block))])
        total.addmm_(block.T.contiguous(), grams.reshape(len(block), d * d))
    return total.reshape(-1, d, d)


def class_means(x: Tensor, y: Tensor, member: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means ``[folds, 2, d]`` and counts ``[folds, 2]`` of label 0 and 1 in each fold, and all means ``[folds, d]``."""
    split = torch.stack([member * (1 - y), member * y], 1)
    counts = split.sum(-1)
    sums = (split.reshape(-1, x.shape[0]) @ x).reshape(*counts.shape, x.shape[1])
    return sums / counts[..., None], counts, sums.sum(1) / counts.sum(1, keepdim=True)


def calibrate(scores: Tensor, y: Tensor, member: Tensor, steps: int = 25) -> tuple[Tensor, Tensor]:
    """Scale and offset ``[folds]`` of the one-dimensional logistic fit of ``y [n]`` on ``scores [folds, n]``.

    Newton's method on the rows where ``member [folds, n]`` is 1, with a weak penalty (1e-4 a row on the scale of
    standardised scores) that keeps separable scores finite.
    """
    count = member.sum(1)
    mean = (scores * member).sum(1) / count
    std = (((scores - mean[:, None]) ** 2 * member).sum(1) / count).sqrt().clamp_min(1e-12)
    z = ((scores - mean[:, None]) / std[:, None]).double()
    w, t, n = member.double(), y.double(), count.double()
    a, b = torch.zeros_like(n), torch.zeros_like(n)
    ridge = 1e-4
    for _ in range(steps):
        p = torch.sigmoid(a[:, None] * z + b[:, None])
        r, v = (p - t) * w, p * (1 - p) * w
        ga, gb = (r * z).sum(1) / n + ridge * a, r.sum(1) / n + ridge * b
        haa, hab, hbb = (v * z * z).sum(1) / n + ridge, (v * z).sum(1) / n, v.sum(1) / n + ridge
        det = haa * hbb - hab * hab
        da, db = (hbb * ga - hab * gb) / det, (haa * gb - hab * ga) / det
        # Far from the optimum a full step can overshoot; 4 units of a standardised score is already decisive.
        size = torch.maximum(da.abs(), db.abs()).clamp_min(1e-12)
        shrink = (4.0 / size).clamp_max(1.0)
        a, b = a - shrink * da, b - shrink * db
        if float(size.max()) < 1e-10:
            break
    scale = (a / std.double()).to(scores.dtype)
    return scale, (b - a * mean.double() / std.double()).to(scores.dtype)

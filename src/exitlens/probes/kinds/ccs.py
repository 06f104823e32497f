"""Contrast-consistent search (Burns et al. 2022, arXiv 2212.03827): a truth direction without labels.

A contrast pair is a statement and its negation: rows of one group with the two polarities. Loss
``mean[(p(+) - (1 - p(-)))² + min(p(+), p(-))²]`` on states centred and scaled per polarity. Unsupervised: labels are
used only to decide which way round the found direction is read. Unstable: restarts differ, and it may find any
feature that negation flips; results carry that warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.probes.dataset import ProbeData
from exitlens.probes.kinds.base import FittedStack, Kind, LinearStack
from exitlens.probes.kinds.mlp_training import Adam

__all__ = ["CCS", "contrast_pairs"]


def contrast_pairs(data: ProbeData, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of affirmed statements and of their negations, paired: same group and topic, other polarity, other label.

    Raises :class:`ProbeError` when no such pair is among ``rows``.
    """
    if data.negated is None:
        raise ProbeError("CCS needs contrast pairs, and no row says whether it is negated: give 'negated', or drop ccs")
    waiting: dict[tuple[int, int, int], list[int]] = {}
    plus: list[int] = []
    minus: list[int] = []
    for i in rows[data.negated[rows]].tolist():
        waiting.setdefault((int(data.groups[i]), int(data.topics[i]), int(data.labels[i])), []).append(i)
    for i in rows[~data.negated[rows]].tolist():
        partners = waiting.get((int(data.groups[i]), int(data.topics[i]), 1 - int(data.labels[i])), [])
        if partners:
            plus.append(i)
            minus.append(partners.pop(0))
    if not plus:
        raise ProbeError(f"no statement among {len(rows)} rows shares its group with its negation: CCS has no pairs")
    return np.array(plus), np.array(minus)


@dataclass(frozen=True, kw_only=True)
class CCS(Kind):
    """CCS with ``restarts`` random starts a seed; the one with the least loss (not the best accuracy) is kept."""

    name: str = "ccs"
    random: bool = True
    stack: int = 5
    inner: int | None = 2  # its search of an inner fold costs as much as that of an outer one
    both_polarities: bool = True
    restarts: int = 8
    epochs: int = 300
    lr: float = 0.02
    notes: str = "unsupervised and unstable: labels only choose its sign, and restarts differ"

    def fit(self, states: Tensor, data: ProbeData, trains: Sequence[Tensor], seeds: Sequence[int]) -> list[FittedStack]:
        """One stack a layer; seeds lie on the stack's seed axis."""
        return [self._fit_layer(x, data, trains, seeds) for x in states]

    def _fit_layer(self, x: Tensor, data: ProbeData, trains: Sequence[Tensor], seeds: Sequence[int]) -> FittedStack:
        weights, biases = [], []
        for rows in trains:
            plus, minus = contrast_pairs(data, rows.numpy())
            a, b = x[torch.from_numpy(plus)], x[torch.from_numpy(minus)]
            middle_a, middle_b = a.mean(0), b.mean(0)
            spread = torch.cat([a - middle_a, b - middle_b]).square().mean().sqrt().clamp_min(1e-12)
            a, b = (a - middle_a) / spread, (b - middle_b) / spread
            w, c = self._search(a, b, seeds)
            y = data.y.to(x.dtype)[torch.from_numpy(plus)]
            p = (torch.sigmoid(a @ w.T + c) + 1 - torch.sigmoid(b @ w.T + c)) / 2
            sign = torch.where(((p - 0.5) * (y - 0.5)[:, None]).sum(0) < 0, -1.0, 1.0).to(x.dtype)
            w, c = w * sign[:, None] / spread, c * sign
            # One offset serves both polarities: the states are read around the mean of the two.
            weights.append(w)
            biases.append(c - w @ ((middle_a + middle_b) / 2))
        return LinearStack(self.name, torch.stack(weights), torch.stack(biases), per_seed=True)

    def _search(self, a: Tensor, b: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        d, k = a.shape[1], self.restarts
        starts = [torch.randn(k, d, generator=torch.Generator().manual_seed(s), dtype=a.dtype) for s in seeds]
        size = len(seeds) * k
        flat = torch.cat([torch.cat(starts).flatten(), torch.zeros(size, dtype=a.dtype)])
        w, c = flat[: size * d].view(size, d), flat[size * d :]
        w /= w.norm(dim=1, keepdim=True)
        grad, adam = torch.empty_like(flat), Adam(flat)
        loss = torch.zeros(size)
        for _ in range(self.epochs):
            pa, pb = torch.sigmoid(a @ w.T + c), torch.sigmoid(b @ w.T + c)
            off, low = pa + pb - 1, torch.minimum(pa, pb)
            loss = (off.square() + low.square()).mean(0)
            first = (pa < pb).to(a.dtype)  # which of the two the minimum, and so its slope, belongs to
            da = (off + low * first) * pa * (1 - pa) * (2 / len(a))
            db = (off + low * (1 - first)) * pb * (1 - pb) * (2 / len(a))
            grad[: size * d] = (da.T @ a + db.T @ b).flatten()
            grad[size * d :] = da.sum(0) + db.sum(0)
            adam.update(flat, grad, self.lr)
        best = loss.view(len(seeds), k).argmin(1) + torch.arange(len(seeds)) * k
        return w[best], c[best]

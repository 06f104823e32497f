"""Mass-mean probes (Marks and Tegmark 2023, arXiv 2310.06824): the line between the means of true and false.

Plain: direction ``mean(true) - mean(false)``. Whitened: that, times the inverse of the within-class covariance. The
direction is the method's; its scale and offset, which the paper leaves open, are a one-dimensional logistic fit on
the training rows, so that probabilities mean something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.probes.dataset import ProbeData
from exitlens.probes.kinds.base import FittedStack, Kind, LinearStack, calibrate, class_means, fold_grams, mask

__all__ = ["MassMean", "WhitenedMassMean", "within_covariance"]


def within_covariance(x: Tensor, means: Tensor, counts: Tensor, member: Tensor) -> Tensor:
    """Covariance around each class's own mean ``[folds, d, d]`` (divided by the number of rows)."""
    pull = means * counts[..., None].sqrt()
    scatter = fold_grams(x, member).baddbmm_(pull.transpose(1, 2), pull, alpha=-1)
    return scatter.div_(counts.sum(1)[:, None, None])


@dataclass(frozen=True, kw_only=True)
class MassMean(Kind):
    """Mass-mean probe. ``ridge``: share of the mean variance added to the covariance when whitening."""

    name: str = "mass-mean"
    whiten: bool = False
    ridge: float = 1e-3

    def fit(
        self,
        states: Tensor,
        data: ProbeData,
        trains: Sequence[Tensor],
        seeds: Sequence[int],  # noqa: ARG002  # the interface of random kinds; this kind has no chance in it
    ) -> list[FittedStack]:
        """One stack a layer; ``seeds`` change nothing."""
        member = mask(trains, data.n, states.dtype)
        y = data.y.to(states.dtype)
        stacks: list[FittedStack] = []
        for layer in states:
            centre = layer.mean(0)
            # Plain needs two products with X only; a centred copy would cost more than both.
            x = layer - centre if self.whiten else layer
            means, counts, overall = class_means(x, y, member)
            direction = means[:, 1] - means[:, 0]
            if self.whiten:
                cov = within_covariance(x, means, counts, member)
                mean_variance = cov.diagonal(dim1=1, dim2=2).mean(1)
                cov.diagonal(dim1=1, dim2=2).add_(self.ridge * mean_variance[:, None] + 1e-12)
                factor = torch.linalg.cholesky(cov)
                direction = torch.cholesky_solve(direction[..., None], factor)[..., 0]
            offset = (direction * overall).sum(1, keepdim=True)
            scale, bias = calibrate(direction @ x.T - offset, y, member)
            weight = direction * scale[:, None]
            bias = bias - scale * offset[:, 0]
            if self.whiten:
                bias = bias - weight @ centre
            stacks.append(LinearStack(self.name, weight[:, None], bias[:, None]))
        return stacks


@dataclass(frozen=True, kw_only=True)
class WhitenedMassMean(MassMean):
    """Mass-mean probe with the within-class covariance divided out."""

    name: str = "mass-mean-whitened"
    whiten: bool = True

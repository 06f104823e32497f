"""Linear discriminant analysis with a shrunken covariance; the same estimator as scikit-learn's solver ``lsqr``.

``S = (1 - a) C + a tr(C)/d I`` with C the covariance within the classes; weight ``S^-1 (m1 - m0)``, intercept
``-(m1 + m0)/2 · weight + log(prior1/prior0)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.probes.dataset import ProbeData
from exitlens.probes.kinds.base import FittedStack, Kind, LinearStack, class_means, mask
from exitlens.probes.kinds.mass_mean import within_covariance

__all__ = ["LDA"]


@dataclass(frozen=True, kw_only=True)
class LDA(Kind):
    """LDA; ``settings`` are the shrinkages tried (0..1)."""

    name: str = "lda"
    settings: tuple[float | None, ...] = (0.01, 0.1, 0.5)

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
            x = layer - centre  # so that the Gram matrix does not drown the covariance in the mean
            means, counts, _ = class_means(x, y, member)
            cov = within_covariance(x, means, counts, member)
            mean_variance = cov.diagonal(dim1=1, dim2=2).mean(1)
            weights = []
            for setting in self.settings:
                a = float(setting or 0.0)
                shrunk = cov * (1 - a)
                shrunk.diagonal(dim1=1, dim2=2).add_(a * mean_variance[:, None])
                # A trace of jitter keeps a=0 solvable when a feature never varies.
                shrunk.diagonal(dim1=1, dim2=2).add_((1e-9 * mean_variance + 1e-20)[:, None])
                factor = torch.linalg.cholesky(shrunk)
                weights.append(torch.cholesky_solve((means[:, 1] - means[:, 0])[..., None], factor)[..., 0])
            weight = torch.stack(weights, 1)
            middle = means.sum(1) / 2
            prior = (counts[:, 1] / counts[:, 0]).log()
            bias = prior[:, None] - torch.einsum("fhd,fd->fh", weight, middle + centre)
            stacks.append(LinearStack(self.name, weight, bias))
        return stacks

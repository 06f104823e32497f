"""DeLTa: decoding by the trajectory of logits over layers (He et al. 2025, arXiv 2503.02343).

For each token a least-squares line through its logits of layers M..N, read off at a virtual layer L > N:
``ẑ = Σ_j w_j Z_j`` with ``w_j = 1/n + (L − x̄)(x_j − x̄) / Σ_i (x_i − x̄)²``. The scores are ``log softmax ẑ``, and the
filter keeps the tokens that are plausible under that distribution, not under the model's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exitlens.decoding.contrast.base import (
    ContrastDecoder,
    Lens,
    Scores,
    candidate_layers,
    filter_option,
    lens_option,
    option,
    plausible,
)
from exitlens.errors import LayerError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DeLTa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeLTa(ContrastDecoder):
    """Logit trajectory: a least-squares line through the logits of layers M..N, read off at a layer beyond N."""

    name: str = "delta"
    start: int | None = option(None, "first layer of the line, half the depth by default", "layer", name="from")
    at: float | None = option(None, "virtual layer beyond the last, 1.1 times the depth by default")
    relative_top: float = filter_option(0.1)
    lens: Lens = lens_option("logit")

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """Layers M..N−1; M is half the depth unless given. The virtual layer must lie beyond N."""
        if self.at is not None and not n_layers < self.at < math.inf:
            raise LayerError(f"DeLTa at={self.at} is out of range: a virtual layer beyond {n_layers}, the last one")
        start = n_layers // 2 if self.start is None else self.start
        return candidate_layers(tuple(range(start, n_layers)) or (start,), n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:
        """Log-probabilities of the virtual layer, for the tokens that are plausible there."""
        import torch

        k = early.shape[0]
        # Layers are N−k..N; distances from N keep the formula free of N itself.
        x = torch.arange(-k, 1, dtype=torch.float64)
        where = 0.1 * n_layers if self.at is None else self.at - n_layers
        centred = x - x.mean()
        w = (1.0 / (k + 1) + (where - x.mean()) * centred / centred.square().sum()).to(final.dtype)
        # One weighted sum, layer by layer: a copy of all layers in float32 would cost more than the sum.
        scores = final * w[-1]
        for weight, z in zip(w[:-1].tolist(), early, strict=True):
            scores = scores.add_(z.to(final.dtype), alpha=weight)
        # A token that no layer can emit is −inf times a negative weight somewhere: never, not always.
        log_p = scores.masked_fill_(final.isneginf(), -math.inf).log_softmax(-1)
        mask = plausible(log_p, self.relative_top)
        return Scores(log_p.masked_fill_(~mask, -math.inf), {"kept": mask.sum(-1)})

"""ACD: auto-contrastive decoding (Gera et al. 2023, arXiv 2305.01628).

Tokens with ``p ≥ α max p`` share their own mass ``Σ p`` as ``softmax(log p − log q_j)``; the others keep p.
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

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ACD"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ACD(ContrastDecoder):
    """Auto-contrastive decoding: plausible tokens share their own mass as ``softmax(log p − log q_j)``."""

    name: str = "acd"
    layer: int | None = option(None, "the early layer, three quarters of the depth by default", "layer", bare=True)
    relative_top: float = filter_option(0.1)
    lens: Lens = lens_option("logit")

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """One early layer: the given one, else three quarters of the depth."""
        return candidate_layers((round(0.75 * n_layers) if self.layer is None else self.layer,), n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002 (the protocol's)
        """Log-probabilities of the mixed distribution."""
        import torch

        log_p = final.log_softmax(-1)
        mask = plausible(log_p, self.relative_top)
        # An early −inf would make the contrast +inf, and infinities do not share a mass.
        log_q = early[0].to(final.dtype).log_softmax(-1).clamp_min_(torch.finfo(final.dtype).min / 2)
        contrast = (log_p - log_q).masked_fill_(~mask, -math.inf)
        mass = log_p.masked_fill(~mask, -math.inf).logsumexp(-1, keepdim=True)
        return Scores(torch.where(mask, contrast.log_softmax(-1) + mass, log_p), {"kept": mask.sum(-1)})

"""END: cross-layer entropy (Wu et al. 2025, arXiv 2502.03199).

``score(v) = z(v) − λ · H(softmax over early layers of Z_j(v))`` for plausible v, the others unchanged: a token whose
logit grows suddenly has a low entropy over the layers and is favoured over one that all layers give alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from exitlens.decoding.contrast.base import (
    Candidates,
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

__all__ = ["END"]


@dataclass(frozen=True, slots=True, kw_only=True)
class END(ContrastDecoder):
    """Cross-layer entropy: ``z(v) − λ·H(softmax over layers of Z_j(v))`` for plausible tokens, others unchanged.

    The softmax runs over the early layers; ``include_final`` adds the final one, which the paper does not.
    """

    name: str = "end"
    weight: float = option(1.0, "λ, the weight of the entropy")
    candidates: Candidates = option("high", "early layers", "layers", name="layers", bare=True)
    relative_top: float = filter_option(0.01)
    include_final: Literal["no", "yes"] = option(
        "no", "whether the final layer joins the softmax", "word", name="final", words=("no", "yes")
    )
    lens: Lens = lens_option("logit")

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """Even layers of the upper half, unless told otherwise."""
        return candidate_layers(self.candidates, n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002 (the protocol's)
        """Final logits less the entropy of each plausible token's growth over the layers."""
        import torch

        mask = plausible(final.log_softmax(-1), self.relative_top)
        # Only plausible tokens, mostly a few dozen, are gathered: the whole vocabulary over all layers is not touched.
        rows, tokens = mask.nonzero(as_tuple=True)
        growth = early[:, rows, tokens].to(final.dtype)
        if self.include_final == "yes":
            growth = torch.cat([growth, final[rows, tokens][None]])
        entropy = torch.special.entr(growth.softmax(0)).sum(0)
        scores = final.clone()
        scores[rows, tokens] -= self.weight * entropy
        return Scores(scores, {"kept": mask.sum(-1)})

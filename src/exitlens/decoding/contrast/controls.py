"""What a contrast is compared with: the model's own logits, one fixed layer, and a layer picked without looking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exitlens.decoding.contrast.base import (
    Candidates,
    ContrastDecoder,
    Lens,
    Scores,
    candidate_layers,
    filter_option,
    lens_option,
    option,
)
from exitlens.decoding.contrast.dola import contrast_with

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RandomLayer", "StaticLayer", "Vanilla"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanilla(ContrastDecoder):
    """The model's own logits."""

    name: str = "vanilla"

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002 (the protocol's)
        """The final logits."""
        return Scores(final)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticLayer(ContrastDecoder):
    """``log p − log q_j`` within the plausible tokens, ``j`` one fixed layer."""

    name: str = "static"
    layer: int | None = option(None, "write static:16", "layer", bare=True, required=True)
    relative_top: float = filter_option(0.1)
    lens: Lens = lens_option("raw")

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """The one layer."""
        return () if self.layer is None else candidate_layers((self.layer,), n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002 (the protocol's)
        """As DoLa with one candidate."""
        import torch

        index = torch.zeros(final.shape[0], dtype=torch.long, device=final.device)
        return contrast_with(final, final.log_softmax(-1), early, index, self.relative_top)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomLayer(ContrastDecoder):
    """``log p − log q_j`` within the plausible tokens, ``j`` a candidate picked without looking at any divergence."""

    name: str = "random"
    candidates: Candidates = option("high", "candidate layers", "layers", name="layers", bare=True)
    relative_top: float = filter_option(0.1)
    lens: Lens = lens_option("raw")

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """The candidate layers."""
        return candidate_layers(self.candidates, n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002 (the protocol's)
        """A hash of the three most probable tokens picks the layer."""
        index = _hashed(final, early.shape[0])
        return contrast_with(final, final.log_softmax(-1), early, index, self.relative_top)


def _hashed(final: Tensor, choices: int) -> Tensor:
    """A number ``[batch]`` below ``choices`` from each row's three most probable tokens.

    Only their order counts, so that rounding, which differs with the size of a batch, changes nothing.
    """
    import torch

    key = torch.zeros(final.shape[0], dtype=torch.long, device=final.device)
    for token in final.topk(min(3, final.shape[-1]), dim=-1).indices.unbind(-1):
        key = (key * 1_000_003 + token + 1) % 2_147_483_647
        key = (key * 48_271) % 2_147_483_647  # Lehmer's generator: near keys fall far apart
    return key % choices

"""A lens that must not read anything: what it finds, any direction of the residual stream would have given."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from exitlens.lenses.lens import Lens

__all__ = ["RotationLens"]


class RotationLens(Lens):
    """``transform(h, j) = Q_j h`` with a random rotation Q_j a layer: lengths stay, directions say nothing.

    ``Q_j = Q D_j P_j``: Q is drawn evenly from the orthogonal matrices (QR of a Gaussian matrix with the signs of R's
    diagonal, Mezzadri 2007, arXiv math-ph/0609050), P_j permutes channels and D_j turns signs. Each Q_j is then drawn
    evenly too, for one decomposition instead of N.

    Args:
        d_model: Width of the residual stream [channels].
        seed: Of Q.
        draw: Of every D_j and P_j. Prompts whose states are alike share the luck of one rotation; a draw for each
            prompt makes them independent.
    """

    name = "random-rotation"

    def __init__(self, d_model: int, seed: int = 0, draw: int = 0) -> None:
        self.d_model, self.seed, self.draw = d_model, seed, draw

    @property
    def identity(self) -> str:
        """Its name, width, seed and draw."""
        return f"{self.name} {self.d_model} {self.seed} {self.draw}"

    def transform(self, h: Tensor, layer: int) -> Tensor:
        """``h [..., d_model]`` at ``layer``, rotated."""
        g = torch.Generator().manual_seed(self.draw * 100_003 + layer)
        order = torch.randperm(self.d_model, generator=g).to(h.device)
        signs = (torch.randint(2, (self.d_model,), generator=g) * 2 - 1).to(h.device)
        return torch.matmul(h.float()[..., order] * signs, _rotation(self.d_model, self.seed).to(h.device).T).to(
            h.dtype
        )


@cache
def _rotation(d_model: int, seed: int) -> Tensor:
    """Q ``[d_model, d_model]`` float32."""
    g = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(d_model, d_model, generator=g, dtype=torch.float64))
    evenly: Tensor = (q * r.diagonal().sign()).float()
    return evenly

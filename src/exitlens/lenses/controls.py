"""A lens that must not read anything: what it finds, any direction of the residual stream would have given."""

from __future__ import annotations

from functools import cached_property

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
        seed: The same seed gives the same rotations.
    """

    name = "random-rotation"

    def __init__(self, d_model: int, seed: int = 0) -> None:
        self.d_model, self.seed = d_model, seed

    @property
    def identity(self) -> str:
        """Its name, width and seed."""
        return f"{self.name} {self.d_model} {self.seed}"

    @cached_property
    def rotation(self) -> Tensor:
        """Q ``[d_model, d_model]`` float32."""
        g = torch.Generator().manual_seed(self.seed)
        q, r = torch.linalg.qr(torch.randn(self.d_model, self.d_model, generator=g, dtype=torch.float64))
        evenly: Tensor = (q * r.diagonal().sign()).float()
        return evenly

    def transform(self, h: Tensor, layer: int) -> Tensor:
        """``h [..., d_model]`` at ``layer``, rotated."""
        g = torch.Generator().manual_seed((self.seed << 20) + layer + 1)
        order = torch.randperm(self.d_model, generator=g).to(h.device)
        signs = (torch.randint(2, (self.d_model,), generator=g) * 2 - 1).to(h.device)
        return torch.matmul(h.float()[..., order] * signs, self.rotation.to(h.device).T).to(h.dtype)

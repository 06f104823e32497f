"""SLED: self logits evolution decoding (Zhang et al. 2024, arXiv 2411.02433).

With T the top-k tokens of p, for every early layer j and i in T: ``c_ji = cos(q_j − onehot_i, Z_j − z)`` and
``m_ji = max(c_ji, 0)²``; layers are weighed by ``w_j = Σ_i m_ji``. One step then moves the logits on T by
``z_i ← z_i − rate · (p_i − Σ_j w_j m_ji / Σ_j w_j)``, with m normalised over i in each layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exitlens.decoding.contrast.base import (
    Candidates,
    ContrastDecoder,
    Lens,
    Scores,
    candidate_layers,
    lens_option,
    option,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SLED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SLED(ContrastDecoder):
    """Self logits evolution: the top-k logits move against the direction in which early layers still differ."""

    name: str = "sled"
    k: int = option(10, "tokens that are moved; published runs have 5 to 20", "whole", low=1)
    rate: float = option(2.0, "length of the step; published runs have 0.5 to 3", low=0.0, above=True)
    candidates: Candidates | None = option(
        None, "early layers, all of them by default", "layers", name="layers", bare=True
    )
    lens: Lens = lens_option("raw")
    floor: float = -1000.0  # of every token that is not moved, as in the published code

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """All early layers, unless a list is given."""
        if self.candidates is None:
            return tuple(range(n_layers))
        return candidate_layers(self.candidates, n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002 (the protocol's)
        """One step of the evolution on the top-k of ``p``; every other token goes to the floor."""
        import torch

        k = min(self.k, final.shape[-1])
        p = final.softmax(-1)
        top = final.topk(k, dim=-1).indices  # not of p, in which far tokens all round to 0
        top_p = p.gather(-1, top)
        m = _agreements(final, early, top)
        # w_j · (m normalised over i) = m, so the normalisation over tokens cancels with the layer's weight
        weighted = m.sum(0)
        total = weighted.sum(-1)
        shift = torch.where(total[:, None] > 0, -weighted / total.clamp_min(1e-30)[:, None], torch.zeros_like(weighted))
        moved = final.gather(-1, top) - self.rate * (top_p + shift)
        scores = torch.full_like(final, self.floor).scatter_(-1, top, moved)
        return Scores(scores, {"kept": torch.full((final.shape[0],), k, device=final.device)})


def _agreements(final: Tensor, early: Tensor, top: Tensor) -> Tensor:
    """SLED's ``m``, ``[layers, batch, k]``: ``max(cos(q_j − onehot_i, Z_j − z), 0)²`` for i in ``top``.

    Without writing the one-hot matrix out. The token of ``top`` that q likes best is summed apart, so that nothing
    cancels when q is nearly one-hot itself.
    """
    import torch

    dead = final.isneginf()
    closed = bool(dead.any())
    d, q, both = torch.empty_like(final), torch.empty_like(final), torch.empty_like(final)
    q_top, d_top, at, rest, along, squared, length = [], [], [], [], [], [], []
    for z in early:
        torch.softmax(d.copy_(z), -1, out=q)
        d.sub_(final)
        if closed:
            d.masked_fill_(dead, 0.0)  # −inf − −inf: nothing to move
        q_top.append(q.gather(-1, top))
        d_top.append(d.gather(-1, top))
        at.append(q_top[-1].argmax(-1, keepdim=True))
        q.scatter_(-1, top.gather(-1, at[-1]), 0.0)
        # Products and sums apart: a matrix product of one row with one column takes ten times as long.
        rest.append(q.sum(-1))
        along.append(torch.mul(q, d, out=both).sum(-1))
        squared.append(torch.mul(q, q, out=both).sum(-1))
        length.append(torch.linalg.vector_norm(d, dim=-1))
    qs, ds, best = torch.stack(q_top), torch.stack(d_top), torch.stack(at)
    q_best, d_best = qs.gather(-1, best), ds.gather(-1, best)
    left, dot, norm = (torch.stack(part)[..., None] for part in (rest, along, squared))
    # (q − onehot_i)·d = q·d − d_i and |q − onehot_i|² = |q|² − 2q_i + 1; for the best token 1 − q_i is the rest's sum.
    towards = (dot + q_best * d_best - ds).scatter(-1, best, dot - left * d_best)
    size = (norm + q_best * q_best - 2 * qs + 1.0).scatter(-1, best, norm + left * left)
    size = size.sqrt() * torch.stack(length)[..., None]
    cosine = torch.where(size > 0, towards / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
    return cosine.clamp(0.0, 1.0).square()

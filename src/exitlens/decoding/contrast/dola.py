"""DoLa: decoding by contrasting layers (Chuang et al. 2023, arXiv 2309.03883).

``score(v) = log p(v) − log q_j(v)`` for plausible v, j the candidate layer whose distribution is furthest from p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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

__all__ = ["DoLa", "contrast_with"]

_AT_ONCE = 200_000  # numbers of a distribution that are compared at a time
_LEAST = -650.0  # its exponential is as good as 0, but can be taken the logarithm of


@dataclass(frozen=True, slots=True, kw_only=True)
class DoLa(ContrastDecoder):
    """``log p − log q_j`` within the plausible tokens, ``j`` the candidate furthest from the final layer.

    ``choice``: ``jsd`` (the paper's Jensen–Shannon divergence) or ``reference``, what the published code computes. Its
    divergence is ``½[mean KL(m‖p) + mean KL(m‖q_j)]``. Its generation subtracts raw logits when α = 0; its scores of
    given answers are ``log p − log q_j`` with any α, and their filter acts after the softmax, if there is one. One
    candidate makes it static.
    """

    name: str = "dola"
    candidates: Candidates = option("high", "candidate layers", "layers", name="layers", bare=True)
    choice: Literal["jsd", "reference"] = option(
        "jsd", "which divergence chooses the layer", "word", words=("jsd", "reference")
    )
    relative_top: float = filter_option(0.1)
    lens: Lens = lens_option("raw")
    scoring: bool = False  # of given answers, not of the next token to write: see for_scoring

    def for_scoring(self) -> DoLa:
        """See :class:`ContrastDecoder`."""
        return replace(self, scoring=self.choice == "reference")

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """The candidate layers."""
        return candidate_layers(self.candidates, n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002
        """Contrast with the chosen candidate; ``info``: ``choice`` (index), ``divergence`` ``[batch, k]``, ``kept``."""
        import torch

        log_p = final.log_softmax(-1)
        if early.shape[0] == 1:
            index = torch.zeros(final.shape[0], dtype=torch.long, device=final.device)
            info: dict[str, Tensor] = {}
        else:
            divergence = self.divergence(log_p, early)
            index, info = divergence.argmax(-1), {"divergence": divergence}
        if self.scoring:
            found = contrast_with(final, log_p, early, index, 0.0)
            found.late_filter = plausible(log_p, self.relative_top)
        else:
            raw = self.relative_top == 0.0 and self.choice == "reference"
            found = contrast_with(final, log_p, early, index, self.relative_top, raw=raw)
        found.info |= info
        return found

    def divergence(self, log_p: Tensor, early: Tensor) -> Tensor:
        """``[batch, k]``: how far each candidate lies from the final layer, by ``choice``."""
        return _jsd(log_p, early) if self.choice == "jsd" else _reference(log_p, early)


def contrast_with(
    final: Tensor, log_p: Tensor, early: Tensor, index: Tensor, relative_top: float, *, raw: bool = False
) -> Scores:
    """``log p − log q_j`` (``raw``: ``z − Z_j``) on plausible tokens, with candidate ``index [batch]`` of each row."""
    import torch

    chosen = early[index, torch.arange(final.shape[0], device=final.device)].to(final.dtype)
    scores = final - chosen if raw else log_p - chosen.log_softmax(-1)
    # The filter comes after the choice of the layer, as published: it never changes which layer is contrasted.
    mask = plausible(log_p, relative_top)
    return Scores(scores.masked_fill_(~mask, -math.inf), {"choice": index, "kept": mask.sum(-1)})


def _jsd(log_p: Tensor, early: Tensor) -> Tensor:
    """JSD of ``p`` and ``softmax(early[j])``, float64 ``[batch, k]``, as ``H(m) − ½ H(p) − ½ H(q)``, ``m = ½(p + q)``.

    In float64 throughout: raw early layers are nearly uniform, and their divergences differ in the sixth decimal.
    """
    import torch

    device = log_p.device
    if device.type == "mps":  # it has no float64
        log_p, early = log_p.cpu(), early.cpu()
    few = max(1, _AT_ONCE // log_p.shape[-1])
    if device.type == "cpu" and len(log_p) > few:  # a few rows stay in the processor's cache: two thirds of the time
        return torch.cat([_jsd(log_p[a : a + few], early[:, a : a + few]) for a in range(0, len(log_p), few)])
    p = log_p.double().softmax(-1)
    h_p = torch.special.entr(p).sum(-1)
    # Layers one by one in two buffers: all of them in float64 at once cost more time in fresh memory than in sums, and
    # a fresh buffer a layer half as much again (measured at 8 rows of 49,152 tokens).
    x, y = torch.empty_like(p), torch.empty_like(p)
    out = []
    for z in early:
        x.copy_(z).sub_(x.amax(-1, keepdim=True)).clamp_min_(_LEAST)
        total = torch.exp(x, out=y).sum(-1)
        h_q = total.log() - x.mul_(y).sum(-1) / total  # H(q) = log Σe^x − Σ x e^x / Σe^x
        m = y.mul_((0.5 / total)[:, None]).add_(p, alpha=0.5)
        h_m = -torch.log(m, out=x).mul_(m).sum(-1)
        out.append((h_m - 0.5 * (h_p + h_q)).clamp_min_(0.0))
    found = torch.stack(out, -1)
    return found.float().to(device) if device.type == "mps" else found


def _reference(log_p: Tensor, early: Tensor) -> Tensor:
    """What DoLa's code calls JSD, ``[batch, k]``: ``½ mean_v[m (log m − log p) + m (log m − log q)]``.

    ``F.kl_div`` takes its target second, so the published arguments are swapped; its mean is over the vocabulary.
    """
    import torch

    kl, out, p = torch.nn.functional.kl_div, [], log_p.exp()
    for z in early:
        log_q = z.to(log_p.dtype).log_softmax(-1)
        m = p.add(log_q.exp()).mul_(0.5)
        # Target and input as in the published code, so that near ties fall the same way.
        value = kl(log_p, m, reduction="none").nansum(-1) + kl(log_q, m, reduction="none").nansum(-1)
        out.append(0.5 * value / log_p.shape[-1])
    return torch.stack(out, -1)

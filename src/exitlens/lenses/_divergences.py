"""Statistics of two distributions at once, over the kept logits of a block: one more pass, tile by tile."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exitlens.lenses._unembed import LogitBlock

__all__ = ["compare", "ranks"]


def compare(block: LogitBlock, names: frozenset[str], layers: int) -> dict[str, Tensor]:
    """Compare every row with its token's row in ``block.reference``; ``{name: [m] float64}`` for kl, jsd, tv.

    Rows lie layer by layer, ``layers`` × tokens. The kept logits become log-probabilities: nothing may ask for
    them afterwards. With ``p`` the reference and ``q`` the row: KL(p‖q) = Σ p (ln p − ln q),
    JSD = H(½p + ½q) − ½H(p) − ½H(q), TV = ½Σ|p − q|.
    """
    head, m = block.head, block.m
    t = m // layers
    log_total = block.total.log().to(head.dtype)[:, None]
    sums = {name: torch.zeros(m, dtype=torch.float64, device=head.device) for name in names}
    for a, b, z in block.tiles():
        z.sub_(log_total)
        shape = (layers, t, b - a)
        log_q = z.view(shape)
        log_p = z[block.reference]
        q = torch.exp(z, out=head.buffer("e", m, b - a)).view(shape)
        p = q.view(m, b - a)[block.reference].clone()
        work = head.buffer("work", *shape)
        if "kl" in names:
            sums["kl"] += torch.sub(log_p, log_q, out=work).mul_(p).sum(2).flatten()
        if "tv" in names:
            sums["tv"] += torch.sub(p, q, out=work).abs_().sum(2).flatten()
        if "jsd" in names:
            middle = torch.add(p, q, out=work).mul_(0.5)
            sums["jsd"] -= torch.xlogy(middle, middle, out=q).sum(2).flatten()
    if "tv" in names:
        sums["tv"] *= 0.5
    if "jsd" in names:
        h = entropy(block)
        h_p = h[block.reference].repeat(layers)
        sums["jsd"] = (sums["jsd"] - 0.5 * (h + h_p)).clamp_(0.0, math.log(2.0))
    for values in sums.values():
        values[block.reference] = torch.where(torch.isnan(values[block.reference]), torch.nan, 0.0)
    return sums


def entropy(block: LogitBlock) -> Tensor:
    """Entropy of every row, nats ``[m]``, from the block's sums."""
    h: Tensor = block.total.log() - block.first / block.total
    return h.clamp_(min=0.0)


def ranks(block: LogitBlock, targets: Tensor) -> Tensor:
    """How many tokens have a strictly larger logit than each of ``targets [m, k]``: ``[m, k]`` int64, 0 = the best."""
    head = block.head
    own = block.at(targets)
    counts = torch.zeros(own.shape, dtype=torch.int64, device=own.device)
    for a, b, z in block.tiles():
        larger = head.buffer("larger", block.m, b - a, dtype=torch.bool)
        for k in range(own.shape[1]):
            counts[:, k] += torch.gt(z, own[:, k, None], out=larger).sum(1)
    return counts

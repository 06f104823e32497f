"""The statistics by their definitions, on whole vocabularies: what the readout's short cuts are compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logs(scores: Tensor) -> Tensor:
    return torch.log_softmax(scores, dim=-1)


def _times(p: Tensor, values: Tensor) -> Tensor:
    return torch.where(p > 0, p * values, 0.0)  # 0 · ln 0 = 0


def entropy(scores: Tensor) -> Tensor:
    log_p = logs(scores)
    return -_times(log_p.exp(), log_p).sum(-1)


def varentropy(scores: Tensor) -> Tensor:
    log_p = logs(scores)
    return _times(log_p.exp(), (log_p + entropy(scores)[..., None]) ** 2).sum(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = logs(p), logs(q)
    return _times(log_p.exp(), log_p - log_q).sum(-1)


def jsd(p: Tensor, q: Tensor) -> Tensor:
    middle = torch.logaddexp(logs(p), logs(q)) - math.log(2)
    return 0.5 * (kl(p, middle) + kl(q, middle))


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    return 0.5 * (logs(p).exp() - logs(q).exp()).abs().sum(-1)


def rank(scores: Tensor, token: Tensor) -> Tensor:
    return (scores > scores.gather(-1, token.unsqueeze(-1))).sum(-1)


def margin(scores: Tensor) -> Tensor:
    best = logs(scores).topk(2, dim=-1).values.exp()
    return best[..., 0] - best[..., 1]


def saturation(top: Tensor) -> Tensor:
    """The smallest layer from which on every layer's top token is the last one's: ``[layers, ...]`` → ``[...]``."""
    depth = torch.arange(1, len(top) + 1).view(-1, *[1] * (top.ndim - 1))
    return ((top != top[-1]) * depth).amax(0)

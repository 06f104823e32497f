"""Statistics of next-token distributions, each defined once. Natural logarithms: entropies and divergences in nats.

Every function takes *scores* whose last axis is the vocabulary: logits, log-probabilities, or anything that differs
from them by a constant per row, because each row is normalised first with a log-sum-exp that cannot overflow
(normalising log-probabilities changes nothing). Half precision is computed in float32, float64 stays float64.
Minus infinity is probability zero, and ``0 · ln 0 = 0``. Leading axes broadcast; results drop the last axis.

Rounding may leave a divergence a hair outside its bounds; it is cut back to them, so that ``KL ≥ 0`` and
``0 ≤ JSD ≤ ln 2`` (as the dtype rounds it) hold for every result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exitlens.errors import InputError

__all__ = [
    "entropy",
    "jsd",
    "kl",
    "log_probabilities",
    "margin",
    "rank",
    "settling_depth",
    "total_variation",
    "varentropy",
]


def log_probabilities(scores: Tensor) -> Tensor:
    """``ln softmax(scores)``, same shape ``[..., vocab]``, float32 or float64.

    Raises InputError when the vocabulary axis is missing or empty.
    """
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise InputError(f"scores of shape {list(scores.shape)} have no vocabulary axis: give [..., vocab]")
    kind = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return torch.log_softmax(scores.to(kind), dim=-1)


def entropy(scores: Tensor) -> Tensor:
    """``H = −Σ p ln p`` in nats: ``[..., vocab]`` → ``[...]``, between 0 and ``ln vocab``."""
    logs = log_probabilities(scores)
    return -_times(logs.exp(), logs).sum(-1).clamp(max=0.0)


def varentropy(scores: Tensor) -> Tensor:
    """``Σ p (−ln p − H)²`` in nats²: ``[..., vocab]`` → ``[...]``; 0 for uniform and for certain distributions."""
    logs = log_probabilities(scores)
    p = logs.exp()
    h = -_times(p, logs).sum(-1, keepdim=True)
    return _times(p, (logs + h) ** 2).sum(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """``KL(p ‖ q) = Σ p (ln p − ln q)`` in nats, from scores of both: ``[..., vocab]`` → ``[...]``.

    Infinite where q gives probability zero to a token that p allows. Argument order: ``kl(p_N, p_j)`` is the tuned
    lens' loss (Belrose et al. 2023).
    """
    log_p, log_q = _pair(p, q)
    return _kl(log_p, log_q)


def jsd(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon divergence ``½ KL(p‖m) + ½ KL(q‖m)``, ``m = ½(p+q)``, in nats: ``[..., vocab]`` → ``[...]``.

    Symmetric; 0 for equal distributions, ``ln 2`` for distributions that share no token.
    """
    log_p, log_q = _pair(p, q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (0.5 * (_kl(log_p, log_m) + _kl(log_q, log_m))).clamp(max=math.log(2))


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """``½ Σ |p − q|``, between 0 and 1, from scores of both: ``[..., vocab]`` → ``[...]``."""
    log_p, log_q = _pair(p, q)
    return (0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)).clamp(max=1.0)


def rank(scores: Tensor, token: Tensor) -> Tensor:
    """How many tokens score strictly higher than ``token``: 0 is the top. int64.

    ``scores [..., vocab]``, ``token [...]`` of ids. Tied tokens share the best rank of their tie. Scores are compared
    as given, without normalising. Raises InputError for an id outside the vocabulary.
    """
    vocabulary = scores.shape[-1] if scores.ndim else 0
    outside = (token < 0) | (token >= vocabulary)
    if bool(outside.any()):
        raise InputError(f"token id {int(token[outside].flatten()[0])} is outside the vocabulary of {vocabulary}")
    own = scores.gather(-1, token.long().expand(scores.shape[:-1]).unsqueeze(-1))
    return (scores > own).sum(-1)


def margin(scores: Tensor) -> Tensor:
    """Probability of the best token minus that of the second best, between 0 and 1: ``[..., vocab]`` → ``[...]``.

    A vocabulary of one token has margin 1.
    """
    logs = log_probabilities(scores)
    if logs.shape[-1] == 1:
        return logs.exp().squeeze(-1)
    best = logs.topk(2, dim=-1).values.exp()
    return best[..., 0] - best[..., 1]


def settling_depth(top: Tensor) -> Tensor:
    """The smallest layer from which on every layer's top token is the last layer's: ``[layers, ...]`` → ``[...]``.

    ``top`` holds token ids, axis 0 the layers 0..N in order (see METHODS, "settling depth"). int64, between 0 and N.
    Raises InputError for no layers.
    """
    if top.ndim == 0 or top.shape[0] == 0:
        raise InputError("settling depth needs the top token of at least one layer: got none")
    differs = top != top[-1]
    depth = torch.arange(1, top.shape[0] + 1, device=top.device).view(-1, *[1] * (top.ndim - 1))
    return (differs * depth).amax(0)


def _pair(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    log_p, log_q = log_probabilities(p), log_probabilities(q)
    if log_p.shape[-1] != log_q.shape[-1]:
        raise InputError(f"vocabularies of {log_p.shape[-1]} and {log_q.shape[-1]} tokens cannot be compared")
    return log_p, log_q


def _times(p: Tensor, logs: Tensor) -> Tensor:
    """``p · logs`` with ``0 · anything = 0``."""
    return torch.where(p > 0, p * logs, torch.zeros((), dtype=p.dtype, device=p.device))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return _times(p, log_p - log_q).sum(-1).clamp(min=0.0)

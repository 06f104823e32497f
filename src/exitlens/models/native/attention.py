"""Attention of a few new tokens a row over what came before, heads of a group side by side, no key copied."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attend", "attend_shared", "attend_whole"]

_AT_ONCE = 1 << 23  # weights held at once


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """``q [r, heads, s, hd]`` over ``[r, kv_heads, n, hd]`` → ``[r, s, heads·hd]``.

    ``mask``: what is added to the weights, ``[r or 1, 1, heads / kv_heads · s, n]``, or None.
    """
    grouped = _grouped(q, keys.shape[1])
    mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
    return _apart(mixed, q.shape[1], q.shape[2])


def attend_whole(q: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """The same where each query sees the keys up to its own, and there are no others: half of the work is left out."""
    if (group := q.shape[1] // keys.shape[1]) > 1:
        keys, values = (t.repeat_interleave(group, dim=1) for t in (keys, values))
    mixed = F.scaled_dot_product_attention(q, keys, values, is_causal=True, scale=scaling)
    return mixed.transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)


def attend_shared(
    q: Tensor,
    shared: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
) -> Tensor:
    """The same where all rows begin with ``shared``: keys ``[kv_heads, hd, p]`` and values ``[kv_heads, p, hd]``.

    All rows' queries meet the shared keys in one product; the softmax is over both parts together. ``mask`` is for the
    rows' own keys.
    """
    r, heads, s, hd = q.shape
    early, given = shared
    kv_heads, _, p = early.shape
    most = max(1, _AT_ONCE // (heads * s * (p + keys.shape[2])))
    if r > most:
        parts = []
        for a in range(0, r, most):
            b = slice(a, a + most)
            one = mask if mask is None or mask.shape[0] == 1 else mask[b]
            parts.append(attend_shared(q[b], shared, keys[b], values[b], one, scaling))
        return torch.cat(parts)
    grouped = _grouped(q, kv_heads)
    n = grouped.shape[2]
    far = torch.matmul(grouped.transpose(0, 1).reshape(kv_heads, r * n, hd), early)
    near = torch.matmul(grouped, keys.transpose(-1, -2))
    weights = torch.cat((far.view(kv_heads, r, n, p).transpose(0, 1), near), dim=-1).mul_(scaling)
    if mask is not None:
        weights[..., p:] += mask
    weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    far = torch.matmul(weights[..., :p].transpose(0, 1).reshape(kv_heads, r * n, p), given)
    mixed = far.view(kv_heads, r, n, hd).transpose(0, 1) + torch.matmul(weights[..., p:], values)
    return _apart(mixed, heads, s)


def _grouped(q: Tensor, kv_heads: int) -> Tensor:
    """``[r, heads, s, hd]`` → ``[r, kv_heads, heads / kv_heads · s, hd]``."""
    r, heads, s, hd = q.shape
    return q.reshape(r, kv_heads, heads // kv_heads * s, hd)


def _apart(mixed: Tensor, heads: int, s: int) -> Tensor:
    """``[r, kv_heads, group · s, hd]`` → ``[r, s, heads · hd]``."""
    r, _, _, hd = mixed.shape
    if s == 1:
        return mixed.reshape(r, 1, heads * hd)
    return mixed.reshape(r, heads, s, hd).transpose(1, 2).reshape(r, s, heads * hd)

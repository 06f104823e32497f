"""The backward pass of Llama-like blocks, written out: for many cotangents of one text at once.

What a backward pass multiplies a cotangent with is the same for every row, so all of it is worked out once a text. What
is left for the rows are the products with the weights and one pass over each of their results:

- Norms: with x̂ the normed state and r its scale, the cotangent G of x̂ goes to ``r (G − x̂ ⟨x̂, G⟩ / d)``; r and the
  norm's weight go into the constants, and ⟨x̂, G⟩ is one product of the rows before the weights.
- Queries: ``Σ_s P_qs ⟨o, v_s − out_q⟩ k_s`` is linear in the cotangent o of the head, by a matrix of head_dim² for each
  query, with the rotation (and the queries' own norm) behind it.
- Keys need the softmax's own backward: it is the only thing computed for pairs of positions.

States are ``[positions, rows, width]``, the residual cotangent in float32, products in the type of :class:`Backward`.
Positions before the first valid one take no part: nothing valid flows from them. Buffers are reused: on a processor,
memory asked for anew costs more than the products that fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exitlens.compute.matmul import faster_float32, has_no_hooks, plain_linear
from exitlens.models.layered import Layered
from exitlens.models.layout.hooks import eval_mode, undisturbed
from exitlens.models.native.families import rms_parts
from exitlens.models.native.known import unknown_field

__all__ = ["Backward", "TextBackward", "backward_of"]


@dataclass(frozen=True)
class _Block:
    """A block's weights as the backward pass multiplies with them; norms' weights are in ``up`` and ``qkv`` already."""

    module: Any
    down: Tensor  # [d, f]
    up: Tensor  # gate and up, one above the other [2f, d]
    out: Tensor  # [d, heads · head_dim]
    qkv: Tensor  # [(heads + 2 kv) · head_dim, d]
    window: int | None


@dataclass(frozen=True)
class _Constants:
    """What depends on the text; n positions, all of them valid, and s keys, all of the text."""

    gate: Tensor  # what the hidden cotangent is multiplied with towards the gate [n, 1, f]
    up: Tensor  # and towards the other half
    hidden_along: Tensor  # hidden cotangent → its part along x̂ [n, f, 1]
    mid: Tensor  # x̂ of the MLP's norm [n, 1, d]
    queries: Tensor  # head's cotangent → query's before rotation [heads · n, head_dim, head_dim]
    keys: Tensor  # rotated key's cotangent → key's before it [kv · n, head_dim, head_dim]
    shares: Tensor  # P from valid queries to valid keys [kv, group · n, 1, n]
    shares_t: Tensor  # the same turned, with the key's scale r [kv, n, group · n]
    values: Tensor  # [kv, head_dim, n]
    mixed: Tensor  # what the head gave [heads · n, head_dim, 1]
    rotated: Tensor  # queries after rotation [kv, group · n, head_dim]
    qkv_along: Tensor  # cotangent of queries, keys and values → its part along x̂ [n, (heads + 2 kv) · head_dim, 1]
    x: Tensor  # x̂ of attention's norm [n, 1, d]


class Backward:
    """The weights of one model's blocks for this pass; made once, by :func:`backward_of`.

    ``product``: number type of the products.
    """

    def __init__(self, lm: Layered, product: torch.dtype) -> None:
        self.lm, self.product = lm, product
        attention: Any = lm.blocks[0].self_attn
        self.head_dim, self.scaling = int(attention.head_dim), float(attention.scaling)
        self.heads = int(attention.q_proj.out_features // self.head_dim)
        self.kv = int(attention.k_proj.out_features // self.head_dim)
        body: Any = lm.body
        self.rotary = body.rotary_emb
        self.blocks = [self._block(block) for block in lm.blocks]
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def _block(self, block: Any) -> _Block:
        a, m = block.self_attn, block.mlp
        first, second = block.input_layernorm.weight.detach(), block.post_attention_layernorm.weight.detach()
        up = torch.cat([m.gate_proj.weight.detach(), m.up_proj.weight.detach()]).float() * second.float()
        qkv = torch.cat([p.weight.detach() for p in (a.q_proj, a.k_proj, a.v_proj)]).float() * first.float()
        down, out = m.down_proj.weight.detach(), a.o_proj.weight.detach()
        window = getattr(a, "sliding_window", getattr(self.lm.config, "sliding_window", None))
        down, up, out, qkv = (w.to(self.product) for w in (down, up, out, qkv))
        return _Block(block, down, up, out, qkv, window)

    def buffer(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A reused buffer of this shape, its content undefined."""
        dtype = dtype or self.product
        count = 1
        for size in shape:
            count *= size
        have = self.buffers.get((name, dtype))
        if have is None or have.numel() < count:
            have = self.buffers[name, dtype] = torch.empty(count, dtype=dtype, device=self.lm.device)
        return have[:count].view(shape)


class TextBackward:
    """The backward pass through the blocks of one text, for positions from ``first`` to the last but one.

    ``lowest``: the lowest layer of interest.
    """

    def __init__(self, backward: Backward, ids: Sequence[int], *, first: int, lowest: int = 0) -> None:
        self.backward, self.lowest, self.first = backward, lowest, first
        lm = backward.lm
        self.n = len(ids) - 1 - first
        tokens = torch.tensor([list(ids)], device=lm.device)
        with torch.no_grad(), eval_mode(lm.model):
            hidden = lm.forward(tokens, layers=range(lowest, lm.n_layers)).hidden
            like = torch.zeros(1, 1, dtype=torch.float32, device=lm.device)
            cos, sin = backward.rotary(like, torch.arange(len(ids), device=lm.device)[None])
        self._constants = {
            j: self._of_block(backward.blocks[j], hidden[j][0].float(), cos[0].float(), sin[0].float())
            for j in range(lowest, lm.n_layers)
        }

    @torch.no_grad()
    def pull(self, cotangents: Tensor, each: Callable[[int, Tensor], None]) -> None:
        """Cotangents ``[n, rows, d]`` of layer N → ``each(layer, [n, rows, d])``, the highest layer first.

        What ``each`` is given is overwritten afterwards.
        """
        v = self.backward.buffer("v", *cotangents.shape, dtype=torch.float32).copy_(cotangents)
        with faster_float32():
            for layer in range(self.backward.lm.n_layers - 1, self.lowest - 1, -1):
                block, constants = self.backward.blocks[layer], self._constants[layer]
                self._mlp(block, constants, v)
                self._attention(block, constants, v)
                each(layer, v)

    def _mlp(self, block: _Block, c: _Constants, v: Tensor) -> None:
        own = self.backward
        n, rows, d = v.shape
        f = block.down.shape[1]
        x = own.buffer("x", n, rows, d).copy_(v)
        hidden = torch.mm(x.view(n * rows, d), block.down, out=own.buffer("wide", n * rows, f)).view(n, rows, f)
        both = own.buffer("both", n, rows, 2 * f)
        torch.mul(hidden, c.gate, out=both[..., :f])
        torch.mul(hidden, c.up, out=both[..., f:])
        self._through_norm(v, both, block.up, torch.bmm(hidden, c.hidden_along), c.mid)

    def _attention(self, block: _Block, c: _Constants, v: Tensor) -> None:
        own = self.backward
        n, rows, d = v.shape
        kv, heads, hd = own.kv, own.heads, own.head_dim
        group = heads // kv
        x = own.buffer("x", n, rows, d).copy_(v)
        flat = torch.mm(x.view(n * rows, d), block.out, out=own.buffer("flat", n * rows, heads * hd))
        o = own.buffer("o", kv, group, n, rows, hd)
        o.copy_(flat.view(n, rows, kv, group, hd).permute(2, 3, 0, 1, 4))
        joint = own.buffer("joint", n, rows, (heads + 2 * kv) * hd)
        by_head = joint.view(n, rows, heads + 2 * kv, hd)

        queries = torch.bmm(o.view(heads * n, rows, hd), c.queries, out=own.buffer("q", heads * n, rows, hd))
        by_head[:, :, :heads].copy_(queries.view(heads, n, rows, hd).permute(1, 2, 0, 3))

        values = torch.bmm(c.shares_t, o.view(kv, group * n, rows * hd), out=own.buffer("k", kv, n, rows * hd))
        by_head[:, :, heads + kv :].copy_(values.view(kv, n, rows, hd).permute(1, 2, 0, 3))

        # The softmax's backward, P (⟨o, v⟩ − ⟨o, out⟩), and from it the keys' cotangents.
        pairs = torch.bmm(o.view(kv, group * n * rows, hd), c.values, out=own.buffer("p", kv, group * n * rows, n))
        pairs = pairs.view(kv, group * n, rows, n)
        along = torch.bmm(o.view(heads * n, rows, hd), c.mixed, out=own.buffer("a", heads * n, rows, 1))
        pairs.sub_(along.view(kv, group * n, rows, 1)).mul_(c.shares)
        turned = pairs.view(kv, group * n, rows * n).transpose(1, 2)
        keys = torch.bmm(turned, c.rotated, out=own.buffer("k", kv, rows * n, hd)).view(kv, rows, n, hd)
        keys = own.buffer("k2", kv, n, rows, hd).copy_(keys.transpose(1, 2)).view(kv * n, rows, hd)
        keys = torch.bmm(keys, c.keys, out=own.buffer("k", kv * n, rows, hd))
        by_head[:, :, heads : heads + kv].copy_(keys.view(kv, n, rows, hd).permute(1, 2, 0, 3))
        self._through_norm(v, joint, block.qkv, torch.bmm(joint, c.qkv_along), c.x)

    def _through_norm(self, v: Tensor, rows: Tensor, weight: Tensor, along: Tensor, x: Tensor) -> None:
        """``v += rows · weight − along x̂``."""
        n, r, d = v.shape
        out = torch.mm(rows.view(n * r, -1), weight, out=self.backward.buffer("narrow", n * r, d))
        v.add_(out.view(n, r, d))
        v.baddbmm_(along.float(), x, alpha=-1.0)

    # ---- once a text

    @torch.no_grad()
    def _of_block(self, block: _Block, h: Tensor, cos: Tensor, sin: Tensor) -> _Constants:
        """Constants of one block from the stream that enters it ``[T, d]`` and the rotary table ``[T, head_dim]``."""
        own, product = self.backward, self.backward.product
        module, d, t = block.module, h.shape[1], len(h)
        kv, heads, hd = own.kv, own.heads, own.head_dim
        valid = slice(self.first, t - 1)
        n, group = self.n, heads // kv
        a = module.self_attn
        x, r = _normed(h, module.input_layernorm)
        x_w = x * module.input_layernorm.weight.float()
        q, k, v = (_linear(x_w, p).view(t, -1, hd).transpose(0, 1) for p in (a.q_proj, a.k_proj, a.v_proj))
        (q_turned, q_map), (k_turned, k_map) = (
            _turned(part, cos, sin, getattr(a, name, None)) for part, name in ((q, "q_norm"), (k, "k_norm"))
        )
        k_all, v_all = (part.repeat_interleave(group, 0) for part in (k_turned, v))
        weights = own.scaling * q_turned @ k_all.transpose(1, 2)
        at = torch.arange(t, device=h.device)
        hidden = at[None] > at[:, None]
        if block.window is not None:
            hidden = hidden | (at[None] <= at[:, None] - block.window)
        p = torch.softmax(weights.masked_fill(hidden, -torch.inf), -1)
        mixed = p @ v_all
        after = h + _linear(mixed.transpose(0, 1).reshape(t, heads * hd), a.o_proj)

        # Σ_s P_qs (v_s − out_q) k_sᵀ, then the rotation's adjoint and the norm's scale at the query.
        pairs = (v_all[..., None] * k_all[:, :, None]).flatten(2)
        queries = (p[:, valid] @ pairs).view(heads, n, hd, hd)
        queries -= mixed[:, valid, :, None] * (p[:, valid] @ k_all)[:, :, None]
        r_valid = r[valid]
        queries = own.scaling * (queries @ q_map[:, valid]) * r_valid[None, :, None, None]
        keys = own.scaling * k_map[:, valid].expand(kv, n, hd, hd) * r_valid[None, :, None, None]
        shares = p[:, valid, valid].reshape(kv, group * n, n)
        x_v = x[valid]
        qkv_along = (x_v @ block.qkv.float().T) / d

        z, r_mid = _normed(after, module.post_attention_layernorm)
        z, r_mid = z[valid], r_mid[valid]
        z_w = z * module.post_attention_layernorm.weight.float()
        gate, up = _linear(z_w, module.mlp.gate_proj), _linear(z_w, module.mlp.up_proj)
        with torch.enable_grad():
            leaf = gate.clone().requires_grad_()
            acted = module.mlp.act_fn(leaf)
            (slope,) = torch.autograd.grad(acted.sum(), leaf)
        to_gate, to_up = slope * up, acted.detach()
        f = gate.shape[1]
        along = z @ block.up.float().T
        hidden_along = r_mid[:, None] * (to_gate * along[:, :f] + to_up * along[:, f:]) / d
        return _Constants(
            gate=(to_gate * r_mid[:, None]).to(product)[:, None],
            up=(to_up * r_mid[:, None]).to(product)[:, None],
            hidden_along=hidden_along.to(product)[:, :, None],
            mid=z[:, None].contiguous(),
            queries=queries.reshape(heads * n, hd, hd).to(product),
            keys=keys.reshape(kv * n, hd, hd).to(product),
            shares=shares[:, :, None].to(product),
            shares_t=(shares.transpose(1, 2) * r_valid[None, :, None]).to(product),
            values=v[:, valid].transpose(1, 2).to(product).contiguous(),
            mixed=mixed[:, valid].reshape(heads * n, hd, 1).to(product),
            rotated=q_turned[:, valid].reshape(kv, group * n, hd).to(product),
            qkv_along=qkv_along.to(product)[:, :, None],
            x=x_v[:, None].contiguous(),
        )


def backward_of(lm: Layered, product: torch.dtype) -> Backward | None:
    """The pass for ``lm``, or None when its blocks are no plain Llama-like ones; to be compared before it is used."""
    try:
        with undisturbed(lm.model):  # the hooks of a pass in another thread are none of the model's
            if unknown_field(lm.config) is not None or not all(_plain(block) for block in lm.blocks):
                return None
            return Backward(lm, product)
    except (AttributeError, TypeError, KeyError, ValueError):
        return None


def _plain(block: Any) -> bool:
    a, m = block.self_attn, block.mlp
    linear = (a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj)
    norms = [block.input_layernorm, block.post_attention_layernorm]
    norms += [getattr(a, name) for name in ("q_norm", "k_norm") if getattr(a, name, None) is not None]
    own = all(has_no_hooks(part) for part in (block, a, m, m.act_fn))
    return own and all(plain_linear(p) for p in linear) and all(rms_parts(norm) is not None for norm in norms)


def _normed(h: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """``x̂ [..., d]`` before the norm's weight, and its scale r ``[...]``."""
    r = torch.rsqrt(h.pow(2).mean(-1) + norm.variance_epsilon)
    return h * r[..., None], r


def _linear(x: Tensor, module: Any) -> Tensor:
    bias = None if module.bias is None else module.bias.detach().float()
    return F.linear(x, module.weight.detach().float(), bias)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of the first ``cos.shape[-1]`` channels of ``[..., T, head_dim]``."""
    size = cos.shape[-1]
    turn, rest = x[..., :size], x[..., size:]
    half = torch.cat((-turn[..., size // 2 :], turn[..., : size // 2]), -1)
    return torch.cat((turn * cos + half * sin, rest), -1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Queries or keys ``[heads, T, head_dim]``, normed where the model does, and rotated; and the map of cotangents
    back ``[heads or 1, T, head_dim, head_dim]``, for rows: ``cotangent @ map``.
    """
    d = x.shape[-1]
    eye = torch.eye(d, device=x.device)
    # A rotation's columns are what it makes of the unit vectors.
    back = _rotated(eye[:, None].expand(d, len(cos), d), cos, sin).permute(1, 2, 0)[None]
    if norm is None:
        return _rotated(x, cos, sin), back
    unit, r = _normed(x, norm)
    weight = norm.weight.detach().float()
    slope = weight[:, None] * r[..., None, None] * (eye - unit[..., :, None] * unit[..., None, :] / d)
    return _rotated(unit * weight, cos, sin), back @ slope

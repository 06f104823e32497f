"""The three kinds of block that can be run apart, each read off the model's own modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exitlens.compute.matmul import has_no_hooks, joint, linear, plain_linear
from exitlens.compute.prepacked import packed
from exitlens.models.layered import Layered

__all__ = ["Family", "family_of", "norm_of", "one_product", "rms_parts", "small_enough"]

# Above so many parameters the copies of the weights would cost more memory than their speed is worth.
_FUSE_LIMIT = 1_000_000_000
_MANY = 512  # tokens

Qkv = tuple[Tensor, Tensor, Tensor]


class Family(Protocol):
    """What :class:`~exitlens.models.native.runner.Runner` needs of a family; block indices run from 0."""

    kv_heads: int
    head_dim: int
    scaling: float
    parallel: bool  # attention and MLP both read the block's input

    @property
    def rotary(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """Cosines and sines of positions, or None where positions enter otherwise."""
        ...

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Token ids and positions → layer 0."""
        ...

    def project(self, j: int, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Qkv:
        """Queries, keys and values, each ``[rows, heads, width, head_dim]``, rotated."""
        ...

    def finish(self, j: int, x: Tensor, mixed: Tensor | None, mlp: bool = True) -> Tensor:
        """The block's output from its input and the heads' mixed values (None: attention skipped)."""
        ...

    def window(self, j: int) -> int | None:
        """How many positions back block ``j`` sees, or None for all."""
        ...


def family_of(lm: Layered) -> Family | None:
    """The family of ``lm``'s blocks, or None when it is not one of these (or its modules were replaced)."""
    block: Any = lm.blocks[0]  # what a family's block holds is known by name only

    def has(*names: str) -> bool:
        return all(hasattr(block, name) for name in names)

    try:
        if has("input_layernorm", "self_attn", "post_attention_layernorm", "mlp") and hasattr(block.mlp, "gate_proj"):
            return LlamaLike(lm)
        if has("ln_1", "attn", "ln_2", "mlp") and hasattr(block.attn, "c_attn"):
            return GPT2Like(lm)
        if has("input_layernorm", "attention", "post_attention_layernorm", "mlp"):
            return NeoXLike(lm)
    except (AttributeError, TypeError, KeyError, ValueError):
        return None
    return None


def small_enough(lm: Layered) -> bool:
    """Whether the weights may be held a second time, laid out for decoding."""
    return bool(sum(p.numel() for p in lm.model.parameters()) < _FUSE_LIMIT)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first ``cos.shape[-1]`` channels of ``[rows, width, heads, head_dim]``.

    The halves change places with one of them negative; that sign is in ``sin`` already.
    """
    n = cos.shape[-1]
    turned = x if n == x.shape[-1] else x[..., :n]
    turned = torch.addcmul(turned * cos, torch.roll(turned, n // 2, -1), sin)
    return turned if n == x.shape[-1] else torch.cat((turned, x[..., n:]), dim=-1)


def _fused(parts: Sequence[nn.Module], small: bool) -> Callable[[Tensor], Tensor]:
    """Several projections of one input as one product (left separate for large, quantised or adapted models)."""
    if not small or not all(plain_linear(p) for p in parts):
        return lambda x: torch.cat([p(x) for p in parts], dim=-1)
    weights: list[Tensor] = [p.weight.detach() for p in parts]  # type: ignore[operator]
    given: list[Tensor | None] = [p.bias for p in parts]  # type: ignore[misc]
    biases = [b.detach() for b in given if b is not None]
    if len(biases) not in (0, len(parts)):
        return lambda x: torch.cat([p(x) for p in parts], dim=-1)
    found = packed(torch.cat(weights), torch.cat(biases) if biases else None)
    return found or joint([(w, biases[i] if biases else None) for i, w in enumerate(weights)])


def one_product(module: nn.Module, small: bool) -> Callable[[Tensor], Tensor]:
    """One projection: laid out for few rows, else in the faster order, where it is a plain one."""
    if type(module).__name__ == "Conv1D" and has_no_hooks(module):  # GPT-2's: a linear map, its weight [d, v]
        found = packed(module.weight.t().contiguous(), module.bias) if small else None  # type: ignore[operator, arg-type]
        return found or module
    if not isinstance(module, nn.Linear) or not plain_linear(module):
        return module
    given: Tensor | None = module.bias
    weight, bias = module.weight.detach(), None if given is None else given.detach()
    found = packed(weight, bias) if small else None
    return found or (lambda x: linear(x, weight, bias))


def rms_parts(module: nn.Module) -> tuple[Tensor, float] | None:
    """Weight and epsilon of an RMS norm of plain form, ``x / rms(x) · weight``; None for any other module."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", None)
    plain = type(module).__name__ in ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
    if not plain or eps is None or not isinstance(weight, Tensor) or not has_no_hooks(module):
        return None
    return weight.detach(), float(eps)


def norm_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """RMS norms of plain form in one kernel; in half precision their rounding before the weight is kept."""
    parts = rms_parts(module)
    if parts is None:
        return module
    (own, eps), size = parts, parts[0].shape
    if own.dtype == torch.float32:
        return lambda x: F.rms_norm(x, size, own, eps)
    return lambda x: own * F.rms_norm(x.float(), size, None, eps).to(x.dtype)


class LlamaLike:
    """Llama, Mistral, Qwen2, Qwen3 and whoever shares their block."""

    parallel = False

    def __init__(self, lm: Layered) -> None:
        body: Any = lm.body
        blocks: Sequence[Any] = lm.blocks
        self._embedding = lm.embed
        self._act = blocks[0].mlp.act_fn
        attention = blocks[0].self_attn
        self.head_dim = int(attention.head_dim)
        self.scaling = float(attention.scaling)
        self.rotary = body.rotary_emb
        if getattr(body.rotary_emb, "rope_type", "default") not in ("default", "linear", "llama3", "yarn"):
            raise ValueError("this rotary embedding depends on the length of the text")
        small = small_enough(lm)
        self._qkv, self._out, self._up, self._down = [], [], [], []
        self._norm2, self._qk_norm, self._windows = [], [], []
        apart: list[tuple[nn.Module, nn.Module]] = []
        self.norms: list[Callable[[Tensor], Tensor]] = []  # of attention
        for block in blocks:
            a, m = block.self_attn, block.mlp
            self._qkv.append(_fused([a.q_proj, a.k_proj, a.v_proj], small))
            self._out.append(one_product(a.o_proj, small))
            self._up.append(_fused([m.gate_proj, m.up_proj], small))
            apart.append((m.gate_proj, m.up_proj))
            self._down.append(one_product(m.down_proj, small))
            self.norms.append(norm_of(block.input_layernorm))
            self._norm2.append(norm_of(block.post_attention_layernorm))
            q_norm = getattr(a, "q_norm", None)
            self._qk_norm.append(None if q_norm is None else (norm_of(q_norm), norm_of(a.k_norm)))
            self._windows.append(getattr(a, "sliding_window", getattr(lm.config, "sliding_window", None)))
        # In float32 what one product gives of many tokens is so large that the system clears its memory at each call.
        self._apart = apart if lm.dtype == torch.float32 and lm.device.type == "cpu" else None
        kv = attention.k_proj.out_features // self.head_dim
        self.kv_heads, self._heads = int(kv), int(attention.q_proj.out_features // self.head_dim)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002 (the protocol's arguments)
        """Token embeddings; positions enter through the rotation."""
        return self._embedding(ids)  # type: ignore[no-any-return]

    def project(self, j: int, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Qkv:
        """See :class:`Family`."""
        r, s, _ = x.shape
        heads, kv = self._heads, self.kv_heads
        all_heads = self._qkv[j](self.norms[j](x)).view(r, s, heads + 2 * kv, self.head_dim)
        norms = self._qk_norm[j]
        if norms is None:
            turn = all_heads[:, :, : heads + kv]
        else:
            turn = torch.cat([norms[0](all_heads[:, :, :heads]), norms[1](all_heads[:, :, heads : heads + kv])], dim=2)
        if cos is not None and sin is not None:
            turn = _rotate(turn, cos, sin)
        v = all_heads[:, :, heads + kv :].transpose(1, 2)
        return turn[:, :, :heads].transpose(1, 2), turn[:, :, heads:].transpose(1, 2), v

    def finish(self, j: int, x: Tensor, mixed: Tensor | None, mlp: bool = True) -> Tensor:
        """See :class:`Family`."""
        if mixed is not None:
            x = x + self._out[j](mixed)
        if not mlp:
            return x
        normed = self._norm2[j](x)
        if self._apart is not None and x.shape[0] * x.shape[1] >= _MANY:
            gate, up = (product(normed) for product in self._apart[j])
        else:
            gate, up = self._up[j](normed).chunk(2, dim=-1)
        return x + self._down[j](self._act(gate) * up)

    def window(self, j: int) -> int | None:
        """See :class:`Family`."""
        return self._windows[j]


class GPT2Like:
    """GPT-2 and whoever shares its block: learned positions, one fused projection, layer norms."""

    rotary = None
    parallel = False

    def __init__(self, lm: Layered) -> None:
        body: Any = lm.body
        blocks: Sequence[Any] = lm.blocks
        self._tokens, self._positions = body.wte, body.wpe
        self._blocks = blocks
        attention = blocks[0].attn
        self.head_dim = int(attention.head_dim)
        self.kv_heads = int(attention.num_heads)
        self.scaling = self.head_dim**-0.5 if attention.scale_attn_weights else 1.0
        if attention.scale_attn_by_inverse_layer_idx:
            raise ValueError("attention scaled by layer is not run here")
        small = small_enough(lm)
        self._qkv = [one_product(block.attn.c_attn, small) for block in blocks]
        self._out = [one_product(block.attn.c_proj, small) for block in blocks]
        self._up = [one_product(block.mlp.c_fc, small) for block in blocks]
        self._down = [one_product(block.mlp.c_proj, small) for block in blocks]

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Token plus position embeddings."""
        return self._tokens(ids) + self._positions(positions)  # type: ignore[no-any-return]

    def project(self, j: int, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Qkv:  # noqa: ARG002
        """See :class:`Family`."""
        r, s, d = x.shape
        block = self._blocks[j]
        q, k, v = self._qkv[j](block.ln_1(x)).view(r, s, 3, self.kv_heads, d // self.kv_heads).unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def finish(self, j: int, x: Tensor, mixed: Tensor | None, mlp: bool = True) -> Tensor:
        """See :class:`Family`."""
        block = self._blocks[j]
        if mixed is not None:
            x = x + self._out[j](mixed)
        return x + self._down[j](block.mlp.act(self._up[j](block.ln_2(x)))) if mlp else x

    def window(self, j: int) -> int | None:  # noqa: ARG002
        """All positions."""
        return None


class NeoXLike:
    """GPT-NeoX and Pythia: a partial rotation, heads interleaved in one projection, parallel residual."""

    def __init__(self, lm: Layered) -> None:
        body: Any = lm.body
        blocks: Sequence[Any] = lm.blocks
        self._tokens = lm.embed
        self._blocks = blocks
        attention = blocks[0].attention
        self.head_dim = int(attention.head_size)
        self.kv_heads = int(attention.query_key_value.out_features // (3 * self.head_dim))
        self.scaling = float(attention.scaling)
        self.parallel = bool(blocks[0].use_parallel_residual)
        small = small_enough(lm)
        self._qkv = [one_product(block.attention.query_key_value, small) for block in blocks]
        self._out = [one_product(block.attention.dense, small) for block in blocks]
        self._up = [one_product(block.mlp.dense_h_to_4h, small) for block in blocks]
        self._down = [one_product(block.mlp.dense_4h_to_h, small) for block in blocks]
        self.rotary = body.rotary_emb
        if getattr(body.rotary_emb, "rope_type", "default") not in ("default", "linear", "llama3", "yarn"):
            raise ValueError("this rotary embedding depends on the length of the text")

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        """Token embeddings."""
        return self._tokens(ids)  # type: ignore[no-any-return]

    def project(self, j: int, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Qkv:
        """See :class:`Family`."""
        r, s, _ = x.shape
        block = self._blocks[j]
        joint = self._qkv[j](block.input_layernorm(x)).view(r, s, self.kv_heads, 3 * self.head_dim)
        q, k, v = joint.chunk(3, dim=-1)
        if cos is not None and sin is not None:
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def finish(self, j: int, x: Tensor, mixed: Tensor | None, mlp: bool = True) -> Tensor:
        """See :class:`Family`."""
        block = self._blocks[j]
        after = x if mixed is None else x + self._out[j](mixed)
        if not mlp:
            return after
        # A parallel block's MLP reads the block's input, a serial one's what attention made of it.
        up = self._up[j](block.post_attention_layernorm(x if self.parallel else after))
        return after + self._down[j](block.mlp.act(up))

    def window(self, j: int) -> int | None:  # noqa: ARG002
        """All positions."""
        return None

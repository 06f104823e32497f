"""What is measured once when a model is taken in: is its readout right, and what may be done to its rows?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from exitlens.errors import ParityError, UnsupportedModel
from exitlens.models.layout.hooks import eval_mode, undisturbed
from exitlens.models.protocol import Parity, Pass

__all__ = [
    "CacheKind", "cache_kind", "check_causal", "check_parity", "gap_is_exact", "mask_of_text", "pads_exactly",
    "position_offset", "takes_masks",
]  # fmt: skip

CacheKind = Literal["own", "steps", "runs again"]

# What a model that cannot do something raises from deep inside.
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)  # of any kind

# Attention whose window is counted in positions, not in real tokens: a gap of padding moves tokens out of it.
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size", "local_attention", "window_size",
            "attention_window_size", "index_topk", "keep_window_size")  # fmt: skip
# Attention over blocks of positions, whose borders padding moves.
_BLOCKWISE = ("chunk", "compress", "index", "block", "lsh")
# Those of them that were measured past their borders and budgets, with texts of six lengths side by side: they count a
# row's own tokens, so that padding changes nothing (tests/parity/test_padding.py).
_COUNTS_OWN_TOKENS = frozenset(
    ["axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4", "llama4_text", "qwen4_exp_text"]
)
_BLOCK_SIZES = ("index_block_size", "attention_chunk_size", "lsh_attn_chunk_length")


class Checkable(Protocol):
    """What the checks use of a model. Nothing here is itself measured, so that asking for it measures nothing."""

    name: str
    model: nn.Module
    config: Any
    n_layers: int
    vocab_size: int
    context: int | None
    dtype: torch.dtype
    accepts: frozenset[str]
    offset: int | None
    takes_masks: bool
    length_ropes: tuple[nn.Module, ...]  # rotary tables that depend on the longest text of a pass
    infers_padding: bool | None  # measured when a text first holds the padding token
    cache_trial: CacheKind | None  # the use of the cache that is being tried

    def run_whole(self, ids: Tensor) -> Any:
        """One plain pass of the object that was handed over."""
        ...

    def logits(self, h: Tensor, layer: int) -> Tensor:
        """See :meth:`LayeredModel.logits <exitlens.models.protocol.LayeredModel.logits>`."""
        ...

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        layers: Sequence[int] | Literal["all"] = (),
        cache: Any = None,
        use_cache: bool = False,
    ) -> Pass:
        """See :meth:`LayeredModel.forward <exitlens.models.protocol.LayeredModel.forward>`."""
        ...


def own_logits(lm: Checkable, ids: Tensor) -> Tensor:
    """The logits that the model, as it was handed over, gives without our help."""
    with eval_mode(lm.model):
        out = lm.run_whole(ids)
    return out.logits if hasattr(out, "logits") else out[0]  # type: ignore[no-any-return]


def tolerance(lm: Checkable, scale: float) -> float:
    """Largest difference that rounding explains, for values of size ``scale``."""
    return (5e-2 if lm.dtype in (torch.bfloat16, torch.float16) else 1e-4) * max(1.0, scale)


def same(lm: Checkable, a: Tensor, b: Tensor) -> bool:
    """Equal to rounding, for hidden states that took different ways through the same sums."""
    return bool((a.float() - b.float()).abs().max() <= tolerance(lm, float(b.float().abs().max())))


def alike(lm: Checkable, a: Tensor, b: Tensor) -> bool:
    """As :func:`same`, but in half precision only on the whole: rounding may send a token to another expert."""
    if lm.dtype not in (torch.bfloat16, torch.float16):
        return same(lm, a, b)
    return bool((a.float() - b.float()).abs().mean() <= 0.15 * b.float().abs().mean())


def check_parity(lm: Checkable, ids: Tensor, bare: dict[int, Tensor]) -> Parity:
    """Raises :class:`ParityError` unless layer N reads as the model's own logits, on whole rows and on loose positions.

    ``ids``: ``[rows, seq]``; ``bare[j]``: the hidden states of a plain pass over them.
    """
    want = own_logits(lm, ids).float()
    if not torch.isfinite(want).all():
        raise ParityError(f"{lm.name}: its own logits are not finite on a short text: the weights are damaged")
    n = lm.n_layers
    got = lm.logits(bare[n], n).float()
    half = lm.dtype in (torch.bfloat16, torch.float16)
    bound = (3e-2 if half else 2e-5) * max(1.0, float(want.abs().max()))
    want = want.to(got.device)  # of a model spread over devices they came back to where its tokens are
    worst = float((got - want).abs().max()) if got.shape == want.shape else float("inf")
    # Single positions, out of order: what lies after the last block must act on each position alone.
    loose = torch.arange(ids.shape[1] - 1, -1, -2, device=want.device)
    apart = lm.logits(bare[n][-1, loose.to(bare[n].device)], n).float()
    worst = max(worst, float((apart.to(want.device) - want[-1, loose]).abs().max()))
    if not worst <= bound:
        raise ParityError(
            f"{lm.name}: the readout at layer {n} differs from the model's logits by {worst:.3g} "
            f"(allowed {bound:.3g}): it is not read, since every layer would be wrong"
        )
    return Parity(worst, bound, int(ids.numel()))


def check_causal(lm: Checkable, ids: Tensor, bare: dict[int, Tensor], again: dict[int, Tensor]) -> None:
    """Raises :class:`UnsupportedModel` when an earlier position sees a later token, or a row another row."""
    n = lm.n_layers
    if not alike(lm, again[n], bare[n]):
        raise UnsupportedModel(f"{lm.name}: two passes over the same tokens differ, so no number can be relied on")
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % lm.vocab_size
    changed = lm.forward(other, layers=(n,)).hidden[n]
    if not alike(lm, changed[:, :-1], bare[n][:, :-1]):
        raise UnsupportedModel(
            f"{lm.name}: earlier positions see later tokens, so it is not a causal LM as configured "
            "(BERT-like models: set is_decoder=True in its config; XLNet: attn_type='uni'; XLM: causal=True)"
        )
    row = lm.forward(ids[-1:], layers=(n,)).hidden[n]
    if not alike(lm, row[0], bare[n][-1]):
        raise UnsupportedModel(f"{lm.name}: a row's numbers depend on the other rows of its batch")


def position_offset(lm: Checkable, ids: Tensor, bare: dict[int, Tensor]) -> int | None:
    """What the model calls the first position (2 in RoBERTa's variants), or None when positions cannot be given."""
    if "position_ids" not in lm.accepts:
        return None
    n = lm.n_layers
    mask = torch.ones_like(ids)
    padding = getattr(lm.config, "pad_token_id", None)
    candidates = dict.fromkeys([0, padding + 1 if isinstance(padding, int) else 0, 1, 2])
    for offset in candidates:
        lm.offset = offset
        try:
            if same(lm, lm.forward(ids, mask, layers=(n,)).hidden[n], bare[n]):
                return offset
        except FAILURES:
            pass
        finally:
            lm.offset = None
    return None


def takes_masks(lm: Checkable, ids: Tensor, bare: dict[int, Tensor]) -> bool:
    """False when the model cannot run with a mask. :class:`UnsupportedModel` when one of ones changes a number."""
    if lm.offset is not None:
        return True  # measured with a mask of ones
    n = lm.n_layers
    try:
        masked = lm.forward(ids, torch.ones_like(ids), layers=(n,)).hidden[n]
    except FAILURES:
        return False
    if not same(lm, masked, bare[n]):
        raise UnsupportedModel(f"{lm.name}: an attention mask of ones changes its numbers")
    return True


def mask_of_text(lm: Checkable, ids: Tensor, cache: Any) -> Tensor | None:
    """A mask of ones over past and new positions where the model, without one, takes a token of the text for padding.

    XLM and RoBERTa's kind do: what they say of a text would depend on whether a mask happens to be given.
    """
    pad = getattr(lm.config, "pad_token_id", None)
    if lm.infers_padding is False or not lm.takes_masks or not isinstance(pad, int) or not bool((ids == pad).any()):
        return None
    if lm.infers_padding is None:
        lm.infers_padding = False  # while it is measured
        n, rows = lm.n_layers, ids[:1]
        bare = lm.forward(rows, layers=(n,)).hidden[n]
        lm.infers_padding = not same(lm, lm.forward(rows, torch.ones_like(rows), layers=(n,)).hidden[n], bare)
    if not lm.infers_padding:
        return None
    return torch.ones(ids.shape[0], ids.shape[1] + (0 if cache is None else cache.get_seq_length())).to(ids)


def cache_kind(lm: Checkable, ids: Tensor, bare: dict[int, Tensor]) -> CacheKind:
    """Which use of the model's cache gives the numbers of one pass; "runs again" when none does."""
    if lm.length_ropes:
        return "runs again"  # keys of a cache begun under another table would be turned by other angles
    kinds: tuple[CacheKind, ...] = ("own", "steps")
    with undisturbed(lm.model):
        try:
            for kind in kinds:
                lm.cache_trial = kind
                if _cache_works(lm, ids, bare):
                    return kind
        finally:
            lm.cache_trial = None
    return "runs again"


def _cache_works(lm: Checkable, ids: Tensor, bare: dict[int, Tensor]) -> bool:
    """True when a text in pieces, and a prefix shared by several rows, give the numbers of one pass.

    Three rows begin alike; they go on in one piece, then a token at a time, with one row dropped on the way.
    """
    n, device = lm.n_layers, ids.device
    cut = ids.shape[1]
    text = torch.cat([ids[:1].expand(3, -1), ids, ids.flip(0)], dim=1)
    if lm.context is not None and text.shape[1] > lm.context:
        return False
    try:
        want = lm.forward(text, layers=(n,)).hidden[n]
        first = lm.forward(ids[:1], layers=(n,), use_cache=True)
        if not same(lm, first.hidden[n], bare[n][:1]) or not same(lm, first.hidden[n][0], want[0, :cut]):
            return False
        first.cache.batch_repeat_interleave(3)
        step = lm.forward(text[:, cut : 2 * cut], None, layers=(n,), cache=first.cache)
        if not same(lm, step.hidden[n], want[:, cut : 2 * cut]):
            return False
        keep = torch.tensor([0, 2])  # on the CPU, where it fits a cache of every device
        step.cache.batch_select_indices(keep)
        for at in range(2 * cut, 2 * cut + 3):
            mask = torch.ones(2, at + 1, dtype=torch.long, device=device)
            step = lm.forward(text[keep, at : at + 1], mask, layers=(n,), cache=step.cache)
            if not same(lm, step.hidden[n][:, 0], want[keep, at]):
                return False
        return True
    except FAILURES:
        return False


def pads_exactly(lm: Checkable, ids: Tensor, bare: dict[int, Tensor]) -> bool:
    """True when padding, left or right, changes nothing at real positions, at any layer's output."""
    if lm.length_ropes or not lm.takes_masks:
        return False
    if str(getattr(lm.config, "model_type", "")) not in _COUNTS_OWN_TOKENS and (
        any(word in kind for kind in _kinds(lm.config) for word in _BLOCKWISE)
        or any(isinstance(getattr(lm.config, name, None), int) for name in _BLOCK_SIZES)
    ):
        return False  # longer texts than the one measured on would tell
    return all(_padding_exact(lm, ids, bare, side) for side in ("left", "right"))


def _padding_exact(lm: Checkable, ids: Tensor, bare: dict[int, Tensor], side: str) -> bool:
    seq = ids.shape[1]
    cut = seq - 2
    spot = slice(2, seq) if side == "left" else slice(0, cut)
    both, mask = ids[-2:].clone(), torch.ones_like(ids[-2:])
    both[0] = torch.cat([ids[1, :2], ids[0, :cut]] if side == "left" else [ids[0, :cut], ids[1, :2]])
    mask[0] = 0
    mask[0, spot] = 1
    try:
        padded = lm.forward(both, mask, layers="all").hidden
    except FAILURES:
        return False
    return all(same(lm, h[0, spot], bare[j][0, :cut]) and same(lm, h[1], bare[j][-1]) for j, h in padded.items())


def gap_is_exact(lm: Checkable, ids: Tensor, bare: dict[int, Tensor]) -> bool:
    """True when masked positions between a cached prefix and what follows change nothing.

    Measured, and ruled out by the configuration where a window is longer than the text measured on. It takes a model
    that pads exactly (:func:`pads_exactly`).
    """
    if _windowed(lm.config, lm.context):
        return False
    n, cut = lm.n_layers, ids.shape[1] // 2
    rest = ids[:1, cut:].expand(2, -1)
    gap = torch.cat([ids[1:2, :2].expand(2, -1), rest], dim=1)
    mask = torch.ones(2, cut + gap.shape[1], dtype=torch.long, device=ids.device)
    mask[:, cut : cut + 2] = 0
    try:
        cache = lm.forward(ids[:1, :cut], use_cache=True).cache
        cache.batch_repeat_interleave(2)
        got = lm.forward(gap, mask, layers=(n,), cache=cache).hidden[n][:, 2:]
    except FAILURES:
        return False
    return same(lm, got, bare[n][:1, cut:].expand_as(got))


def _kinds(config: Any) -> list[str]:
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or []
    return [str(kind) for kind in kinds] + [str(getattr(config, "attention_type", ""))]


def _windowed(config: Any, context: int | None) -> bool:
    kinds = _kinds(config)
    if kinds and all(kind in ("full_attention", "") for kind in kinds) and any(kinds):
        return False
    for name in _WINDOWS:
        window = getattr(config, name, None)
        if isinstance(window, int) and window > 0 and (context is None or window < context):
            return True
    return False

"""What is measured once when a model is taken in: is its readout right, and what may be done to its rows?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ParityError, UnsupportedModel
from .protocol import Parity
from .recorder import evaluating

if TYPE_CHECKING:
    from .layered import Layered

__all__ = ["cache_works", "check_causal", "check_parity", "gap_is_exact", "pads_exactly", "position_offset",
           "takes_masks"]  # fmt: skip

# What a model that cannot do something raises from deep inside.
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)  # of any kind

# Attention whose window is counted in positions, not in real tokens: a gap of padding moves tokens out of it.
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size", "local_attention", "window_size",
            "attention_window_size", "index_topk", "keep_window_size")  # fmt: skip
# Attention over blocks of positions, whose borders padding moves.
_BLOCKWISE = ("chunk", "compress", "index", "block", "lsh")


def own_logits(lm: Layered, ids: Tensor) -> Tensor:
    """The logits that the model, as it was handed over, gives without our help."""
    with evaluating(lm.model):
        out = lm.run_whole(ids)
    return out.logits if hasattr(out, "logits") else out[0]  # type: ignore[no-any-return]


def tolerance(lm: Layered, scale: float) -> float:
    """Largest difference that rounding explains, for values of size ``scale``."""
    return (5e-2 if lm.dtype in (torch.bfloat16, torch.float16) else 1e-4) * max(1.0, scale)


def same(lm: Layered, a: Tensor, b: Tensor) -> bool:
    """Equal to rounding, for hidden states that took different ways through the same sums."""
    return bool((a.float() - b.float()).abs().max() <= tolerance(lm, float(b.float().abs().max())))


def check_parity(lm: Layered, ids: Tensor) -> Parity:
    """Raises :class:`ParityError` unless layer N reads as the model's own logits, on whole rows and on loose positions.

    ``ids``: ``[rows, seq]``.
    """
    want = own_logits(lm, ids).float()
    if not torch.isfinite(want).all():
        raise ParityError(f"{lm.name}: its own logits are not finite on a short text: the weights are damaged")
    n = lm.n_layers
    hidden = lm.forward(ids, layers=(0, n)).hidden
    if n not in hidden or 0 not in hidden:
        raise UnsupportedModel(f"{lm.name}: its blocks do not run from token ids alone")
    got = lm.logits(hidden[n], n).float()
    half = lm.dtype in (torch.bfloat16, torch.float16)
    bound = (3e-2 if half else 2e-5) * max(1.0, float(want.abs().max()))
    worst = float((got - want).abs().max()) if got.shape == want.shape else float("inf")
    # Single positions, out of order: what lies after the last block must act on each position alone.
    loose = torch.arange(ids.shape[1] - 1, -1, -2, device=want.device)
    apart = lm.logits(hidden[n][-1, loose.to(hidden[n].device)], n).float()
    worst = max(worst, float((apart - want[-1, loose]).abs().max()))
    if not worst <= bound:
        raise ParityError(
            f"{lm.name}: the readout at layer {n} differs from the model's logits by {worst:.3g} "
            f"(allowed {bound:.3g}): it is not read, since every layer would be wrong"
        )
    return Parity(worst, bound, int(ids.numel()))


def check_causal(lm: Layered, ids: Tensor) -> None:
    """Raises :class:`UnsupportedModel` when an earlier position sees a later token, or a row another row."""
    n = lm.n_layers
    whole = lm.forward(ids, layers=(n,)).hidden[n]
    again = lm.forward(ids, layers=(n,)).hidden[n]
    if not same(lm, again, whole):
        raise UnsupportedModel(f"{lm.name}: two passes over the same tokens differ, so no number can be relied on")
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % lm.vocab_size
    changed = lm.forward(other, layers=(n,)).hidden[n]
    if not same(lm, changed[:, :-1], whole[:, :-1]):
        raise UnsupportedModel(
            f"{lm.name}: earlier positions see later tokens, so it is not a causal LM as configured "
            "(BERT-like models: set is_decoder=True in its config; XLNet: attn_type='uni'; XLM: causal=True)"
        )
    row = lm.forward(ids[-1:], layers=(n,)).hidden[n]
    if not same(lm, row[0], whole[-1]):
        raise UnsupportedModel(f"{lm.name}: a row's numbers depend on the other rows of its batch")


def position_offset(lm: Layered, ids: Tensor) -> int | None:
    """What the model itself calls the first position (2 in RoBERTa's kin), or None when positions cannot be given."""
    if "position_ids" not in lm.accepts:
        return None
    n = lm.n_layers
    bare = lm.forward(ids, layers=(n,)).hidden[n]
    mask = torch.ones_like(ids)
    padding = getattr(lm.config, "pad_token_id", None)
    candidates = dict.fromkeys([0, padding + 1 if isinstance(padding, int) else 0, 1, 2])
    for offset in candidates:
        lm.offset = offset
        try:
            if same(lm, lm.forward(ids, mask, layers=(n,)).hidden[n], bare):
                return offset
        except FAILURES:
            pass
        finally:
            lm.offset = None
    return None


def takes_masks(lm: Layered, ids: Tensor) -> bool:
    """False when the model cannot run with a mask. :class:`UnsupportedModel` when one of ones changes a number."""
    n = lm.n_layers
    bare = lm.forward(ids, layers=(n,)).hidden[n]
    try:
        masked = lm.forward(ids, torch.ones_like(ids), layers=(n,)).hidden[n]
    except FAILURES:
        return False
    if not same(lm, masked, bare):
        raise UnsupportedModel(f"{lm.name}: an attention mask of ones changes its numbers")
    return True


def cache_works(lm: Layered, ids: Tensor) -> bool:
    """True when a text in pieces, and a prefix shared by several rows, give the numbers of one pass."""
    n = lm.n_layers
    cut = ids.shape[1] // 2
    if isinstance(getattr(lm.config, "index_topk", None), int):
        return False  # what transformers caches for its key index goes wrong once a text is longer than index_topk
    try:
        whole = lm.forward(ids, layers=(n,)).hidden[n]
        first = lm.forward(ids[:1, :cut], layers=(n,), use_cache=True)
        cache = first.cache
        cache.batch_repeat_interleave(3)
        ends = torch.cat([ids[:1, :cut].expand(3, -1), ids[:3, cut:]], 1)
        want = lm.forward(ends, layers=(n,)).hidden[n]
        second = lm.forward(ends[:, cut:-1], None, layers=(n,), cache=cache)
        if not same(lm, first.hidden[n][0], whole[0, :cut]) or not same(lm, second.hidden[n], want[:, cut:-1]):
            return False
        second.cache.batch_select_indices(torch.tensor([0, 2], device=ids.device))
        keep = ends[[0, 2]]
        last = lm.forward(keep[:, -1:], torch.ones_like(keep), layers=(n,), cache=second.cache).hidden[n]
        return same(lm, last[:, 0], want[[0, 2], -1])
    except FAILURES:
        return False


def pads_exactly(lm: Layered, ids: Tensor) -> bool:
    """True when padding, left or right, changes nothing at real positions, at any layer's output."""
    if not lm.takes_masks or any(word in kind for kind in _kinds(lm.config) for word in _BLOCKWISE):
        return False
    return _padding_exact(lm, ids, "left") and _padding_exact(lm, ids, "right")


def _padding_exact(lm: Layered, ids: Tensor, side: str) -> bool:
    n = lm.n_layers
    cut = max(2, ids.shape[1] - 2)
    row, seq = ids[:1, :cut], ids.shape[1]
    filler = ids[1:2, : seq - cut] if len(ids) > 1 else ids[:1, : seq - cut]
    spot = slice(seq - cut, seq) if side == "left" else slice(0, cut)
    both = ids[-2:].clone() if len(ids) > 1 else ids.repeat(2, 1)
    both[0] = torch.cat([filler, row] if side == "left" else [row, filler], dim=1)[0]
    mask = torch.ones_like(both)
    mask[0] = 0
    mask[0, spot] = 1
    layers = sorted({1, (n + 1) // 2, n})
    try:
        alone = lm.forward(row, layers=layers).hidden
        full = lm.forward(both[1:], layers=layers).hidden
        padded = lm.forward(both, mask, layers=layers).hidden
    except FAILURES:
        return False
    return all(same(lm, padded[j][0, spot], alone[j][0]) and same(lm, padded[j][1], full[j][0]) for j in layers)


def gap_is_exact(lm: Layered, ids: Tensor) -> bool:
    """True when masked positions between a cached prefix and what follows change nothing.

    Measured, and ruled out by the configuration where a window is longer than the text measured on.
    """
    if not lm.pads_exactly or _windowed(lm.config, lm.context):
        return False
    n, cut = lm.n_layers, ids.shape[1] // 2
    rest = ids[:2, cut:]
    gap = torch.cat([ids[:2, :2], rest], dim=1)
    mask = torch.ones(len(rest), cut + gap.shape[1], dtype=torch.long, device=ids.device)
    mask[:, cut : cut + 2] = 0
    try:
        cache = lm.forward(ids[:1, :cut], use_cache=True).cache
        cache.batch_repeat_interleave(len(rest))
        got = lm.forward(gap, mask, layers=(n,), cache=cache).hidden[n][:, 2:]
        bare = torch.cat([ids[:1, :cut].expand(len(rest), -1), rest], dim=1)
        want = lm.forward(bare, layers=(n,)).hidden[n][:, cut:]
    except FAILURES:
        return False
    return same(lm, got, want)


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

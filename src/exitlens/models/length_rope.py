"""Rotary embeddings whose table depends on the longest text of a pass (``longrope``, ``dynamic``).

The table is switched for the whole batch, so a short row beside a long one would change; and ``dynamic`` keeps the
longest table it has made for later, shorter texts. Such models run rows of one length only, without a cache that was
begun under another table, and forget the last pass before each one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = ["length_ropes", "start_anew"]

_KINDS = ("dynamic", "longrope")


def length_ropes(model: nn.Module) -> tuple[nn.Module, ...]:
    """The rotary embeddings of ``model`` whose table depends on the length of a pass."""
    return tuple(module for module in model.modules() if any(kind in _said(module) for kind in _KINDS))


def _said(module: nn.Module) -> str:
    kinds: Any = getattr(module, "rope_type", None)
    return " ".join(str(kind) for kind in kinds.values()) if isinstance(kinds, dict) else str(kinds or "")


def start_anew(ropes: Sequence[nn.Module]) -> None:
    """Put each table back to that of short texts, as it was before the first pass: the next one makes what it needs."""
    for module in ropes:
        longest = getattr(module, "original_max_seq_len", None)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not name.endswith("inv_freq") or "original" in name:
                continue
            first: Any = getattr(module, name.removesuffix("inv_freq") + "original_inv_freq", None)
            if first is not None and first.shape == buffer.shape:
                module.register_buffer(name, first.to(buffer.device).clone(), persistent=False)
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, longest)

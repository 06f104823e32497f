"""Caches whose rows can be repeated and chosen, and a stand-in for the key-value cache of models without one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["Replay", "movable"]


def movable(cache: Any) -> Any:
    """``cache`` with rows that can be repeated and chosen, also where it keeps recurrent states."""
    if any(hasattr(layer, "conv_states") for layer in getattr(cache, "layers", ())) and hasattr(cache, "reorder_cache"):
        cache.__class__ = _by_reordering(type(cache))  # type: ignore[arg-type]  # a class is hashable
    return cache


@lru_cache
def _by_reordering(kind: Any) -> type[Any]:
    def rows(self: Any) -> int:
        for layer in self.layers:
            states = [getattr(layer, "keys", None), *_values(layer, "conv_states"), *_values(layer, "recurrent_states")]
            for state in states:
                if isinstance(state, Tensor) and state.numel():
                    return int(state.shape[0])
        return 1

    def repeat(self: Any, repeats: int) -> None:
        self.reorder_cache(torch.arange(rows(self)).repeat_interleave(repeats))

    return type(
        f"Movable{kind.__name__}",
        (kind,),
        {"batch_repeat_interleave": repeat, "batch_select_indices": lambda self, indices: self.reorder_cache(indices)},
    )


def _values(layer: Any, name: str) -> list[Any]:
    states = getattr(layer, name, None)
    return list(states.values()) if isinstance(states, dict) else list(states) if isinstance(states, list) else [states]


class Replay:
    """The tokens seen so far. A pass with it runs them again in front of the new ones: slower, and exact.

    It takes the operations that decoding asks of a cache: repeating rows, keeping some of them, copying.
    """

    def __init__(self) -> None:
        self.ids: Tensor | None = None
        self.mask: Tensor | None = None

    def get_seq_length(self) -> int:
        """Positions seen so far, padding included."""
        return 0 if self.ids is None else int(self.ids.shape[1])

    def extend(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Add ``ids`` (``mask`` covers past and new positions, or is None); gives all tokens and their mask."""
        old = self.get_seq_length()
        whole = ids if self.ids is None else torch.cat([self.ids, ids], dim=1)
        if mask is None and self.mask is not None:
            mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        elif mask is not None and mask.shape[1] == ids.shape[1] and old:
            before = torch.ones_like(whole[:, :old]) if self.mask is None else self.mask
            mask = torch.cat([before, mask], dim=1)
        self.ids, self.mask = whole, mask
        return whole, mask

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row ``repeats`` times, side by side."""
        if self.ids is not None:
            self.ids = self.ids.repeat_interleave(repeats, dim=0)
        if self.mask is not None:
            self.mask = self.mask.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        if self.ids is not None:
            self.ids = self.ids[indices]
        if self.mask is not None:
            self.mask = self.mask[indices]

"""Keys and values of rows that are decoded together: what all of them begin with once, and each row's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["KV", "Shared", "Where"]


@dataclass(frozen=True, slots=True)
class Shared:
    """The tokens at positions 0..length−1 of every row: a layer ``[kv_heads, head_dim, length]`` and its values.

    Keys lie with their positions side by side, so that one product of all rows' queries reads them in order.
    ``values``: ``[kv_heads, length, head_dim]``. ``packed``: both as compiled blocks
    read them, once they did.
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: int
    packed: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, kv: KV, length: int) -> Shared:
        """The first ``length`` positions of the one row of ``kv``."""
        return cls(
            [k[0, :, :length].transpose(1, 2).contiguous() for k in kv.keys],
            [v[0, :, :length].contiguous() for v in kv.values],
            length,
        )


@dataclass(slots=True)
class KV:
    """Keys and values a layer, each ``[rows, kv_heads, room, head_dim]``: positions ``past``.. of every row.

    Positions below ``past`` are those of ``shared``, where there is one. ``packed``: the same as compiled blocks read
    it ``[layers, 2, rows, numbers]``, kept by them; whoever else writes here calls :meth:`written`. ``blank``: nothing
    was written yet.
    """

    keys: list[Tensor]
    values: list[Tensor]
    shared: Shared | None = None
    packed: Tensor | None = None
    blank: bool = False

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.keys[0].shape[0])

    @property
    def past(self) -> int:
        """The first position that is a row's own."""
        return 0 if self.shared is None else self.shared.length

    @property
    def capacity(self) -> int:
        """Most tokens that a row can hold."""
        return self.past + int(self.keys[0].shape[2])

    def select(self, rows: Tensor) -> KV:
        """The same for some rows only (copies)."""
        packed = None if self.packed is None else self.packed[:, :, rows.to(self.packed.device)]
        return KV([k[rows] for k in self.keys], [v[rows] for v in self.values], self.shared, packed, self.blank)

    def first(self, rows: int) -> KV:
        """The first rows: what is written there is written here."""
        packed = None if self.packed is None else self.packed[:, :, :rows]
        return KV([k[:rows] for k in self.keys], [v[:rows] for v in self.values], self.shared, packed, self.blank)

    def fill(self, other: KV, count: int, rows: Tensor | None = None) -> None:
        """Copy the first ``count`` own positions of another cache's rows (default: its one row to all)."""
        for mine, theirs in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            mine[:, :, :count] = theirs[:, :, :count] if rows is None else theirs[rows, :, :count]
        self.written()

    def written(self) -> None:
        """Keys or values were written by others than compiled blocks: what those keep is made anew."""
        self.packed, self.blank = None, False


@dataclass(slots=True)
class Where:
    """Which cache rows a call works on and from which position each goes on, shared by all layers of a step.

    ``start``: one position for all rows, or ``[rows]``. ``rows``: indices into the cache, or None for all of them.
    """

    start: int | Tensor
    width: int
    rows: Tensor | None
    positions: Tensor  # [rows, width] or [width]
    total: int  # keys that can be seen: the largest position + 1
    cos: Tensor | None = None
    sin: Tensor | None = None  # of the first half of the channels with its sign turned, as the rotation wants it
    masks: dict[tuple[int | None, int], Tensor | None] = field(default_factory=dict)
    places: tuple[Tensor, Tensor] | None = None  # where `store` writes, worked out once for all layers

    def store(self, into: Sequence[Tensor], new: Sequence[Tensor], past: int) -> None:
        """Write each of ``new [rows, kv_heads, width, head_dim]`` at its rows and positions of a layer's cache."""
        if isinstance(self.start, int):
            first = self.start - past
            for cache, value in zip(into, new, strict=True):
                if self.rows is None:
                    cache[:, :, first : first + self.width] = value
                else:
                    cache[self.rows, :, first : first + self.width] = value
            return
        if self.places is None:
            rows = torch.arange(new[0].shape[0], device=new[0].device) if self.rows is None else self.rows
            self.places = rows[:, None], self.positions - past
        rows, at = self.places
        for cache, value in zip(into, new, strict=True):
            cache[rows, :, at] = value.transpose(1, 2)

    def mask(self, window: int | None, past: int, group: int, dtype: torch.dtype) -> Tensor | None:
        """0 where a query may see a row's own key and −inf where not, or None when it may see all.

        ``[rows or 1, 1, group · width, total − past]``: the queries of a group of heads lie one after another.
        """
        if window is not None and self.total <= window:
            window = None
        if (window, past) not in self.masks:
            made = None
            if not (isinstance(self.start, int) and self.width == 1 and window is None):
                at = self.positions if self.positions.dim() == 2 else self.positions[None]
                keys = torch.arange(past, self.total, device=at.device)
                hidden = keys > at[..., None]
                if window is not None:
                    hidden |= keys <= at[..., None] - window
                made = torch.zeros(hidden.shape, dtype=dtype, device=at.device).masked_fill_(hidden, -torch.inf)
                made = made.repeat(1, group, 1)[:, None]
            self.masks[window, past] = made
        return self.masks[window, past]

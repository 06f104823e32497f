"""One batch of rows with their key-value cache: run the prompts, then a token a row at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Prefix", "Session"]


class Prefix:
    """The cache of what all prompts begin with, computed once."""

    def __init__(self, lm: Any, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        self.cache: Any = None
        if self.ids:
            tokens = torch.tensor([self.ids], device=lm.device)
            self.cache = lm.forward(tokens, torch.ones_like(tokens), layers=(), use_cache=True).cache

    def cache_for(self, lm: Any, rows: int) -> Any:
        """A cache of its own for ``rows`` rows, holding the prefix."""
        if self.cache is None:
            return lm.new_cache()
        cache = copy.deepcopy(self.cache)
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        return cache


class Session:
    """Rows of one batch. ``layers`` are recorded at the last position of every step: ``{layer: [rows, d_model]}``."""

    def __init__(self, lm: Any, prefix: Prefix, layers: Sequence[int]) -> None:
        self._lm, self._prefix, self._layers = lm, prefix, tuple(layers)
        self._cache: Any = None
        self._mask: Tensor

    def start(self, prompts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """Run the prompts (whole ids, prefix included)."""
        p = len(self._prefix.ids)
        rest = [list(row[p:]) for row in prompts]
        width = max(map(len, rest))
        ids = torch.zeros(len(rest), width, dtype=torch.long)
        mask = torch.zeros(len(rest), p + width, dtype=torch.long)
        mask[:, :p] = 1
        for i, row in enumerate(rest):
            ids[i, width - len(row) :] = torch.tensor(row)
            mask[i, p + width - len(row) :] = 1
        device = self._lm.device
        self._cache = self._prefix.cache_for(self._lm, len(rest))
        self._mask = mask.to(device)
        return self._run(ids.to(device))

    def step(self, tokens: Tensor) -> dict[int, Tensor]:
        """Feed one token a row, ``[rows]``."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        return self._run(tokens[:, None])

    def keep(self, rows: Tensor) -> None:
        """Drop every row but ``rows`` (indices)."""
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]

    def _run(self, ids: Tensor) -> dict[int, Tensor]:
        # A mask of ones only is left out: attention then takes its faster path, and the numbers are the same.
        mask = self._mask if bool((self._mask == 0).any()) else None
        out = self._lm.forward(ids, mask, layers=self._layers, positions="last", cache=self._cache)
        self._cache = out.cache
        return {layer: h[:, -1] for layer, h in out.hidden.items()}

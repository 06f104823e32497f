"""One batch of rows with their key-value cache: run the prompts, then a token a row at a time.

Two ways, one interface. :class:`NativePrefix` runs the model's blocks one by one on a cache without padding, wherever
:func:`exitlens.models.native.runner.runner_of` gives a runner. :class:`ModelPrefix` runs the model's own forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from exitlens.models.forward import padded
from exitlens.models.native.runner import KV, Runner, Shared, runner_of
from exitlens.models.protocol import LayeredModel

__all__ = ["ModelPrefix", "NativePrefix", "Prefix", "Session", "open_prefix"]


class Session(Protocol):
    """Rows of one batch; every call gives ``{layer: [rows, d_model]}`` at each row's last position."""

    def start(self, prompts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """Run the prompts (whole ids, prefix included)."""
        ...

    def step(self, tokens: Tensor) -> dict[int, Tensor]:
        """Feed one token a row, ``[rows]``."""
        ...

    def final(self, hidden: dict[int, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Final logits ``[rows, vocab]`` (float32) of what a call gave, and what the session reports of each row."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop every row but ``rows`` (indices, ascending)."""
        ...


class Prefix(Protocol):
    """What all prompts begin with, computed once."""

    def session(self, layers: Sequence[int], max_new_tokens: int) -> Session:
        """A batch that goes on from the prefix and records ``layers``."""
        ...


def open_prefix(lm: LayeredModel, ids: Sequence[int]) -> Prefix:
    """Run the shared ``ids`` (there may be none) the quickest way this model allows."""
    runner = runner_of(lm)
    return ModelPrefix(lm, ids) if runner is None else NativePrefix(runner, ids)


# A beginning of at least so many tokens, of at least so many rows, is kept once: else copies for every row cost less.
_SHARED_TOKENS, _SHARED_ROWS = 32, 2


class NativePrefix:
    """The prefix's keys and values in one row, on the model's blocks run one by one."""

    @torch.no_grad()
    def __init__(self, runner: Runner, ids: Sequence[int]) -> None:
        self.runner, self.ids = runner, tuple(ids)
        self.kv: KV | None = None
        self._shared: Shared | None = None
        if self.ids:
            tokens = torch.tensor([self.ids], device=runner.lm.device)
            self.kv = runner.new_kv(1, len(self.ids))
            where = runner.where(0, len(self.ids))
            runner.run(runner.embed(tokens, where), self.kv, where)

    def session(self, layers: Sequence[int], max_new_tokens: int) -> NativeSession:
        """See :class:`Prefix`."""
        return NativeSession(self, layers, max_new_tokens)

    def open(self, rows: int, capacity: int) -> KV:
        """A cache for ``rows`` rows of ``capacity`` tokens that begin with the prefix."""
        p = len(self.ids)
        if self.kv is not None and rows >= _SHARED_ROWS and p >= _SHARED_TOKENS and self.runner.can_share(capacity):
            if self._shared is None:
                self._shared = Shared.of(self.kv, p)
            return self.runner.new_kv(rows, capacity, self._shared)
        kv = self.runner.new_kv(rows, capacity)
        if self.kv is not None:
            kv.fill(self.kv, p)
        return kv


class NativeSession:
    """See :class:`Session`. Rows begin at position 0 whatever their length, so there is no padding to mask."""

    def __init__(self, prefix: NativePrefix, layers: Sequence[int], max_new_tokens: int) -> None:
        self._prefix, self._runner = prefix, prefix.runner
        self._layers, self._room = frozenset(layers), max_new_tokens
        self.kv: KV
        self.lengths: Tensor  # tokens held, a row
        self._logits: Tensor | None = None  # of the last step, where they came with its states

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """See :class:`Session`."""
        p = len(self._prefix.ids)
        device = self._runner.lm.device
        ids, _ = padded([row[p:] for row in prompts], device)
        width = ids.shape[1]
        self.lengths = torch.tensor([len(row) for row in prompts])
        self.kv = self._prefix.open(len(prompts), p + width + self._room)
        where = self._runner.where(p, width)
        self._logits = None
        kept = self._runner.run(self._runner.embed(ids, where), self.kv, where, keep=tuple(self._layers))
        last = (self.lengths - p - 1).to(device)
        rows = torch.arange(len(prompts), device=device)
        # What short rows wrote past their end is never seen: later tokens take those places before they are read.
        return {layer: h[rows, last] for layer, h in kept.items()}

    @torch.no_grad()
    def step(self, tokens: Tensor) -> dict[int, Tensor]:
        """See :class:`Session`."""
        where = self._runner.where(self.lengths, 1)
        self.lengths = self.lengths + 1
        kept, self._logits = self._runner.step(tokens, self.kv, where, keep=tuple(self._layers))
        return {layer: h[:, 0] for layer, h in kept.items()}

    def final(self, hidden: dict[int, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Session`."""
        last = self._runner.n_layers
        logits = self._runner.logits(hidden[last], last).float() if self._logits is None else self._logits
        return logits, {}

    def keep(self, rows: Tensor) -> None:
        """See :class:`Session`."""
        self._logits = None
        self.kv = self.kv.select(rows)
        self.lengths = self.lengths[rows.cpu()]


class ModelPrefix:
    """The prefix in the model's own cache."""

    def __init__(self, lm: LayeredModel, ids: Sequence[int]) -> None:
        self.lm, self.ids = lm, tuple(ids)
        self.cache: Any = None
        if self.ids:
            tokens = torch.tensor([self.ids], device=lm.device)
            self.cache = lm.forward(tokens, torch.ones_like(tokens), layers=(), use_cache=True).cache

    def session(self, layers: Sequence[int], max_new_tokens: int) -> ModelSession:  # noqa: ARG002 (the protocol's)
        """See :class:`Prefix`."""
        return ModelSession(self, layers)

    def open(self, rows: int) -> Any:
        """A cache of its own for ``rows`` rows, holding the prefix."""
        if self.cache is None:
            return self.lm.new_cache()
        cache = copy.deepcopy(self.cache)
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        return cache


class ModelSession:
    """See :class:`Session`. Short rows are padded on the left, between the prefix and their own tokens."""

    def __init__(self, prefix: ModelPrefix, layers: Sequence[int]) -> None:
        self._prefix, self._lm, self._layers = prefix, prefix.lm, tuple(layers)
        self._cache: Any = None
        self._mask: Tensor

    def start(self, prompts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """See :class:`Session`."""
        p = len(self._prefix.ids)
        ids, real = padded([row[p:] for row in prompts], self._lm.device, side="left")
        self._cache = self._prefix.open(len(prompts))
        self._mask = torch.cat([real.new_ones(len(prompts), p), real], dim=1).long()
        return self._run(ids)

    def step(self, tokens: Tensor) -> dict[int, Tensor]:
        """See :class:`Session`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        return self._run(tokens[:, None].to(self._lm.device))

    def final(self, hidden: dict[int, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Session`."""
        lm = self._lm
        return lm.logits(hidden[lm.n_layers], lm.n_layers).float(), {}

    def keep(self, rows: Tensor) -> None:
        """See :class:`Session`."""
        rows = rows.cpu()  # a model spread over devices has a cache on each
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]

    def _run(self, ids: Tensor) -> dict[int, Tensor]:
        # A mask of ones only is left out: attention then takes its faster path, and the numbers are the same.
        mask = self._mask if bool((self._mask == 0).any()) else None
        out = self._lm.forward(ids, mask, layers=self._layers, positions="last", cache=self._cache)
        self._cache = out.cache
        return {layer: h[:, -1] for layer, h in out.hidden.items()}

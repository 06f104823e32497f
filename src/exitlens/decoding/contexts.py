"""Contexts that are run once, and the texts that go on from each of them side by side.

As in :mod:`exitlens.decoding.session` there are two ways: the native blocks, where many contexts are run together and
rows of any of them share a batch, and the model's own pass, where a batch goes on from one context.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from exitlens.decoding.session import ModelPrefix, NativePrefix
from exitlens.models.forward import padded
from exitlens.models.native.runner import Runner, runner_of
from exitlens.models.protocol import LayeredModel

__all__ = ["Contexts", "Held", "open_contexts"]


class Held(Protocol):
    """Contexts that have been run."""

    def run(self, which: Sequence[int], texts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """States ``{layer: [rows, longest, d_model]}`` of ``texts[i]`` after context ``which[i]``."""
        ...


class Contexts(Protocol):
    """What all texts begin with, computed once."""

    many: bool
    """Whether contexts are run together."""

    def hold(self, contexts: Sequence[Sequence[int]]) -> Held:
        """Run ``contexts`` (token ids after the beginning, at least one each) to be gone on from."""
        ...

    def run(self, texts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """States of ``texts`` straight after the beginning, each row on its own."""
        ...


def open_contexts(lm: LayeredModel, ids: Sequence[int], layers: Sequence[int]) -> Contexts:
    """Run the shared ``ids`` (there may be none); ``layers`` are those whose states are wanted later."""
    runner = runner_of(lm)
    return _Model(lm, ids, layers) if runner is None else _Native(runner, ids, layers)


class _Native:
    many = True

    def __init__(self, runner: Runner, ids: Sequence[int], layers: Sequence[int]) -> None:
        self._prefix, self._runner, self._layers = NativePrefix(runner, ids), runner, frozenset(layers)

    def hold(self, contexts: Sequence[Sequence[int]]) -> Held:
        """See :class:`Contexts`."""
        return _NativeHeld(self._prefix, self._layers, contexts)

    def run(self, texts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """See :class:`Contexts`."""
        runner, p = self._runner, len(self._prefix.ids)
        ids = padded(texts, runner.lm.device)[0]
        kv = self._prefix.open(len(texts), p + ids.shape[1])
        where = runner.where(p, ids.shape[1])
        return runner.run(runner.embed(ids, where), kv, where, keep=self._layers)


class _NativeHeld:
    def __init__(self, prefix: NativePrefix, layers: frozenset[int], contexts: Sequence[Sequence[int]]) -> None:
        self._runner, self._layers = prefix.runner, layers
        p = len(prefix.ids)
        ids = padded(contexts, prefix.runner.lm.device)[0]
        self._lengths = torch.tensor([p + len(context) for context in contexts])
        self._kv = prefix.open(len(contexts), p + ids.shape[1])
        where = prefix.runner.where(p, ids.shape[1])
        prefix.runner.run(prefix.runner.embed(ids, where), self._kv, where)

    def run(self, which: Sequence[int], texts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """See :class:`Held`."""
        runner, held = self._runner, self._kv
        device = runner.lm.device
        rows = torch.tensor(which)
        lengths = self._lengths[rows]
        ids = padded(texts, device)[0]
        longest = int(lengths.max())
        kv = runner.new_kv(len(texts), longest + ids.shape[1], held.shared)
        kv.fill(held, longest - held.past, rows.to(device))
        where = runner.where(lengths, ids.shape[1])
        return runner.run(runner.embed(ids, where), kv, where, keep=self._layers)


class _Model:
    many = False

    def __init__(self, lm: LayeredModel, ids: Sequence[int], layers: Sequence[int]) -> None:
        self._lm, self._layers = lm, tuple(layers)
        self._cache = ModelPrefix(lm, ids).cache

    def hold(self, contexts: Sequence[Sequence[int]]) -> Held:
        """See :class:`Contexts`."""
        (context,) = contexts
        cache = self._lm.new_cache() if self._cache is None else copy.deepcopy(self._cache)
        tokens = torch.tensor([list(context)], device=self._lm.device)
        return _ModelHeld(self._lm, self._layers, self._lm.forward(tokens, None, layers=(), cache=cache).cache)

    def run(self, texts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """See :class:`Contexts`."""
        return _ModelHeld(self._lm, self._layers, self._cache).run([0] * len(texts), texts)


class _ModelHeld:
    def __init__(self, lm: LayeredModel, layers: Sequence[int], cache: Any) -> None:
        self._lm, self._layers, self._cache = lm, layers, cache

    def run(self, which: Sequence[int], texts: Sequence[Sequence[int]]) -> dict[int, Tensor]:  # noqa: ARG002
        """See :class:`Held`; there is one context."""
        ids = padded(texts, self._lm.device)[0]
        cache = copy.deepcopy(self._cache)
        if cache is not None and len(texts) > 1:
            cache.batch_repeat_interleave(len(texts))
        return self._lm.forward(ids, None, layers=self._layers, cache=cache).hidden

"""Decoding that skips: blocks above the exit are not run. One more :class:`~exitlens.decoding.session.Session`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from exitlens.decoding.session import NativePrefix
from exitlens.errors import InputError, UnsupportedModel
from exitlens.exits.depth_cache import CachePolicy, Depths
from exitlens.exits.policies import ExitPolicy, ExitQuery
from exitlens.exits.shortlist import ExitLogits, ExitReader
from exitlens.models.native.runner import runner_of
from exitlens.models.protocol import LayeredModel

__all__ = ["ExitPrefix", "ExitSession", "Tally"]


@dataclass(slots=True)
class Tally:
    """What was really run: block × token, unembedding rows (and rows over a head's shortlist), answer tokens by exit
    layer."""

    blocks: int = 0
    unembeddings: int = 0
    short: int = 0
    exits: dict[int, int] = field(default_factory=dict)


class ExitPrefix:
    """Like :class:`~exitlens.decoding.session.NativePrefix`, its sessions exit early.

    Raises :class:`UnsupportedModel` for a model whose blocks cannot be run apart.
    """

    def __init__(
        self,
        lm: LayeredModel,
        ids: Sequence[int],
        policy: ExitPolicy,
        *,
        cache: CachePolicy = "defer",
        reader: ExitReader | None = None,
        steps: int = 1,
        tally: Tally | None = None,
    ) -> None:
        runner = runner_of(lm)
        if runner is None:
            raise UnsupportedModel(
                f"{lm.name}: its blocks cannot be run apart (known: Llama-like, GPT-2-like, GPT-NeoX-like), so "
                "decoding cannot exit early; the analysis of exits works without"
            )
        if cache not in ("defer", "propagate", "recompute"):
            raise InputError(f"unknown cache policy {cache!r}: use defer, propagate or recompute")
        self.prefix = NativePrefix(runner, ids)
        self.runner, self.lm, self.cache = runner, lm, cache
        self.reader = reader or ExitReader(lm)
        self.policy = self.reader.resolve(policy)
        self.steps = steps
        self.tally = tally or Tally()

    def session(self, layers: Sequence[int], max_new_tokens: int) -> ExitSession:
        """See :class:`~exitlens.decoding.session.Prefix`. Raises :class:`InputError` when layers are to be read."""
        if any(layer != self.lm.n_layers for layer in layers):
            raise InputError("layers cannot be read while decoding exits early: read them in a full pass")
        return ExitSession(self, max_new_tokens)


class ExitSession:
    """See :class:`~exitlens.decoding.session.Session`. The prompt's pass, at full depth, gives the first token."""

    def __init__(self, prefix: ExitPrefix, room: int) -> None:
        self._p, self.policy = prefix, prefix.policy
        self._room = room
        self._n = prefix.lm.n_layers
        self._exits = prefix.policy.exits(self._n, last=prefix.reader.last)
        self._stops = sorted({*self._exits, self._n})
        self._step = 0
        self._logits: Tensor
        self._exit: np.ndarray
        self._reader: ExitReader
        self.depths: Depths

    def start(self, prompts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """See :class:`~exitlens.decoding.session.Session`."""
        inner = self._p.prefix.session([self._n], self._room)
        hidden = inner.start(prompts)
        self.depths = Depths(self._p.runner, inner.kv, inner.lengths)
        self._logits = self._p.runner.logits(hidden[self._n], self._n).float()
        self._exit = np.full(len(prompts), self._n)
        self._reader = self._p.reader.bind(prompts)
        self._count()
        return hidden

    def final(self, hidden: dict[int, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002 (the protocol's)
        """Logits ``[rows, vocab]`` at each row's exit, and the exits."""
        return self._logits, {"exit": torch.from_numpy(self._exit)}

    def step(self, tokens: Tensor) -> dict[int, Tensor]:
        """See :class:`~exitlens.decoding.session.Session`; the states are those at each row's exit."""
        d, p, n = self.depths, self._p, self._n
        everyone = np.arange(len(tokens))
        d.append(everyone, tokens)
        self._reader.add(everyone, tokens.tolist())
        self._step += 1
        limit = p.policy.limit(self._step, p.steps)
        going = everyone
        self._exit = np.full(len(tokens), self._n)
        self._logits = torch.empty(len(tokens), p.lm.vocab_size, device=p.lm.device)
        previous: Tensor | None = None
        tops, same = np.full(len(tokens), -1), np.zeros(len(tokens), dtype=np.int64)
        layer = 0
        for stop in self._stops:  # tokens wait at exits only, so between two of them nobody joins
            self._advance(going, layer + 1, stop)
            layer = stop
            if layer in self._exits:
                state = d.last(going)
                leave = self.check(state, previous, layer, going, tops, same, limit)
                out = going[leave]
                if len(out) and layer < n and p.cache == "propagate":
                    d.propagate(out, layer)
                elif layer < n and p.cache == "recompute":
                    d.parked[out, d.lengths[out] - 1] = True
                previous = state[torch.from_numpy(~leave)]
                going = going[~leave]
                if not len(going):
                    break
        if len(going):
            self._logits[torch.from_numpy(going)] = p.runner.logits(d.last(going), n).float()
            p.tally.unembeddings += len(going)
        self._count()
        return {self._n: d.last(everyone)}

    def keep(self, rows: Tensor) -> None:
        """See :class:`~exitlens.decoding.session.Session`."""
        kept = rows.cpu().numpy()
        self.depths.select(kept)
        self._reader.keep(kept)

    def _advance(self, going: np.ndarray, block: int, last: int) -> None:
        before = self.depths.blocks_run
        if self._p.cache == "recompute":
            self.depths.restart(going, block - 1)
        self.depths.advance(going, block, last)
        self._p.tally.blocks += self.depths.blocks_run - before

    def check(
        self,
        state: Tensor,
        previous: Tensor | None,
        layer: int,
        going: np.ndarray,
        tops: np.ndarray,
        same: np.ndarray,
        limit: float,
    ) -> np.ndarray:
        """One exit check: who of ``going`` exits at ``layer`` (``[len(going)]``); the logits of those who do are kept.

        ``state`` and ``previous``: at this exit and the one before; ``tops`` and ``same``, one of the batch each: the
        top token at the exit before, and at how many exits in a row it was that one.
        """
        p = self._p
        query = ExitQuery(state=state, previous=previous)
        shown: ExitLogits | None = None
        if p.policy.needs_logits:
            shown = self._show(state, layer, going)
            query.logits = shown.z
            if p.policy.kind == "patience":
                top = shown.top().cpu().numpy()
                same[going] = np.where(tops[going] == top, same[going] + 1, 1)
                tops[going] = top
                query.unchanged = torch.from_numpy(same[going])
        elif p.policy.kind == "classifier" and self._reader.classifier is not None:
            query.confidence = self._reader.classifier(state, layer)
        leave = p.policy.decide(query, len(going), limit).numpy()
        if leave.any():
            chosen = torch.from_numpy(leave)
            shown = self._show(state[chosen], layer, going[leave]) if shown is None else shown.of(chosen)
            self._logits[torch.from_numpy(going[leave])] = shown.whole(p.lm.vocab_size)
            self._exit[going[leave]] = layer
        return leave

    def _show(self, state: Tensor, layer: int, rows: np.ndarray) -> ExitLogits:
        shown, tally = self._reader.show(state, layer, rows), self._p.tally
        if shown.ids is None:
            tally.unembeddings += len(state)
        else:
            tally.short += len(state)
        return shown

    def _count(self) -> None:
        for layer in self._exit.tolist():
            self._p.tally.exits[layer] = self._p.tally.exits.get(layer, 0) + 1

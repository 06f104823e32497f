"""How long a policy will take on this machine, from a few measured pieces: no policy is run to predict it.

Time of an answer token at batch 1: ``step + Σ_b block(w_b) + asks·ask + exit``, over the blocks b up to its exit,
``w_b`` the tokens that go through block b together (those that had left before it come along).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from exitlens.decoding.loop import BatchRun
from exitlens.errors import UnsupportedModel
from exitlens.exits.policies import ExitPolicy
from exitlens.exits.replay_policies import Array, Outcome
from exitlens.exits.session import ExitClassifier, ExitPrefix, ExitSession
from exitlens.exits.shortlist import HeadReader, Reader
from exitlens.models.native.runner import runner_of
from exitlens.models.protocol import LayeredModel

__all__ = ["TimeModel", "measure_times"]

_WIDTHS = (1, 2, 4, 6, 8, 12)  # tokens in a block: a product's time does not grow evenly with them


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Seconds at batch 1: a block by the tokens in it, logits at N, what a step costs besides.

    ``block[i]`` is measured with ``widths[i]`` tokens, straight lines between. ``ask[kind]``: one question to a
    policy, its logits included; ``exit_logits``: logits at an exit for policies that ask without them.
    """

    widths: tuple[int, ...]
    block: tuple[float, ...]
    unembed: float
    step: float
    ask: Mapping[str, float]
    exit_logits: float

    def full(self, n_layers: int) -> float:
        """Seconds a token of the full model, run by the same machinery."""
        return self.step + n_layers * self.block[0] + self.unembed

    def seconds(self, outcome: Outcome, kind: str, widths: Array) -> float:
        """Mean seconds a token under a policy of ``kind``; ``widths [T, w]``: see :func:`block_widths`."""
        blocks = widths @ self._at(np.arange(widths.shape[1]))
        asks = outcome.asked * self.ask.get(kind, 0.0)
        shown = kind in ("probability", "margin", "entropy", "patience")
        last = np.where(outcome.left, 0.0 if shown else self.exit_logits, self.unembed)
        return float((self.step + blocks + asks + last).mean())

    def _at(self, tokens: Array) -> Array:
        """Seconds of a block with so many tokens; beyond the widest measured, the last line goes on."""
        inside = np.interp(tokens, self.widths, self.block)
        slope = (self.block[-1] - self.block[-2]) / (self.widths[-1] - self.widths[-2])
        return np.asarray(inside + np.maximum(tokens - self.widths[-1], 0) * slope)


@torch.no_grad()
def measure_times(
    lm: LayeredModel,
    *,
    reader: Reader | None = None,
    scorer: ExitClassifier | None = None,
    context: int = 96,
    repeats: int = 30,
) -> TimeModel:
    """Time the pieces on this machine at ``context`` tokens held, the best of ``repeats``: others only ever add time.

    ``step`` is what is left of a short generation that never leaves: the loop's own work.
    Raises :class:`UnsupportedModel` for a model whose blocks cannot be run apart.
    """
    runner = runner_of(lm)
    if runner is None:
        raise UnsupportedModel(f"{lm.name}: its blocks cannot be run apart, so no time can be predicted for leaving")
    n = lm.n_layers
    context = min(context, (lm.context or context + 64) - 64)
    ids = [(7 * i + 5) % lm.vocab_size for i in range(context)]
    row = np.array([0])
    few = max(5, repeats // 3)

    def started(policy: ExitPolicy) -> ExitSession:
        prefix = ExitPrefix(lm, (), policy, reader=reader, scorer=scorer)
        session = prefix.session((), 32)
        session.start([ids])
        session.depths.append(row, torch.tensor([5]))
        session._logits = torch.empty(1, lm.vocab_size, device=lm.device)
        return session

    alone = started(ExitPolicy("never")).depths

    def token() -> None:
        """A step's blocks: what is timed after them finds the processor's cache as a step leaves it."""
        alone.depth[0, context] = 0
        alone.advance(row, 1, n)

    d = started(ExitPolicy("never")).depths
    by_width = {}
    for width in _WIDTHS:
        while int(d.lengths[0]) - context < width:
            d.append(row, torch.tensor([int(d.lengths[0]) % lm.vocab_size]))

        def pass_through() -> None:
            d.depth[0, context : int(d.lengths[0])] = 0
            d.advance(row, 1, n)

        by_width[width] = _best(pass_through, few) / n  # all blocks are larger than the cache
    layer = max(1, n - 1)
    if isinstance(reader, HeadReader):
        layer = next((j for j in reversed(reader.layers) if j < n), reader.layers[-1])
    ask: dict[str, float] = {}
    for kind in ("probability", "margin", "entropy", "patience", "cosine", "classifier", "fixed"):
        if kind == "classifier" and scorer is None:
            continue
        # A threshold that is never passed: asking alone is timed.
        policy = ExitPolicy(kind, 0.0 if kind == "entropy" else 1.0, (layer,))
        if kind in ("fixed", "patience"):
            policy = ExitPolicy(kind, 1e9, (layer,))
        session = started(policy)
        tops, same = np.full(1, -1), np.zeros(1, dtype=np.int64)
        state = session.depths.last(row)

        def question(
            session: ExitSession = session, tops: Array = tops, same: Array = same, state: torch.Tensor = state
        ) -> None:
            session._ask(state, state, layer, row, tops, same, session._p.policy.threshold)

        ask[kind] = _best(question, few, token)
    state = d.last(row)
    unembed = _best(lambda: runner.logits(state, n).float().argmax(-1).cpu(), few, token)
    whole = n * by_width[1] + unembed
    return TimeModel(
        widths=_WIDTHS,
        block=tuple(by_width[w] for w in _WIDTHS),
        unembed=unembed,
        step=max(0.0, _short_generation(lm, ids) - whole),
        # The exit's logits are part of what was timed for ``fixed``, which always leaves.
        ask={**ask, "fixed": 0.0},
        exit_logits=ask["fixed"],
    )


def _short_generation(lm: LayeredModel, ids: list[int], tokens: int = 10) -> float:
    """Seconds a token of decoding that never leaves, without the prompt's pass."""

    def run(count: int) -> float:
        begun = time.perf_counter()
        session = ExitPrefix(lm, (), ExitPolicy("never")).session((), count)
        generation = BatchRun(lm, max_new_tokens=count)
        generation.eos = frozenset()  # it runs to its full length
        for _ in generation.batch(generation.rows([ids]), _Opened(session)):
            pass
        return time.perf_counter() - begun

    run(2)
    whole, first = (min(run(count) for _ in range(4)) for count in (tokens, 1))
    return (whole - first) / (tokens - 1)


class _Opened:
    """A prefix that gives the session it was made with."""

    def __init__(self, session: ExitSession) -> None:
        self._session = session

    def session(self, layers: Any, max_new_tokens: int) -> ExitSession:  # noqa: ARG002 (the protocol's)
        """See :class:`~exitlens.decoding.session.Prefix`."""
        return self._session


def _best(work: Callable[[], Any], repeats: int, before: Callable[[], None] | None = None) -> float:
    work()
    times = []
    for _ in range(repeats):
        if before is not None:
            before()
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return float(min(times))

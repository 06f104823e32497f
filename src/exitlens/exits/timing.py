"""How long a policy will take on this machine, from a few measured pieces: no policy is run to predict it.

Time of an answer token at batch 1: ``step + Σ_b block(w_b) + checks·check + exit``, over the blocks b up to its exit,
``w_b`` the tokens that go through block b together (those that had exited before it come along).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from exitlens.decoding.loop import BatchRun
from exitlens.errors import UnsupportedModel
from exitlens.exits.depth_cache import Depths
from exitlens.exits.policies import RULES, ExitPolicy, Kind
from exitlens.exits.replay_policies import Array, Outcome
from exitlens.exits.session import ExitPrefix, ExitSession
from exitlens.exits.shortlist import ExitReader
from exitlens.models.native.runner import runner_of
from exitlens.models.protocol import LayeredModel

__all__ = ["TimeModel", "consistent", "measure_times"]

_ROW = np.array([0])
_WIDTHS = (1, 2, 4, 6, 8, 12)  # tokens in a block: a product's time does not grow evenly with them


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Seconds at batch 1: a block by the tokens in it, logits at N, what a step costs besides.

    ``block[i]`` is measured with ``widths[i]`` tokens, straight lines between. ``check[kind]``: one exit check of a
    policy, its logits included; ``exit_logits``: logits at an exit for policies that check without them.
    """

    widths: tuple[int, ...]
    block: tuple[float, ...]
    unembed: float
    step: float
    check: Mapping[Kind, float]
    exit_logits: float

    def full(self, n_layers: int) -> float:
        """Seconds a token of the full model, run by the same machinery."""
        return self.step + n_layers * self.block[0] + self.unembed

    def seconds(self, outcome: Outcome, kind: str, widths: Array) -> float:
        """Mean seconds a token under a policy of ``kind``; ``widths [T, w]``: see :func:`block_widths`."""
        blocks = widths @ self._at(np.arange(widths.shape[1]))
        checks = outcome.checks * next((seconds for name, seconds in self.check.items() if name == kind), 0.0)
        shown = any(name == kind and rule.needs_logits for name, rule in RULES.items())
        last = np.where(outcome.exited, 0.0 if shown else self.exit_logits, self.unembed)
        return float((self.step + blocks + checks + last).mean())

    def _at(self, tokens: Array) -> Array:
        """Seconds of a block with so many tokens; beyond the widest measured, the last line goes on."""
        inside = np.interp(tokens, self.widths, self.block)
        slope = (self.block[-1] - self.block[-2]) / (self.widths[-1] - self.widths[-2])
        return np.asarray(inside + np.maximum(tokens - self.widths[-1], 0) * slope)


@torch.no_grad()
def measure_times(
    lm: LayeredModel, *, reader: ExitReader | None = None, context: int = 96, repeats: int = 30
) -> TimeModel:
    """Time the pieces on this machine at ``context`` tokens held, the best of ``repeats``: others only ever add time.

    ``step`` is what is left of a short generation that never exits: the loop's own work.
    Raises :class:`UnsupportedModel` for a model whose blocks cannot be run apart.
    """
    runner = runner_of(lm)
    if runner is None:
        raise UnsupportedModel(f"{lm.name}: its blocks cannot be run apart, so no time can be predicted for exiting")
    n, few = lm.n_layers, max(5, repeats // 3)
    context = min(context, (lm.context or context + 64) - 64)
    ids = [(7 * i + 5) % lm.vocab_size for i in range(context)]

    def started(policy: ExitPolicy) -> ExitSession:
        """A session with one token more than the prompt, at layer 0."""
        session = ExitPrefix(lm, (), policy, reader=reader).session((), 32)
        session.start([ids])
        session.depths.append(_ROW, torch.tensor([5]))
        return session

    alone = started(ExitPolicy("never")).depths

    def token() -> None:
        """A step's blocks: what is timed after them finds the processor's cache as a step leaves it."""
        alone.depth[0, context] = 0
        alone.advance(_ROW, 1, n)

    depths = started(ExitPolicy("never")).depths
    block = _block_times(depths, context, few)
    checks: dict[Kind, float] = {}
    layer = _timed_layer(n, reader)
    for kind, rule in RULES.items():
        if kind == "never" or (kind == "classifier" and (reader is None or reader.classifier is None)):
            continue
        # A threshold that is never passed, so that the check alone is timed; ``fixed`` has none and always exits.
        threshold = 0.0 if rule.at_most else rule.high if rule.high < math.inf else 1e9
        checks[kind] = _check_time(started(ExitPolicy(kind, threshold, (layer,))), layer, few, token)
    state = depths.last(_ROW)
    unembed = _best(lambda: runner.logits(state, n).float().argmax(-1).cpu(), few, token)
    step = _short_generation(lm, ids) - n * block[0] - unembed
    return consistent(block, unembed, step, checks, whole_vocabulary=reader is None or reader.heads is None)


def consistent(
    block: Sequence[float], unembed: float, step: float, checks: Mapping[Kind, float], *, whole_vocabulary: bool
) -> TimeModel:
    """A time model in which more work never takes less time, whatever noise the pieces were measured with.

    A block with more tokens takes no less; logits at an exit take no less than at layer N where both are
    ``whole_vocabulary``; a check that looks at logits takes no less than those logits, nor than one that does not.
    ``checks["fixed"]`` is the exit's logits alone.
    """
    exit_logits = max(checks["fixed"], unembed) if whole_vocabulary else checks["fixed"]
    bare = [seconds for kind, seconds in checks.items() if kind != "fixed" and not RULES[kind].needs_logits]
    least = max([exit_logits, *bare])
    check = {kind: max(seconds, least) if RULES[kind].needs_logits else seconds for kind, seconds in checks.items()}
    rising = tuple(np.maximum.accumulate(np.asarray(block)).tolist())
    return TimeModel(_WIDTHS, rising, unembed, max(0.0, step), {**check, "fixed": 0.0}, exit_logits)


def _timed_layer(n_layers: int, reader: ExitReader | None) -> int:
    """Where exit checks are timed: the deepest exit below the last layer (its head, if there are heads)."""
    if reader is None or not reader.layers:
        return max(1, n_layers - 1)
    return next((j for j in reversed(reader.layers) if j < n_layers), reader.layers[-1])


def _block_times(depths: Depths, context: int, repeats: int) -> tuple[float, ...]:
    """Seconds of one block by the tokens in it: all blocks are run, since together they are larger than the cache."""
    n, out = depths.runner.n_layers, []
    for width in _WIDTHS:
        while int(depths.lengths[0]) - context < width:
            depths.append(_ROW, torch.tensor([int(depths.lengths[0]) % depths.runner.lm.vocab_size]))

        def pass_through() -> None:
            depths.depth[0, context : int(depths.lengths[0])] = 0
            depths.advance(_ROW, 1, n)

        out.append(_best(pass_through, repeats) / n)
    return tuple(out)


def _check_time(session: ExitSession, layer: int, repeats: int, before: Callable[[], None]) -> float:
    """Seconds of one exit check of one row, its logits included where the policy looks at them."""
    tops, same = np.full(1, -1), np.zeros(1, dtype=np.int64)
    state, limit = session.depths.last(_ROW), session.policy.threshold
    return _best(lambda: session.check(state, state, layer, _ROW, tops, same, limit), repeats, before)


def _short_generation(lm: LayeredModel, ids: list[int], tokens: int = 10) -> float:
    """Seconds a token of decoding that never exits, without the prompt's pass."""

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

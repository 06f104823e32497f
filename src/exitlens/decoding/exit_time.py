"""How long a policy will take on this machine, from a few measured pieces: no generation is run to predict it.

Time of an answer token at batch 1: ``step + e·block + (e + caught up)·token + asks·ask + exit``, with e its exit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UnsupportedModel
from ..models.native import runner_of
from .depths import Depths
from .exit_analysis import Array, Outcome
from .exits import Reader, Scorer, logit_reader
from .policies import Ask, ExitPolicy

__all__ = ["TimeModel", "measure_times"]


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Seconds at batch 1: running one block at all, each token in it, logits at N, what a step costs besides.

    ``ask[kind]``: one question to a policy, its logits included; ``exit_logits``: logits at an exit for policies that
    ask without them.
    """

    block: float
    token: float
    unembed: float
    step: float
    ask: Mapping[str, float]
    exit_logits: float

    def full(self, n_layers: int) -> float:
        """Seconds a token of the full model, run by the same machinery."""
        return self.step + n_layers * (self.block + self.token) + self.unembed

    def seconds(self, outcome: Outcome, kind: str, n_layers: int, extra: Array) -> float:
        """Mean seconds a token under a policy of ``kind``; ``extra [T]``: blocks run for tokens that had left."""
        e = outcome.exit.astype(np.float64)
        asks = outcome.asked * self.ask.get(kind, 0.0)
        leaves = outcome.exit < n_layers
        shown = kind in ("probability", "margin", "entropy", "patience")
        last = np.where(leaves, 0.0 if shown else self.exit_logits, self.unembed)
        return float((self.step + e * self.block + (e + extra) * self.token + asks + last).mean())


@torch.no_grad()
def measure_times(
    lm: Any, *, reader: Reader | None = None, scorer: Scorer | None = None, context: int = 96, repeats: int = 30
) -> TimeModel:
    """Time the pieces on this machine, as medians of ``repeats``.

    Raises :class:`UnsupportedModel` for a model whose blocks cannot be run apart.
    """
    runner = runner_of(lm)
    if runner is None:
        raise UnsupportedModel(f"{lm.name}: its blocks cannot be run apart, so no time can be predicted for leaving")
    widths = (1, 4, 12)
    n = lm.n_layers
    kv = runner.new_kv(1, context + max(widths) + 1)
    row = np.array([0])
    by_width = []
    for width in widths:
        d = Depths(runner, kv, torch.tensor([context]))
        for i in range(width):
            d.append(row, torch.tensor([(7 * i + 5) % lm.vocab_size]))

        def pass_through(d: Depths = d) -> None:
            d.depth[0, context : int(d.lengths[0])] = 0
            for block in range(1, n + 1):
                d.advance(row, block)

        by_width.append(_median(pass_through, max(5, repeats // 3)) / n)
    token, block = np.polyfit(widths, by_width, 1)
    state = torch.randn(1, lm.d_model, dtype=lm.dtype, device=lm.device)
    read = reader or logit_reader(lm)
    layer = max(1, n - 1)
    ask: dict[str, float] = {"fixed": 0.0, "never": 0.0}
    for kind in ("probability", "margin", "entropy", "patience", "cosine", "classifier"):
        if kind == "classifier" and scorer is None:
            continue
        policy = ExitPolicy(kind, 1.0)

        def question(policy: ExitPolicy = policy) -> None:
            shown = Ask(state=state, previous=state, unchanged=torch.ones(1))
            if policy.needs_logits:
                shown.logits = read(state, layer)
                shown.logits.argmax(-1).cpu()
            elif policy.kind == "classifier" and scorer is not None:
                shown.score = scorer(state, layer)
            policy.decide(shown, 1, 1.0)

        ask[kind] = _median(question, repeats)

    def begin() -> None:
        d = Depths(runner, kv, torch.tensor([context]))
        d.append(row, torch.tensor([5]))

    return TimeModel(
        block=max(float(block), 0.0),
        token=max(float(token), 0.0),
        unembed=_median(lambda: lm.logits(state, n).float().argmax(-1).cpu(), repeats),
        step=_median(begin, repeats),
        ask=ask,
        exit_logits=_median(lambda: read(state, layer).argmax(-1).cpu(), repeats),
    )


def _median(work: Callable[[], Any], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return float(np.median(times))

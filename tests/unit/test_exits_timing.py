"""Predicted times: whatever noise the pieces were measured with, more work never takes less time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exitlens.exits.policies import RULES
from exitlens.exits.replay_policies import Outcome, block_widths
from exitlens.exits.timing import TimeModel, consistent

TOKENS, LAYERS = 30, 12


def noisy(seed: int, heads: bool) -> TimeModel:
    """Pieces as a disturbed machine may give them: a check faster than its logits, wide blocks faster than narrow."""
    rng = np.random.default_rng(seed)
    checks: dict[Any, float] = {kind: float(rng.uniform(0, 2)) for kind in RULES if kind != "never"}
    return consistent(rng.uniform(0.5, 2, 6).tolist(), float(rng.uniform(0, 2)), float(rng.uniform(-1, 1)), checks,
                      whole_vocabulary=not heads)  # fmt: skip


def outcome(exits: np.ndarray, checks: np.ndarray) -> tuple[Outcome, np.ndarray]:
    exited = exits < LAYERS
    made = Outcome("x", exits, exited, exits.astype(float), 1.0, checks, exited)
    return made, block_widths(exits, np.zeros(len(exits)), np.arange(len(exits)))


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_more_work_never_takes_less_time(seed: int, heads: bool) -> None:
    times = noisy(seed, heads)
    rng = np.random.default_rng(100 + seed)
    never, widths = outcome(np.full(TOKENS, LAYERS), np.zeros(TOKENS, dtype=int))
    base = times.seconds(never, "never", widths)
    assert base == pytest.approx(times.full(LAYERS))
    checks = rng.integers(1, 6, TOKENS)
    every, widths = outcome(np.full(TOKENS, LAYERS), checks)  # all blocks, and checks that change nothing
    for kind, rule in RULES.items():
        if kind in ("fixed", "never"):
            continue
        cost = times.seconds(every, kind, widths)
        assert cost >= base
        more, _ = outcome(np.full(TOKENS, LAYERS), checks + 1)
        assert times.seconds(more, kind, widths) >= cost
        if rule.needs_logits:  # three unembeddings cost more than three looks at a state
            assert cost >= times.seconds(every, "cosine", widths)
            assert cost >= times.seconds(every, "classifier", widths)
    together = np.zeros((1, 8))  # one token whose blocks run so many tokens at once
    for width in range(1, 7):
        row, more_row = together.copy(), together.copy()
        row[0, width], more_row[0, width + 1] = LAYERS, LAYERS
        one, _ = outcome(np.array([LAYERS]), np.array([0]))
        assert times.seconds(one, "never", more_row) >= times.seconds(one, "never", row)

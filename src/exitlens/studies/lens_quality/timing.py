"""What reading costs: the time of reading every inner layer at every token, relative to the pass itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from exitlens.lenses.lens import Lens
from exitlens.lenses.read_hidden import readout
from exitlens.models.protocol import LayeredModel

__all__ = ["reading_costs"]

TOKENS = 32  # of the text that is read
ROUNDS = 5


@torch.no_grad()
def reading_costs(
    lm: LayeredModel, lenses: Sequence[tuple[str, Lens]], layers: Sequence[int], ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Seconds of reading the top-1 token at ``layers`` of each token, over seconds of a pass that reads nothing.

    Pass and lenses take turns, so that a busy moment of the machine meets all of them.

    Args:
        lm: The model.
        lenses: By the names that tables call them.
        layers: Which layers are read.
        ids: A text; its first tokens are timed.

    Returns:
        For each lens ``lens``, ``cost`` (median over the rounds), ``cost_low`` and ``cost_high`` (least and most),
        ``tokens``, ``rounds``.
    """
    text = torch.tensor([list(ids[:TOKENS])], device=lm.device)
    hidden = {j: h[0] for j, h in lm.forward(text, layers=layers).hidden.items()}
    spent: dict[str, list[float]] = {name: [] for name, _ in lenses}
    for _, lens in lenses:  # what is made on first use is not the cost of reading
        _timed(lm, lambda lens=lens: readout(lm, hidden, lens=lens, stats=("max_probability",)))
    for _ in range(ROUNDS):
        bare = _timed(lm, lambda: lm.forward(text))
        for name, lens in lenses:
            read = _timed(lm, lambda lens=lens: readout(lm, hidden, lens=lens, stats=("max_probability",)))
            spent[name].append(read / bare)
    return [
        {
            "lens": name,
            "cost": float(np.median(spent[name])),
            "cost_low": min(spent[name]),
            "cost_high": max(spent[name]),
            "tokens": text.shape[1],
            "rounds": ROUNDS,
        }
        for name, _ in lenses
    ]


def _timed(lm: LayeredModel, work: Any) -> float:
    begun = time.perf_counter()
    work()
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)
    return time.perf_counter() - begun

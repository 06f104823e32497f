"""Fit exit heads on windows of text and say what they gained, on windows that no head saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exitlens.exits.heads import ExitHeads, train_heads
from exitlens.exits.replay_policies import Cost, Signals, oracle, signals_of
from exitlens.exits.shortlist import ExitReader
from exitlens.models.protocol import LayeredModel
from exitlens.studies.exits.files import record_states
from exitlens.studies.exits.tables import policy_table

__all__ = ["Gain", "fit_heads", "measure"]


@dataclass(frozen=True, slots=True)
class Gain:
    """Agreement with the full model by exit, mean saturation layer over the exits, and the most FLOPs that any policy
    saves at an agreement of ``level`` or more (0: none saves any)."""

    agreement: Mapping[int, float]
    saturation_layer: float
    flops_saved: float
    policy: str
    level: float


def fit_heads(
    lm: LayeredModel,
    windows: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    shortlist_size: int = 4096,
    rank: int = 64,
    epochs: int = 3,
    seed: int = 0,
    tick: Callable[[int], None] | None = None,
) -> tuple[ExitHeads, Gain, Gain]:
    """Heads, and what exits were worth before and after on the last tenth of the windows, which no head saw.

    Raises what :func:`exitlens.exits.heads.train_heads` raises.
    """
    held = max(1, len(windows) // 10)
    hidden, _, _ = record_states(lm, windows[:-held], layers, tick=tick)
    heads = train_heads(
        lm, hidden, layers=layers, shortlist_size=shortlist_size, rank=rank, epochs=epochs, seed=seed,
        texts=windows[:-held], progress=None if tick is None else lambda _done, _total: tick(1),
    )  # fmt: skip
    return heads, measure(lm, windows[-held:], layers), measure(lm, windows[-held:], layers, heads=heads)


def measure(
    lm: LayeredModel,
    windows: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    heads: ExitHeads | None = None,
    teacher: Any = None,
    level: float = 0.98,
) -> Gain:
    """What exits are worth on ``windows``; with ``teacher``, agreement is with that model's last layer."""
    hidden, question, step = record_states(lm, windows, layers)
    upper = [j for j in layers if j >= lm.n_layers // 2] or list(
        layers
    )  # policies check there; the others are for drafts
    cost = Cost.of(lm, heads)
    signals = signals_of(
        lm, hidden, question, step, layers=layers, reader=ExitReader(lm, heads), texts=windows, places=step
    )
    if teacher is not None:
        states = record_states(teacher, windows, [])[0]
        top = signals.top.copy()
        top[-1] = np.concatenate(
            [
                teacher.logits(states[teacher.n_layers][at : at + 64], teacher.n_layers).argmax(-1).cpu().numpy()
                for at in range(0, signals.tokens, 64)
            ]
        )
        signals = Signals(signals.layers, signals.n_layers, top, signals.values, question, step)
    agreement = {j: float((signals.top[e] == signals.top[-1]).mean()) for e, j in enumerate(signals.layers)}
    signals = _only(signals, upper)
    table = policy_table(signals, cost)
    able = table[(table["policy"] != "oracle") & (table["agreement"] >= level) & (table["flops_saved"] > 0)]
    best = able.sort_values("flops_saved").iloc[-1] if len(able) else None
    return Gain(
        agreement=agreement,
        saturation_layer=float(oracle(signals, cost).exit.mean()),
        flops_saved=0.0 if best is None else float(best["flops_saved"]),
        policy="none" if best is None else f"{best['policy']} {best['threshold']:g}",
        level=level,
    )


def _only(signals: Signals, layers: Sequence[int]) -> Signals:
    """Signals of some exits. Those that compare with the exit before are left out where that is another one now."""
    rows = [e for e, j in enumerate(signals.layers) if j in layers]
    if len(rows) == len(signals.layers):
        return signals
    values = {kind: v[rows] for kind, v in signals.values.items() if kind not in ("cosine", "patience")}
    kept = tuple(signals.layers[e] for e in rows)
    return Signals(kept, signals.n_layers, signals.top[[*rows, -1]], values, signals.question, signals.step)

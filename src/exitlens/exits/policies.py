"""When to leave: policies that look at a layer's state or distribution and say *go on* or *exit*, a row at a time.

Definitions: CALM (Schuster et al. 2022: probability, margin, hidden-state saturation, learned classifier), patience
(Zhou et al. 2020), and entropy. ``signal`` is computed from what a layer shows; ``decide`` holds it to the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.errors import InputError, layer_range_error
from exitlens.exits.policy_text import Kind, check_threshold, read_policy

__all__ = ["ExitPolicy", "ExitQuery", "entropy_of", "parse_policy"]

_NEEDS_LOGITS = frozenset({"probability", "margin", "entropy", "patience"})


def entropy_of(log_p: Tensor) -> Tensor:
    """Entropy in nats of log-probabilities ``[..., vocab]``; −inf (outside a head's shortlist) adds nothing."""
    return -(log_p.exp() * log_p.clamp_min(-1e4)).sum(-1)


@dataclass(slots=True)
class ExitQuery:
    """What a policy sees at one exit, for the rows still going: only what it declared that it needs.

    ``logits [rows, vocab]``; ``state`` and ``previous`` (at the exit asked before, else None) ``[rows, d_model]``;
    ``unchanged [rows]``: at how many exits in a row the top token has been the same, this one included; ``score
    [rows]``: the classifier's probability that the top token is already the final one.
    """

    logits: Tensor | None = None
    state: Tensor | None = None
    previous: Tensor | None = None
    unchanged: Tensor | None = None
    score: Tensor | None = None


@dataclass(frozen=True, slots=True)
class ExitPolicy:
    """Leave at the first of ``layers`` where the signal passes ``threshold``.

    ``probability``, ``margin``, ``cosine``, ``classifier``: at least the threshold; ``entropy``: at most it (nats);
    ``patience``: the top token unchanged at ``threshold`` exits in a row; ``fixed``: at the first of ``layers``;
    ``never``: not at all. ``decay``: CALM's ``λ(t) = 0.9λ + 0.1λ·exp(−4t/T)`` for token t of T.
    """

    kind: Kind
    threshold: float = 0.0
    layers: tuple[int, ...] = ()
    decay: bool = False

    def __post_init__(self) -> None:
        check_threshold(self.kind, self.threshold)

    @property
    def needs_logits(self) -> bool:
        """True when asking costs an unembedding."""
        return self.kind in _NEEDS_LOGITS

    @property
    def name(self) -> str:
        """``kind≥threshold`` in words short enough for a table."""
        if self.kind in ("never",):
            return "never"
        if self.kind == "fixed":
            return f"fixed:{self.layers[0]}" if self.layers else "fixed"
        sign = "≤" if self.kind == "entropy" else "≥"
        return f"{self.kind}{sign}{self.threshold:g}"

    def exits(self, n_layers: int, *, last: bool = False) -> tuple[int, ...]:
        """The layers asked at, in order; ``last``: layer N too, where a head saves the full vocabulary product.

        Raises :class:`LayerError` for a layer outside 1..N−1 (1..N).
        """
        if self.kind == "never":
            return ()
        end, more = _bounds(n_layers, last)
        layers = self.layers or tuple(range(max(1, n_layers // 2), end + 1))
        for layer in layers:
            if not 1 <= layer <= end:
                raise layer_range_error(layer, 1, end, what="exit layer", more=more)
        return tuple(sorted(layers))

    def limit(self, step: int, steps: int) -> float:
        """The threshold at answer token ``step`` (from 0) of at most ``steps``."""
        if not self.decay:
            return self.threshold
        return 0.9 * self.threshold + 0.1 * self.threshold * math.exp(-4.0 * step / max(steps, 1))

    def signal(self, ask: ExitQuery) -> Tensor | None:
        """The number ``[rows]`` that is compared, or None where there is none yet (cosine at the first exit)."""
        if self.kind in ("probability", "margin", "entropy"):
            if ask.logits is None:
                raise InputError(f"exit policy {self.kind} needs logits")
            log_p = ask.logits.float().log_softmax(-1)
            if self.kind == "entropy":
                return entropy_of(log_p)
            if self.kind == "probability":
                return log_p.amax(-1).exp()
            top = log_p.topk(2, dim=-1).values.exp()
            return top[:, 0] - top[:, 1]
        if self.kind == "patience":
            return None if ask.unchanged is None else ask.unchanged.float()
        if self.kind == "cosine":
            if ask.previous is None or ask.state is None:
                return None
            return torch.cosine_similarity(ask.state.float(), ask.previous.float(), dim=-1)
        if self.kind == "classifier":
            return ask.score
        return None

    def decide(self, ask: ExitQuery, rows: int, limit: float) -> Tensor:
        """True ``[rows]`` where a row leaves."""
        if self.kind == "fixed":
            return torch.ones(rows, dtype=torch.bool)
        signal = self.signal(ask)
        if signal is None:
            return torch.zeros(rows, dtype=torch.bool)
        return (signal <= limit if self.kind == "entropy" else signal >= limit).cpu()


def parse_policy(text: str, n_layers: int, *, last: bool = False) -> ExitPolicy:
    """``probability:0.9``, ``probability:0.9@15,20,25``, ``fixed:20``, ``patience:3``, ``never``.

    Layers are in the grammar of :mod:`exitlens.layer_range`. ``last``: see :meth:`ExitPolicy.exits`. Raises
    :class:`InputError` and :class:`LayerError`.
    """
    read = read_policy(text)
    layers: tuple[int, ...] = ()
    if read.layers is not None:
        end, more = _bounds(n_layers, last)
        layers = read.layers.resolve(n_layers, first=1, last=end, what="exit layer", more=more)
    policy = ExitPolicy(read.kind, read.threshold, layers)
    policy.exits(n_layers, last=last)
    return policy


def _bounds(n_layers: int, last: bool) -> tuple[int, str]:
    """The highest exit layer, and what the error for a higher one adds: a trained head makes layer N an exit too."""
    return (n_layers, "") if last else (n_layers - 1, f", and {n_layers} with a trained head there")

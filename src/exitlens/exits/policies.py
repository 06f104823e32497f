"""When to exit: policies that look at a layer's state or distribution and say *go on* or *exit*, a row at a time.

Sources: CALM (Schuster et al. 2022, arXiv 2207.07061: probability, margin, hidden-state saturation, learned
classifier), BranchyNet (Teerapittayanon et al. 2016, arXiv 1709.01686: entropy), PABEE (Zhou et al. 2020, arXiv
2006.04152: patience). A kind of policy is one :class:`Rule`: to add one, write its signal and a line of :data:`RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from exitlens.errors import InputError, layer_range_error
from exitlens.layer_range import LayerRange, parse_layers

if TYPE_CHECKING:  # torch loads only when a policy meets a state: a misspelt policy is told at once
    from torch import Tensor

__all__ = ["KINDS", "RULES", "ExitPolicy", "ExitQuery", "Kind", "Rule", "entropy_of", "parse_policy"]

Kind = Literal["probability", "margin", "entropy", "patience", "cosine", "classifier", "fixed", "never"]


@dataclass(slots=True)
class ExitQuery:
    """What a policy sees at one exit, for the rows still going: only what it declared that it needs.

    ``logits [rows, vocab]``; ``state`` and ``previous`` (at the exit before, else None) ``[rows, d_model]``;
    ``unchanged [rows]``: at how many exits in a row the top token has been the same, this one included;
    ``confidence [rows]``: the classifier's probability that the top token is already the final one.
    """

    logits: Tensor | None = None
    state: Tensor | None = None
    previous: Tensor | None = None
    unchanged: Tensor | None = None
    confidence: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of policy.

    ``signal``: the number ``[rows]`` that is compared, or None where there is none (yet). ``low``..``high`` bound the
    threshold. ``at_most``: a row exits where the signal is at most the threshold, else at least. ``needs_logits``: an
    exit check costs an unembedding. ``grid``: thresholds that tables show, from strict to loose.
    """

    signal: Callable[[ExitQuery], Tensor | None]
    low: float = -math.inf
    high: float = math.inf
    at_most: bool = False
    needs_logits: bool = False
    grid: tuple[float, ...] = ()


def entropy_of(log_p: Tensor) -> Tensor:
    """Entropy in nats of log-probabilities ``[..., vocab]``; −inf (outside a head's shortlist) adds nothing."""
    return -(log_p.exp() * log_p.clamp_min(-1e4)).sum(-1)


def _log_p(query: ExitQuery) -> Tensor:
    if query.logits is None:
        raise InputError("this exit policy needs logits")
    return query.logits.float().log_softmax(-1)


def _probability(query: ExitQuery) -> Tensor:
    """``max_v p_j(v)`` (CALM's softmax response)."""
    return _log_p(query).amax(-1).exp()


def _margin(query: ExitQuery) -> Tensor:
    """``p_j(1) − p_j(2)``, the two most probable tokens."""
    top = _log_p(query).topk(2, dim=-1).values.exp()
    return top[:, 0] - top[:, 1]


def _entropy(query: ExitQuery) -> Tensor:
    """``H(p_j)`` in nats."""
    return entropy_of(_log_p(query))


def _patience(query: ExitQuery) -> Tensor | None:
    """At how many exits in a row the top token has been the same."""
    return None if query.unchanged is None else query.unchanged.float()


def _cosine(query: ExitQuery) -> Tensor | None:
    """``cos(h_j, h_i)``, i the exit before (CALM's hidden-state saturation): none at the first exit."""
    from torch import cosine_similarity

    if query.previous is None or query.state is None:
        return None
    return cosine_similarity(query.state.float(), query.previous.float(), dim=-1)


RULES: Mapping[Kind, Rule] = {
    "probability": Rule(_probability, 0.0, 1.0, needs_logits=True, grid=(0.99, 0.95, 0.9, 0.8, 0.7, 0.5)),
    "margin": Rule(_margin, 0.0, 1.0, needs_logits=True, grid=(0.95, 0.9, 0.7, 0.5, 0.3)),
    "entropy": Rule(_entropy, 0.0, at_most=True, needs_logits=True, grid=(0.05, 0.1, 0.25, 0.5, 1.0, 2.0)),
    "patience": Rule(_patience, 1.0, needs_logits=True, grid=(8.0, 6.0, 4.0, 3.0, 2.0)),
    "cosine": Rule(_cosine, -1.0, 1.0, grid=(0.999, 0.995, 0.99, 0.98, 0.95, 0.9)),
    "classifier": Rule(lambda query: query.confidence, 0.0, 1.0, grid=(0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5)),
    "fixed": Rule(lambda _query: None),
    "never": Rule(lambda _query: None),
}
KINDS: tuple[Kind, ...] = tuple(RULES)


@dataclass(frozen=True, slots=True)
class ExitPolicy:
    """Exit at the first of ``layers`` where the signal of ``kind`` passes ``threshold``.

    ``layers``: numbers, or a range of layers not yet those of a model; none: the default of the model (:meth:`exits`).
    ``fixed`` exits at the first of its layers, ``never`` not at all. ``decay``: CALM's ``λ(t) = 0.9λ +
    0.1λ·exp(−4t/T)`` for token t of T: what is wrong early in an answer misleads all that follows.
    """

    kind: Kind
    threshold: float = 0.0
    layers: tuple[int, ...] | LayerRange = ()
    decay: bool = False

    def __post_init__(self) -> None:
        if self.kind not in RULES:
            raise InputError(f"unknown exit policy {str(self.kind)[:80]!r}: use {', '.join(KINDS)}")
        if not self.rule.low <= self.threshold <= self.rule.high:
            raise InputError(
                f"threshold {self.threshold} is out of range for {self.kind}: use {self.rule.low:g} to "
                f"{self.rule.high:g}"
            )

    @property
    def rule(self) -> Rule:
        """What its kind does."""
        return RULES[self.kind]

    @property
    def needs_logits(self) -> bool:
        """True when an exit check costs an unembedding."""
        return self.rule.needs_logits

    @property
    def name(self) -> str:
        """``kind≥threshold`` in words short enough for a table."""
        if self.kind == "never":
            return "never"
        if self.kind == "fixed":
            where = self.layers.text if isinstance(self.layers, LayerRange) else ",".join(map(str, self.layers))
            return f"fixed:{where}" if where else "fixed"
        return f"{self.kind}{'≤' if self.rule.at_most else '≥'}{self.threshold:g}"

    def exits(self, n_layers: int, *, last: bool = False) -> tuple[int, ...]:
        """The layers with an exit check, in order: the upper half, unless there are ``layers``.

        ``last``: layer N may be one, where a head saves the full vocabulary product. Raises :class:`LayerError` for a
        layer outside 1..N−1 (1..N).
        """
        if self.kind == "never":
            return ()
        end, more = (n_layers, "") if last else (n_layers - 1, f", and {n_layers} with a trained head there")
        if isinstance(self.layers, LayerRange):
            return self.layers.resolve(n_layers, first=1, last=end, what="exit layer", more=more)
        layers = self.layers or range(max(1, n_layers // 2), end + 1)
        for layer in layers:
            if not 1 <= layer <= end:
                raise layer_range_error(layer, 1, end, what="exit layer", more=more)
        return tuple(sorted(layers))

    def at(self, layers: tuple[int, ...]) -> ExitPolicy:
        """The same with other layers."""
        return replace(self, layers=layers)

    def limit(self, step: int, steps: int) -> float:
        """The threshold at answer token ``step`` (from 0) of at most ``steps``."""
        if not self.decay:
            return self.threshold
        return 0.9 * self.threshold + 0.1 * self.threshold * math.exp(-4.0 * step / max(steps, 1))

    def decide(self, query: ExitQuery, rows: int, limit: float) -> Tensor:
        """True ``[rows]`` where a row exits."""
        import torch

        signal = self.rule.signal(query)
        if signal is None:
            return torch.full((rows,), self.kind == "fixed")
        return (signal <= limit if self.rule.at_most else signal >= limit).cpu()


def parse_policy(text: str) -> ExitPolicy:
    """``probability:0.9``, ``probability:0.9@15,20,25``, ``margin:0.5@1/2-last``, ``fixed:3/4``, ``never``.

    No model is needed; whether the layers exist is told by :meth:`ExitPolicy.exits`. Raises :class:`InputError`.
    """
    body, at, where = text.strip().partition("@")
    kind, _, value = body.partition(":")
    if kind not in KINDS:
        raise InputError(f"unknown exit policy {kind[:80]!r}: use {', '.join(KINDS)}")
    if kind in ("fixed", "never"):
        if at:
            raise InputError(f"exit policy {text[:80]!r} takes no @layers: write fixed:20 or never")
        if kind == "fixed" and not value:
            raise InputError(f"exit policy {text[:80]!r} needs its layer: write fixed:20 or fixed:3/4")
        return ExitPolicy(kind, layers=parse_layers(value)) if kind == "fixed" else ExitPolicy(kind)
    if not value:
        raise InputError(f"exit policy {kind!r} needs a threshold: write {kind}:0.9")
    try:
        threshold = float(value)
    except ValueError:
        raise InputError(f"exit policy {text[:80]!r} is not understood: write probability:0.9@15,20") from None
    return ExitPolicy(kind, threshold, parse_layers(where) if at else ())

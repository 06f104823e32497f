"""How is an exit policy written: ``probability:0.9@15,20``, ``fixed:3/4``, ``never``. Read without model and torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from exitlens.errors import InputError
from exitlens.layer_range import LayerRange, parse_layers

__all__ = ["KINDS", "Kind", "PolicyText", "check_threshold", "read_policy"]

Kind = Literal["probability", "margin", "entropy", "patience", "cosine", "classifier", "fixed", "never"]
_BOUNDS: dict[str, tuple[float, float] | None] = {
    "probability": (0.0, 1.0),
    "margin": (0.0, 1.0),
    "entropy": (0.0, math.inf),
    "patience": (1.0, math.inf),
    "cosine": (-1.0, 1.0),
    "classifier": (0.0, 1.0),
    "fixed": None,
    "never": None,
}
KINDS = tuple(_BOUNDS)


@dataclass(frozen=True, slots=True)
class PolicyText:
    """An exit policy as it was written; its ``layers`` are not yet those of a model (None: the policy's usual ones)."""

    kind: Kind
    threshold: float
    layers: LayerRange | None


def check_threshold(kind: str, threshold: float) -> None:
    """Raise InputError for an unknown kind of policy, and for a threshold outside its bounds."""
    if kind not in _BOUNDS:
        raise InputError(f"unknown exit policy {kind[:80]!r}: use {', '.join(KINDS)}")
    bounds = _BOUNDS[kind]
    if bounds is not None and not bounds[0] <= threshold <= bounds[1]:
        raise InputError(f"threshold {threshold} is out of range for {kind}: use {bounds[0]:g} to {bounds[1]:g}")


def read_policy(text: str) -> PolicyText:
    """A policy out of its text. Raises InputError."""
    body, at, where = text.strip().partition("@")
    kind, _, value = body.partition(":")
    if kind not in _BOUNDS:
        raise InputError(f"unknown exit policy {kind[:80]!r}: use {', '.join(KINDS)}")
    if _BOUNDS[kind] is None:
        if at:
            raise InputError(f"exit policy {text[:80]!r} takes no @layers: write fixed:20 or never")
        if kind == "fixed" and not value:
            raise InputError(f"exit policy {text[:80]!r} needs its layer: write fixed:20 or fixed:3/4")
        return PolicyText(cast(Kind, kind), 0.0, parse_layers(value) if kind == "fixed" else None)
    if not value:
        raise InputError(f"exit policy {kind!r} needs a threshold: write {kind}:0.9")
    try:
        threshold = float(value)
    except ValueError:
        raise InputError(f"exit policy {text[:80]!r} is not understood: write probability:0.9@15,20") from None
    check_threshold(kind, threshold)
    return PolicyText(cast(Kind, kind), threshold, parse_layers(where) if at else None)

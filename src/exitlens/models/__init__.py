"""Causal language models, seen layer by layer. The names load what they need on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exitlens.lazy import lazy_names

if TYPE_CHECKING:
    from exitlens.models.checkpoint.loading import load as load
    from exitlens.models.checkpoint.loading import wrap as wrap
    from exitlens.models.layered import Layered as Layered
    from exitlens.models.protocol import LayeredModel as LayeredModel
    from exitlens.models.protocol import LogitTransform as LogitTransform
    from exitlens.models.protocol import Parity as Parity
    from exitlens.models.protocol import Pass as Pass

_HOME = {
    "Layered": "layered",
    "LayeredModel": "protocol",
    "LogitTransform": "protocol",
    "Parity": "protocol",
    "Pass": "protocol",
    "load": "checkpoint.loading",
    "wrap": "checkpoint.loading",
}

__all__ = list(_HOME)

__getattr__ = lazy_names(__name__, _HOME)

"""Causal language models, seen layer by layer."""

from exitlens.models.layered import Layered
from exitlens.models.loading import load, wrap
from exitlens.models.protocol import LayeredModel, LogitTransform, Parity, Pass

__all__ = ["Layered", "LayeredModel", "LogitTransform", "Parity", "Pass", "load", "wrap"]

"""Causal language models, seen layer by layer."""

from .huggingface import load, wrap
from .layered import Layered
from .protocol import LayeredModel, Parity, Pass, Post

__all__ = ["Layered", "LayeredModel", "Parity", "Pass", "Post", "load", "wrap"]

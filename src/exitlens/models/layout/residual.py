"""Where the residual stream lies in what a block is given and gives, and how it becomes ``[batch, seq, width]``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Stream", "at", "first_tensor", "floats"]


def floats(value: Any, path: tuple[Any, ...] = (), depth: int = 3) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Every floating-point tensor in nested tuples, lists and dicts (model outputs too), with the way to it."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path, value
    elif depth and isinstance(value, dict):
        for key, part in value.items():
            yield from floats(part, (*path, key), depth - 1)
    elif depth and isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from floats(part, (*path, i), depth - 1)


def first_tensor(value: Any) -> Tensor | None:
    """The first floating-point tensor in a module's output or arguments."""
    return next((tensor for _, tensor in floats(value)), None)


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """What lies at ``path`` in nested tuples and dicts; None where the way ends early."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


@dataclass(frozen=True, slots=True)
class Stream:
    """Where the stream lies and how its axes are ordered.

    ``kind``: "rows first" ``[batch, seq, d]``, "positions first" ``[seq, batch, d]``, "stacked" ``[k, batch, seq, d]``
    or "split" ``[batch, seq, k, d]``; the last two are k streams side by side and are packed to width ``k * d``.
    ``enters``: the way to it in a block's ``(args, kwargs)``; ``leaves``: in a block's output. ``entry``: the module
    whose input is layer 0 where that is not the first block.
    """

    kind: str = "rows first"
    count: int = 1
    enters: tuple[Any, ...] = (0, 0)
    leaves: tuple[Any, ...] = ()
    entry: nn.Module | None = None

    def pack(self, h: Tensor, rows: int | None = None, seq: int | None = None) -> Tensor:
        """The model's own layout → ``[batch, seq, width]``.

        ``rows`` unfolds ``[batch * seq, d]``; ``seq`` leaves out what a model puts before the text (CPM-Ant's prompts).
        """
        if self.kind == "positions first":
            return h.transpose(0, 1)
        if self.kind == "stacked":
            return h.permute(1, 2, 0, 3).flatten(2)
        if self.kind == "split":
            return h.flatten(2)
        if h.dim() == 2 and rows is not None:
            return h.reshape(rows, -1, h.shape[-1])
        return h if seq is None or h.shape[1] <= seq else h[:, -seq:]

    def unpack(self, h: Tensor) -> Tensor:
        """``[batch, seq, width]`` → the model's own layout."""
        if self.kind == "positions first":
            return h.transpose(0, 1)
        if self.kind == "stacked":
            return h.reshape(*h.shape[:2], self.count, -1).permute(2, 0, 1, 3)
        if self.kind == "split":
            return h.reshape(*h.shape[:2], self.count, -1)
        return h

    @classmethod
    def of(cls, h: Tensor, rows: int, seq: int) -> Stream | None:
        """The layout of ``h`` in a pass of ``rows`` × ``seq`` tokens, or None when it is no residual stream."""
        shape = tuple(h.shape)
        if len(shape) == 3 and shape[:2] == (rows, seq):
            return cls()
        if len(shape) == 3 and shape[:2] == (seq, rows):
            return cls("positions first")
        if len(shape) == 3 and shape[0] == rows and shape[1] > seq:
            return cls()
        if len(shape) == 2 and shape[0] == rows * seq:
            return cls()
        if len(shape) == 4 and shape[1:3] == (rows, seq):
            return cls("stacked", shape[0])
        if len(shape) == 4 and shape[:2] == (rows, seq):
            return cls("split", shape[2])
        return None

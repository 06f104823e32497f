"""Record what modules see while a model runs, and leave no hook behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["evaluating", "first_tensor", "record_blocks"]


def first_tensor(value: Any) -> Tensor | None:
    """The hidden state in a module's output: itself, the first tensor of a tuple, or of a model output."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list) and value:
        return first_tensor(value[0])
    return None


def _input_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if args:
        return first_tensor(args)
    return first_tensor(kwargs.get("hidden_states"))


@contextmanager
def record_blocks(
    blocks: Sequence[nn.Module],
    layers: Sequence[int],
    positions: Literal["all", "last"],
    into: dict[int, Tensor],
) -> Iterator[None]:
    """While open, put the residual stream at ``layers`` (0 = what enters block 1) into ``into``."""

    def keep(h: Tensor | None, layer: int) -> None:
        if h is None:
            return
        # A slice of a long prompt would keep the whole of it alive.
        into[layer] = h[:, -1:].detach().clone() if positions == "last" and h.shape[1] > 1 else h.detach()

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(_input_tensor(args, kwargs), 0)

    def leave(layer: int) -> Callable[..., None]:
        return lambda _module, _args, output: keep(first_tensor(output), layer)

    handles = []
    try:
        for layer in layers:
            if layer == 0:
                handles.append(blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
            else:
                handles.append(blocks[layer - 1].register_forward_hook(leave(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run ``model`` without dropout and without gradients, and put every module's mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True

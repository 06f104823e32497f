"""What reading a layer takes, on the device that holds the layer: the final norm and the unembedding, copied there.

Of a model spread over several devices, the states of a layer stay where its block lies: a copy of the unembedding
(``vocab × width`` numbers) goes to each device once, instead of every state to the unembedding.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from exitlens.compute.memory import free_bytes
from exitlens.models.layered import Layered
from exitlens.models.layout.final_path import FinalPath, TailStep
from exitlens.models.protocol import LayeredModel

__all__ = ["reading_end"]

_SHARE = 0.5  # of a device's free memory that a copy may take

_HELD: WeakKeyDictionary[Any, dict[torch.device, tuple[Any, Layered]]] = WeakKeyDictionary()


def reading_end(lm: LayeredModel, device: torch.device) -> LayeredModel | None:
    """``lm`` itself where its unembedding lies on ``device``, else one that reads there, with the same numbers.

    Only ``norm``, ``weight``, ``bias`` and ``logit_transform`` of what is returned are on ``device``: it reads states,
    and runs nothing. Kept for as long as the model's weights stay the same.

    Returns:
        None where the way to the unembedding is no chain of modules that can be copied, on the CPU, and where the
        device has no room for the copy.
    """
    if lm.weight.device == device:
        return lm
    if not isinstance(lm, Layered) or not isinstance(lm.layout.tail, FinalPath) or device.type == "cpu":
        return None
    tail = lm.layout.tail
    parts = [lm.weight, *(p for module in tail.modules for p in (*module.parameters(), *module.buffers()))]
    mark = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parts)
    held = _HELD.setdefault(lm, {})
    if device not in held or held[device][0] != mark:
        held.pop(device, None)
        free = free_bytes(device)
        if free is not None and lm.weight.numel() * lm.weight.element_size() > _SHARE * free:
            return None
        held[device] = mark, _copied(lm, tail, device)
    return held[device][1]


@torch.no_grad()
def _copied(lm: Layered, tail: FinalPath, device: torch.device) -> Layered:
    steps = tuple(TailStep(_moved(step.module, device), step.name, step.scale) for step in tail.steps)
    end = copy.copy(lm)
    end.layout = replace(lm.layout, tail=replace(tail, steps=steps))
    bias: Tensor | None = lm.bias
    matrix: Any = SimpleNamespace(
        weight=lm.weight.detach().to(device), bias=None if bias is None else bias.detach().to(device)
    )
    end._matrix = matrix
    return end


def _moved(module: nn.Module | None, device: torch.device) -> nn.Module | None:
    """A copy on ``device``, without what libraries that spread models over devices put on it."""
    if module is None:
        return None
    moved = copy.deepcopy(module)
    if any(hasattr(part, "_hf_hook") for part in moved.modules()):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(moved, recurse=True)
    return moved.to(device)

"""A readout of layers that lie on several devices: each is read where it lies, and only statistics come together.

For KL, JSD and TV the states of the layer that is compared with, one row a token, go to each device; for the cosine of
neighbouring layers, the states of the layer at a border.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from exitlens.models.protocol import LayeredModel
from exitlens.models.reading_end import reading_end

__all__ = ["Places", "joined", "places"]

Places = Mapping[torch.device, tuple[LayeredModel, tuple[int, ...]]]
Read = Callable[[LayeredModel, Mapping[int, Tensor]], dict[str, Tensor]]


def places(lm: LayeredModel, hidden: Mapping[int, Tensor], layers: Sequence[int]) -> Places:
    """For each device what reads there and the layers that it reads; those it cannot read go to the unembedding's."""
    home = lm.weight.device
    found: dict[torch.device, tuple[LayeredModel, tuple[int, ...]]] = {}
    for layer in layers:
        device = hidden[layer].device
        end = found[device][0] if device in found else reading_end(lm, device)
        if end is None:
            device, end = home, lm
        held = found[device][1] if device in found else ()
        found[device] = end, (*held, layer)
    return found


def joined(
    where: Places,
    hidden: Mapping[int, Tensor],
    layers: Sequence[int],
    compared: int | None,
    home: torch.device,
    read: Read,
) -> dict[str, Tensor]:
    """``read`` on each device, its rows put together in the order of ``layers`` on the unembedding's device.

    Args:
        where: From :func:`places`.
        hidden: ``{layer: [t, d_model]}``.
        layers: The order of axis 0 of the result.
        compared: The layer that others are compared with, read on every device, or None.
        home: Where results go.
        read: Gives ``{column: [layers, t, …]}`` of what it is given.
    """
    rows: dict[int, dict[str, Tensor]] = {}
    for device, (end, own) in where.items():
        more = () if compared is None or compared in own else (compared,)
        found = read(end, {layer: hidden[layer].to(device) for layer in (*own, *more)})
        for i, layer in enumerate(own):
            rows[layer] = {name: value[i].to(home) for name, value in found.items()}
    return {name: torch.stack([rows[layer][name] for layer in layers]) for name in rows[layers[0]]}

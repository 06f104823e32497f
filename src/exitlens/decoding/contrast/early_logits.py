"""The early layers that a decoder reads, and their logits in one product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from exitlens.decoding.contrast.decoders import Decoder
from exitlens.decoding.contrast.parse import parse_decoder

__all__ = ["early_layers", "early_logits"]


def early_layers(lm: Any, decoder: str | Decoder) -> tuple[int, ...]:
    """The layers of ``lm`` that ``decoder`` unembeds at every token beside the last."""
    tied = lm.weight.data_ptr() == lm.embed.weight.data_ptr()
    return parse_decoder(decoder).layers(lm.n_layers, tied)


def early_logits(
    lm: Any,
    states: Sequence[Tensor],
    layers: Sequence[int],
    decoder: Decoder,
    logits: Callable[..., Tensor] | None = None,
) -> Tensor:
    """States ``[batch, d]`` of each of ``layers`` (below N) → logits ``[layers, batch, vocab]`` in the model's dtype.

    All layers meet the unembedding together: many rows in one product take a third of the time of few in many.
    ``logits``: as ``lm.logits``, where there is a quicker way.
    """
    together = torch.stack([state.to(lm.weight.device) for state in states])
    # Below N only the lens says how a state is read, not the layer.
    return (logits or lm.logits)(together, layers[0], decoder.lens)

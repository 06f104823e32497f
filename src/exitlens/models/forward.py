"""One forward pass over many texts that begin alike: what they share is computed once, and nothing is padded.

Texts of equal length run together, so no row ever sees padding and no number depends on its neighbours' lengths.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from exitlens.errors import ContextError
from exitlens.layer_range import Layers
from exitlens.models.protocol import LayeredModel

__all__ = ["Batch", "check_context", "common_prefix", "passes"]

# A shared beginning shorter than this is not worth a cache.
_WORTH = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Residual streams ``hidden[layer] [rows, positions, d_model]`` of the texts ``index``, from token ``start`` on."""

    index: list[int]
    start: int
    hidden: dict[int, Tensor]


def passes(
    lm: LayeredModel,
    texts: Sequence[Sequence[int]],
    *,
    layers: Layers = "all",
    positions: Literal["all", "last"] = "last",
    batch_tokens: int = 2048,
    batch_rows: int = 64,
    needed: int | None = None,
) -> Iterator[Batch]:
    """Run token id lists ``texts`` through ``lm``, at most ``batch_tokens`` new tokens (or one text) at a time.

    The tokens that all texts share at their beginning run once (never a text's last token, so every text keeps at
    least one position, and never position ``needed`` or what follows it). Batches come by length, then by place in
    ``texts``. Raises ContextError for a text that does not fit the model's context.
    """
    check_context(lm, texts)
    shared = common_prefix(texts) if needed is None else min(needed, common_prefix(texts))
    cache: Any = None
    if len(texts) > 1 and shared >= _WORTH:
        ids = torch.tensor([list(texts[0][:shared])], device=lm.device)
        cache = lm.forward(ids, use_cache=True).cache
        if not hasattr(cache, "batch_repeat_interleave"):
            cache = None
    if cache is None:
        shared = 0
    by_length: dict[int, list[int]] = {}
    for place, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(place)
    for length, places in sorted(by_length.items()):
        rows = max(1, min(batch_rows, batch_tokens // max(1, length - shared)))
        for first in range(0, len(places), rows):
            index = places[first : first + rows]
            ids = torch.tensor([list(texts[i][shared:]) for i in index], device=lm.device)
            past = None
            if cache is not None:
                past = copy.deepcopy(cache)
                past.batch_repeat_interleave(len(index))
            hidden = lm.forward(ids, layers=layers, positions=positions, cache=past).hidden
            yield Batch(index, length - 1 if positions == "last" else shared, hidden)


def common_prefix(texts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all texts share at their beginning, less than the length of the shortest."""
    if not texts:
        return 0
    low, high = min(map(tuple, texts)), max(map(tuple, texts))
    most = max(0, min(len(text) for text in texts) - 1)
    for place in range(most):
        if low[place] != high[place]:
            return place
    return most


def check_context(lm: LayeredModel, texts: Sequence[Sequence[int]], room: int = 0) -> None:
    """Raise ContextError when a text and ``room`` further tokens do not fit the model's context."""
    if lm.context is None:
        return
    for text in texts:
        if len(text) + room > lm.context:
            start = lm.decode(list(text)[-40:]).strip().replace("\n", " ")
            raise ContextError(
                f"a text of {len(text)} tokens (ending '{start[-60:]}') does not fit the context of {lm.name} "
                f"({lm.context} tokens{f', {room} of them for the answer' if room else ''}): shorten it"
            )

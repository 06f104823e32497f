"""How are many texts run: what they share once, those of like length together, long ones in windows, padded alike.

Every room that runs texts plans them here, so that each plan is written, and tested, once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from exitlens.errors import ContextError, InputError
from exitlens.models.protocol import LayeredModel

__all__ = [
    "Batch",
    "Plan",
    "Window",
    "check_context",
    "common_prefix",
    "cut_tokens",
    "padded",
    "passes",
    "plan_batches",
    "plan_windows",
    "same_beginning",
    "shared_prefix",
    "window_batches",
]

# A shared beginning shorter than this is not worth a cache.
_WORTH = 4
# Where rows are decoded a copy of the cache a batch costs more: below this many tokens, more than it saves.
_WORTH_DECODING = 8


# ---- what texts begin with


def same_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens that both begin with."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def common_prefix(texts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all texts share at their beginning, less than the length of the shortest."""
    if not texts:
        return 0
    # The least alike in dictionary order share what all share.
    low, high = min(map(tuple, texts)), max(map(tuple, texts))
    return min(same_beginning(low, high), max(0, min(map(len, texts)) - 1))


def shared_prefix(texts: Sequence[Sequence[int]], least: int = _WORTH_DECODING) -> tuple[int, ...]:
    """What several texts begin with, at least one token short of each; nothing below ``least`` tokens."""
    shared = common_prefix(texts) if len(texts) > 1 else 0
    return tuple(texts[0][:shared]) if shared >= least else ()


# ---- which run together


@dataclass(frozen=True, slots=True)
class Plan:
    """``prefix``: token ids that every prompt starts with; ``batches``: indices into the prompts, longest first."""

    prefix: tuple[int, ...]
    batches: tuple[tuple[int, ...], ...]


def plan_batches(ids: Sequence[Sequence[int]], batch_size: int, *, gap_exact: bool) -> Plan:
    """Batches of at most ``batch_size`` rows, close in length (of one length where padding would change numbers).

    The prefix leaves at least one token to every prompt, and is empty for a single one.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i)):
        open_ = batches[-1] if batches and len(batches[-1]) < batch_size else None
        if open_ is not None and (gap_exact or len(ids[i]) == len(ids[open_[0]])):
            open_.append(i)
        else:
            batches.append([i])
    return Plan(shared_prefix(ids), tuple(map(tuple, batches)))


def padded(
    texts: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
    *,
    side: Literal["left", "right"] = "right",
    fill: int = 0,
) -> tuple[Tensor, Tensor]:
    """Token lists as one tensor.

    Args:
        texts: Rows of token ids; a row may be empty.
        device: Where both tensors go; they are filled on the CPU and moved once.
        side: Where short rows are filled up.
        fill: The token id that fills them.

    Returns:
        Token ids ``[rows, longest]`` (int64), and which places hold a token of the text (bool, the same shape).
    """
    width = max(map(len, texts), default=0)
    ids = torch.full((len(texts), width), fill, dtype=torch.long)
    real = torch.zeros(len(texts), width, dtype=torch.bool)
    for row, text in enumerate(texts):
        places = slice(width - len(text), width) if side == "left" else slice(0, len(text))
        ids[row, places] = torch.tensor(list(text), dtype=torch.long)
        real[row, places] = True
    return ids.to(device), real.to(device)


# ---- long texts in windows


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a text that is run at once; positions before ``keep`` are context only, read by the one before."""

    text: int
    start: int
    stop: int
    keep: int


def plan_windows(
    lengths: Sequence[int],
    context: int | None,
    overlap: int | None,
    *,
    long: Literal["refuse", "split"] = "refuse",
    first: int = 0,
) -> list[Window]:
    """The windows that cover all texts.

    Args:
        lengths: Of the texts [tokens].
        context: The most positions of one pass, or None for any.
        overlap: Tokens of context repeated at a split; a quarter of the context by default.
        long: What happens to a text over the context.
        first: The number of the first text; the others follow it.

    Raises:
        ContextError: A text over the context with ``long="refuse"``.
        InputError: An overlap that does not fit the context.
    """
    out: list[Window] = []
    for i, n in enumerate(lengths, first):
        if context is None or n <= context:
            if n:
                out.append(Window(i, 0, n, 0))
            continue
        if long != "split":
            raise ContextError(
                f"text {i} has {n} tokens, over the context of {context}: shorten it, or ask for long='split' "
                "(--long split)"
            )
        shared = context // 4 if overlap is None else overlap
        if not 0 <= shared < context:
            raise InputError(f"overlap {shared} does not fit a context of {context}: use 0 to {context - 1}")
        start, keep = 0, 0
        while keep < n:
            stop = min(start + context, n)
            out.append(Window(i, start, stop, keep))
            keep, start = stop, stop - shared
    return out


def window_batches(windows: Sequence[Window], limit: int, *, apart: bool = False) -> Iterator[list[Window]]:
    """Windows of like length together, so that little is padding: at most ``limit`` padded tokens, or one window.

    The longest come first, so that memory fails early. ``apart``: windows of one length only, for models whose numbers
    depend on the longest row of a pass, or that take no padding.
    """
    batch: list[Window] = []
    for window in sorted(windows, key=lambda w: w.start - w.stop):
        widest = batch[0].stop - batch[0].start if batch else 0
        if batch and (widest * (len(batch) + 1) > limit or (apart and window.stop - window.start != widest)):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def cut_tokens(ids: Sequence[int], length: int, least: int) -> Iterator[list[int]]:
    """Stretches of ``length`` tokens one after another; the last may be shorter, down to ``least``."""
    for at in range(0, len(ids), length):
        if len(ids) - at >= least:
            yield list(ids[at : at + length])


# ---- one pass over many


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
    layers: Sequence[int] | Literal["all"] = "all",
    positions: Literal["all", "last"] = "last",
    batch_tokens: int = 2048,
    batch_rows: int = 64,
    needed: int | None = None,
) -> Iterator[Batch]:
    """Run token id lists through a model; texts of equal length run together, so that no row ever sees padding.

    The tokens that all texts share at their beginning run once (never a text's last token, so every text keeps at
    least one position). Batches come by length, then by place in ``texts``.

    Args:
        lm: The model.
        texts: Token ids.
        layers: Whose residual stream is wanted.
        positions: Of every token after the shared ones, or of each text's last.
        batch_tokens: The most new tokens of a pass; one text may have more.
        batch_rows: The most texts of a pass.
        needed: The first position whose state is wanted; it and what follows is never among the shared tokens.

    Raises:
        ContextError: A text that does not fit the model's context.
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

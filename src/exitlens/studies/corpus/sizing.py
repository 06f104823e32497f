"""What a reading takes: products, bytes and hours, worked out before anything is loaded.

For T tokens of a model with N blocks of w matrix entries each, residual width d, head width h, vocabulary V and a
channels of attention, read at L layers:

    pass     2 T w N   +   4 T a N c      two operations an entry and token; scores and mixing over c positions each
    readout  2 T L h V                    every layer's state times the whole unembedding
    states   T L d × bytes of the number type
    tables   T × (place + L × bytes of the statistics' columns)

A token attends to (length + 1)/2 positions on average, itself included. Statistics are passes over logits that memory
bounds, not products: their time is in the measured speed of a machine, and in the utilisation stated for a card.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from exitlens.compute.cards import Card
from exitlens.errors import InputError
from exitlens.lenses.statistics import known
from exitlens.models.checkpoint.shape import ModelShape

__all__ = ["Memory", "Sizing", "Speed", "card_speed", "size_reading"]

UTILISATION = 0.4
"""Share of a card's peak that a pass and its readout are taken to reach, unless said otherwise."""

USABLE = 0.9
"""Share of a card's memory that is planned with; the rest is the driver's, the allocator's and fragments."""

# Bytes of a value on disk, zstd-compressed Parquet, the largest that were measured on shards of up to 2,048 tokens at 4
# to 81 layers: of floats the mantissas do not compress, and exponents nearly vanish; ids and words repeat.
_BYTES = {"float": 3.7, "int": 1.7, "bool": 0.15}
_WORD = 0.8
_PLACE = 8.0  # text, position, id and word of a token, repeated on its rows, which compresses to almost nothing
_BUFFERS = 512 << 20  # what a block of the readout takes at most, unless one token at all layers takes more


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each card that holds a share of the model.

    ``weights``: its share. ``activations``: the recorded layers of a batch and the widest tensors inside a block.
    ``cache``: keys and values of a batch. ``lens``: a fitted lens, and the readout's buffers.
    """

    weights: float
    activations: float
    cache: float
    lens: float

    @property
    def total(self) -> float:
        """Together."""
        return self.weights + self.activations + self.cache + self.lens


@dataclass(frozen=True, slots=True)
class Sizing:
    """A reading in numbers. FLOPs and bytes are of the whole reading, ``memory`` of one card of ``split``."""

    tokens: int
    layers: int
    pass_flops: float
    readout_flops: float
    states_bytes: float
    statistics_bytes: float
    memory: Memory
    split: int


@dataclass(frozen=True, slots=True)
class Speed:
    """What a machine or card does: products of the pass and of the readout [FLOP/s], seconds a logit beside them.

    ``bandwidth``: bytes/s at which weights are read, where it is known: a batch takes at least one reading of them.
    """

    passing: float
    reading: float
    per_logit: float = 0.0
    bandwidth: float = math.inf

    def hours(self, shape: ModelShape, sizing: Sizing, *, batch_tokens: int, itemsize: int, cards: int = 1) -> float:
        """Hours of a reading on so many cards that share its tokens evenly."""
        passing = sizing.pass_flops / self.passing
        weights = sizing.tokens / batch_tokens * shape.parameters * itemsize / self.bandwidth
        logits = sizing.tokens * sizing.layers * shape.vocab
        reading = sizing.readout_flops / self.reading + logits * self.per_logit
        return (max(passing, weights) + reading) / 3600 / cards


def card_speed(card: Card, utilisation: float = UTILISATION) -> Speed:
    """A card's stated peak times a stated utilisation. Raises InputError for one that is not in (0, 1]."""
    if not 0 < utilisation <= 1:
        raise InputError(f"utilisation {utilisation:g} is out of range: give a share above 0 and at most 1")
    return Speed(card.peak * utilisation, card.peak * utilisation, bandwidth=card.bandwidth)


def size_reading(
    shape: ModelShape,
    tokens: int,
    layers: Sequence[int],
    stats: Sequence[str],
    *,
    length: int = 1024,
    batch_tokens: int = 512,
    top_k: int = 5,
    lens: str = "logit",
    itemsize: int = 2,
    split: int = 1,
) -> Sizing:
    """The numbers of a reading.

    Args:
        shape: Of the model.
        tokens: How many are read.
        layers: Which layers.
        stats: Names of statistics.
        length: Of a text, or of the windows that it is split into [tokens].
        batch_tokens: Of a forward pass.
        top_k: Tokens that the statistic ``top_k`` keeps.
        lens: ``logit``, ``raw``, ``tuned`` or ``jacobian``.
        itemsize: Bytes of a number of the model.
        split: Cards over which one copy of the model is spread.

    Raises:
        InputError: An unknown statistic or lens, or a length over the model's context.
    """
    if lens not in _LENSES:
        raise InputError(f"lens {lens[:80]!r} has no known size: use {', '.join(_LENSES)}")
    if shape.context is not None and length > shape.context:
        raise InputError(
            f"texts of {length} tokens are over the context of {shape.name} ({shape.context}): give --length "
            f"{shape.context} or less, as exitlens read --long split cuts them"
        )
    fitted = sum(layer < shape.blocks for layer in layers) if _LENSES[lens] else 0
    return Sizing(
        tokens=tokens,
        layers=len(layers),
        pass_flops=tokens * flops_of_pass(shape, (length + 1) / 2),
        readout_flops=tokens * (2.0 * len(layers) * shape.head * shape.vocab + 2.0 * fitted * shape.width**2),
        states_bytes=tokens * len(layers) * shape.width * float(itemsize),
        statistics_bytes=tokens * bytes_of_statistics(stats, len(layers), top_k),
        memory=_memory(shape, len(layers), fitted, batch_tokens, itemsize, split),
        split=split,
    )


# A fitted lens is a matrix [d, d] of float32 a layer (the tuned lens' bias is nothing beside it).
_LENSES = {"logit": False, "raw": False, "tuned": True, "jacobian": True}


def flops_of_pass(shape: ModelShape, attended: float) -> float:
    """FLOPs of one token through all blocks, ``attended`` positions looked at; the unembedding is the readout's."""
    return 2.0 * shape.block_weights + 4.0 * attended * shape.mixing * shape.blocks


def bytes_of_statistics(stats: Sequence[str], layers: int, top_k: int = 5) -> float:
    """Bytes on disk of a token's rows, a row a layer. Raises InputError for an unknown statistic."""
    row = shared = 0.0
    for record in known(tuple(stats), without=("choices",)):
        for column in record.columns:
            size = _BYTES[column.kind]
            if column.shared:
                shared += size
            elif column.axis == "rank":
                row += top_k * (size + (_WORD if column.name == "top_ids" else 0.0))
            else:
                row += size
    return _PLACE + shared + layers * row


def _memory(shape: ModelShape, layers: int, fitted: int, batch_tokens: int, itemsize: int, split: int) -> Memory:
    recorded = batch_tokens * layers * shape.width * itemsize
    # The residual stream, its norm, queries, keys and values; the MLP's two inner tensors and their product.
    inside = batch_tokens * (2 * shape.width + shape.mixing + shape.cached + 3 * shape.widest) * itemsize
    one_token = 4 * layers * shape.vocab  # float32 logits of a token at all layers, the least that a block holds
    buffers = max(one_token, min(_BUFFERS, one_token * batch_tokens))
    return Memory(
        weights=shape.parameters * itemsize / split,
        activations=recorded / split + inside,
        cache=batch_tokens * shape.blocks * shape.cached * itemsize / split,
        lens=4.0 * fitted * shape.width**2 / split + buffers,
    )

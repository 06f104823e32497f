"""What compiled blocks are handed: sizes, weights, caches, and room to work in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cache", "Plan", "Shape", "State", "Weights"]


class Shape(NamedTuple):
    """Sizes, and the two numbers of the configuration that enter. ``padded``: ``head_dim`` to whole tiles."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    padded: int
    width: int
    hidden: int
    vocab: int
    eps: float
    scaling: float


class Weights(NamedTuple):
    """Packed products ``[tiles]`` with where each begins ``[layers, 4]`` (qkv, out, gate and up, down), the head's
    ``head``; norms ``[2·layers + 1, width]``; biases ``[layers, (heads + 2·kv)·head_dim]``; ``windows
    [layers]``, 0: all.
    """

    packed: NDArray[np.int16]
    starts: NDArray[np.int64]
    head: NDArray[np.int16]
    norms: NDArray[np.float32]
    biases: NDArray[np.float32]
    windows: NDArray[np.int64]


class Cache(NamedTuple):
    """Addresses ``[layers, 2]`` of bf16 keys and values: ``own`` each ``[rows, kv_heads, room, head_dim]``; the same
    ``packed`` as weights are, each head ``[room, padded]`` for keys and ``[padded, room]`` for values, ``room`` to
    whole tiles; ``shared``: those at positions below ``past`` that all rows begin with, packed likewise.
    """

    own: NDArray[np.int64]
    packed: NDArray[np.int64]
    shared: NDArray[np.int64]
    room: int
    past: int


class Plan(NamedTuple):
    """Blocks ``first``..``last`` (from 1), and how attention and MLP of each run ``[layers, 2]``: 0 not, 1 as they are,
    2 keys and values only.

    ``read``: 0 no logits, 1 those behind the last norm, 2 those of the states as they are. ``slots [layers]``: where
    the states after a block are kept, −1 nowhere. ``blocks [blocks, 2]``: neighbouring tokens of one row, with all
    heads of a group at most the rows of a tile: the first, and how many.
    """

    first: int
    last: int
    parts: NDArray[np.int8]
    read: int
    slots: NDArray[np.int64]
    blocks: NDArray[np.int64]


class State(NamedTuple):
    """A call's tokens and room to work in.

    ``x [tokens, width]``: in and out. ``rows``, ``at [tokens]``: the cache row and the position of each. ``cos``,
    ``sin [tokens, head_dim]``. ``kept [slots, tokens, width]``: bits of bf16. ``logits [tokens, vocab]``.
    Room: ``qkv [tokens, (heads + 2·kv)·head_dim]``; ``query [kv, tokens, group, padded]``; ``mixed``, ``hidden``,
    ``normed``: rows of states for the tiles, 32 numbers longer than what they hold, so that rows do not share a
    cache's places; ``tasks [layers]``: counters of pieces taken; ``meet``: the counter of threads.
    """

    x: NDArray[np.float32]
    rows: NDArray[np.int64]
    at: NDArray[np.int64]
    cos: NDArray[np.float32]
    sin: NDArray[np.float32]
    kept: NDArray[np.int16]
    logits: NDArray[np.float32]
    qkv: NDArray[np.float32]
    query: NDArray[np.int16]
    mixed: NDArray[np.int16]
    hidden: NDArray[np.int16]
    normed: NDArray[np.int16]
    tasks: NDArray[np.int64]
    meet: NDArray[np.int64]

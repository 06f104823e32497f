"""The compiled pass over logits: what every statistic is made of, read from a tile while it lies in the cache.

A tile is 32 tokens × the rows of the block, tokens in the outer order, so that a vector holds 16 rows and no sum runs
across its lanes. Per row and tile, with ``c`` the largest logit so far:

    total += Σ e^(z−c)    first += Σ (z−c) e^(z−c)    second += Σ (z−c)² e^(z−c)    cross += Σ e^(z_ref−c_ref) z

float32 within a tile, float64 from tile to tile. Where c grows by δ the sums are carried over (the online softmax of
Milakov and Gimelshein 2018, arXiv 1805.02867, for higher moments):

    total ← e^−δ total    first ← e^−δ (first − δ total)    second ← e^−δ (second − 2δ first + δ² total)

The largest logits are kept in a sorted list a row; a tile is looked through only where its largest logit enters it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

from exitlens.lenses.kernels.amx import LOWEST
from exitlens.lenses.kernels.lanes import (
    LANES,
    add,
    any_above,
    choose,
    divide,
    exp,
    fma,
    four_exp,
    load,
    maximum,
    multiply,
    signed,
    splat,
    splat_bits,
    store,
    subtract,
    widen,
)  # fmt: skip

__all__ = ["Reference", "Sums", "carry", "kernel", "look", "settle", "take", "transform"]

_LOWEST = np.float32(LOWEST)
# Sixty numbers of arrays' shapes to hand over cost as much as a tile's sums.
_inlined = njit(inline="always")
# No folder to keep machine code in: see exitlens.compute.compiled. Arrays that are handed on are not counted: that is a
# fence for the processor, which could not look ahead. So kernels make no arrays.
kernel = njit(nogil=True, cache=bool(config.CACHE_DIR), error_model="numpy", _nrt=False)


class Sums(NamedTuple):
    """State of the rows, 32 by 32: ``shift [rows]``, the largest logit; ``sums [4·rows]``: total, first, second, cross;
    ``best``, ``ids`` ``[rows/16, k, 16]``: the k largest logits and their tokens (the bits of int32), largest first.
    """

    shift: NDArray[np.float32]
    sums: NDArray[np.float64]
    best: NDArray[np.float32]
    ids: NDArray[np.float32]


class Reference(NamedTuple):
    """What rows are compared with, of one tile: ``e [TILE·n]`` = e^(z_ref−c_ref), ``grown [n]`` = e^−δ; n by 32."""

    e: NDArray[np.float32]
    grown: NDArray[np.float32]


@_inlined
@no_type_check
def _largest(z: Any, at: Any, step: Any, tokens: Any) -> Any:
    """Largest logit of each of 32 rows; alternating, since each comparison waits for the one before."""
    a = splat(np.float32(-np.inf))
    b, c, d = a, a, a
    for t in range(0, tokens - 1, 2):
        a, b = maximum(load(z, at + t * step), a), maximum(load(z, at + t * step + LANES), b)
        c, d = maximum(load(z, at + (t + 1) * step), c), maximum(load(z, at + (t + 1) * step + LANES), d)
    if tokens & 1:
        a = maximum(load(z, at + (tokens - 1) * step), a)
        b = maximum(load(z, at + (tokens - 1) * step + LANES), b)
    return maximum(a, c), maximum(b, d)


@kernel
@no_type_check
def _enter(z: Any, at: Any, step: Any, tokens: Any, first_id: Any, best: Any, ids: Any, base: Any, k: Any) -> None:
    """Logits of 16 rows over the least of their lists go into them, in the order of ids: equal ones stay behind.

    All rows at once: from the list's end each place takes the logit, or its neighbour where the logit is over that too.
    """
    last = base + (k - 1) * LANES
    for t in range(tokens):
        x = load(z, at + t * step)
        if any_above(x, load(best, last)) == 0:
            continue
        token = splat_bits(np.int32(first_id + t))
        for place in range(last, base, -LANES):
            value, before = load(best, place), load(best, place - LANES)
            store(best, place, choose(x, before, before, choose(x, value, x, value)))
            id_, id_before = load(ids, place), load(ids, place - LANES)
            store(ids, place, choose(x, before, id_before, choose(x, value, token, id_)))
        value = load(best, base)
        store(ids, base, choose(x, value, token, load(ids, base)))
        store(best, base, choose(x, value, x, value))


@kernel
@no_type_check
def carry(shift: Any, sums: Any, row: Any, new: Any) -> Any:
    """Sums of 16 rows, from the old largest logit to the new; e^−δ."""
    rows = len(shift)
    step = maximum(splat(_LOWEST), subtract(load(shift, row), new))
    shrink = exp(step)
    by, wide = widen(shrink), widen(step)
    total_, first = load(sums, row), load(sums, rows + row)
    second = load(sums, 2 * rows + row)
    moved = fma(wide, total_, first)
    second = fma(wide, add(first, moved), second)
    store(sums, row, multiply(by, total_))
    store(sums, rows + row, multiply(by, moved))
    store(sums, 2 * rows + row, multiply(by, second))
    store(shift, row, new)
    return shrink


@_inlined
@no_type_check
def _more(sums: Any, place: Any, by: Any) -> None:
    store(sums, place, add(load(sums, place), widen(by)))


@_inlined
@no_type_check
def _over(z: Any, at: Any, step: Any, tokens: Any, c: Any, c_b: Any, ref: Any, lane: Any, other: Any, how: Any) -> Any:
    """Sums over a tile of 32 rows, ``z[at + step·t + 0…31]``, two vectors side by side, relative to ``c`` and ``c_b``.

    ``how`` 0: the sums alone; 1: these are the rows that others are compared with, at ``lane`` and ``other`` of
    ``ref``; 2: compare with them; 4 more: second moments.
    """
    n = len(ref.grown)
    zero, least = splat(np.float32(0.0)), splat(_LOWEST)
    total_, first, second, cross = zero, zero, zero, zero
    total_b, first_b, second_b, cross_b = zero, zero, zero, zero
    for t in range(0, tokens - 1, 2):
        u, v = load(z, at + t * step), load(z, at + t * step + LANES)
        w, x = load(z, at + (t + 1) * step), load(z, at + (t + 1) * step + LANES)
        du, dv = maximum(least, subtract(u, c)), maximum(least, subtract(v, c_b))
        dw, dx = maximum(least, subtract(w, c)), maximum(least, subtract(x, c_b))
        eu, ev, ew, ex = four_exp(du, dv, dw, dx)
        total_, total_b = add(total_, add(eu, ew)), add(total_b, add(ev, ex))
        first, first_b = fma(dw, ew, fma(du, eu, first)), fma(dx, ex, fma(dv, ev, first_b))
        if how & 4:
            second = fma(multiply(du, du), eu, fma(multiply(dw, dw), ew, second))
            second_b = fma(multiply(dv, dv), ev, fma(multiply(dx, dx), ex, second_b))
        if how & 2:
            cross = fma(load(ref.e, t * n + lane), u, fma(load(ref.e, (t + 1) * n + lane), w, cross))
            cross_b = fma(load(ref.e, t * n + other), v, fma(load(ref.e, (t + 1) * n + other), x, cross_b))
        if how & 1:
            store(ref.e, t * n + lane, eu)
            store(ref.e, t * n + other, ev)
            store(ref.e, (t + 1) * n + lane, ew)
            store(ref.e, (t + 1) * n + other, ex)
    if tokens & 1:
        t = tokens - 1
        u, v = load(z, at + t * step), load(z, at + t * step + LANES)
        du, dv = maximum(least, subtract(u, c)), maximum(least, subtract(v, c_b))
        eu, ev = exp(du), exp(dv)
        total_, total_b = add(total_, eu), add(total_b, ev)
        first, first_b = fma(du, eu, first), fma(dv, ev, first_b)
        if how & 4:
            second, second_b = fma(multiply(du, du), eu, second), fma(multiply(dv, dv), ev, second_b)
        if how & 2:
            cross = fma(load(ref.e, t * n + lane), u, cross)
            cross_b = fma(load(ref.e, t * n + other), v, cross_b)
        if how & 1:
            store(ref.e, t * n + lane, eu)
            store(ref.e, t * n + other, ev)
    return total_, total_b, first, first_b, second, second_b, cross, cross_b


@_inlined
@no_type_check
def settle(found: Any, row: Any, state: Any, ref: Any, lane: Any, other: Any, how: Any) -> None:
    """A tile's sums ``found`` to those of its rows."""
    sums, rows = state.sums, len(state.shift)
    total_, total_b, first, first_b, second, second_b, cross, cross_b = found
    _more(sums, row, total_)
    _more(sums, row + LANES, total_b)
    _more(sums, rows + row, first)
    _more(sums, rows + row + LANES, first_b)
    if how & 4:
        _more(sums, 2 * rows + row, second)
        _more(sums, 2 * rows + row + LANES, second_b)
    if how & 2:
        place = 3 * rows + row
        store(sums, place, fma(load(sums, place), widen(load(ref.grown, lane)), widen(cross)))
        place += LANES
        store(sums, place, fma(load(sums, place), widen(load(ref.grown, other)), widen(cross_b)))


@_inlined
@no_type_check
def look(z: Any, at: Any, step: Any, tokens: Any, first_id: Any, row: Any, state: Any, big: Any, big_b: Any) -> None:
    """Look a tile through for the lists of those rows whose largest logit enters them."""
    k = len(state.best) // len(state.shift)
    if k:
        base = row * k
        if any_above(big, load(state.best, base + (k - 1) * LANES)):
            _enter(z, at, step, tokens, first_id, state.best, state.ids, base, k)
        base += LANES * k
        if any_above(big_b, load(state.best, base + (k - 1) * LANES)):
            _enter(z, at + LANES, step, tokens, first_id, state.best, state.ids, base, k)


@_inlined
@no_type_check
def take(
    z: Any,
    at: Any,
    step: Any,
    tokens: Any,
    first_id: Any,
    row: Any,
    state: Any,
    ref: Any,
    lane: Any,
    other: Any,
    how: Any,
) -> None:
    """A tile of 32 rows: its largest logits, then its sums relative to them, as :func:`_over` says."""
    big, big_b = _largest(z, at, step, tokens)
    c, c_b = load(state.shift, row), load(state.shift, row + LANES)
    if how & 1:
        store(ref.grown, lane, splat(np.float32(1.0)))
        store(ref.grown, other, splat(np.float32(1.0)))
    if any_above(big, c) | any_above(big_b, c_b):
        c, c_b = maximum(big, c), maximum(big_b, c_b)
        shrink, shrink_b = carry(state.shift, state.sums, row, c), carry(state.shift, state.sums, row + LANES, c_b)
        if how & 1:
            store(ref.grown, lane, shrink)
            store(ref.grown, other, shrink_b)
    settle(_over(z, at, step, tokens, c, c_b, ref, lane, other, how), row, state, ref, lane, other, how)
    look(z, at, step, tokens, first_id, row, state, big, big_b)


@_inlined
@no_type_check
def transform(z: Any, at: Any, step: Any, tokens: Any, bias: Any, first_id: Any, cap: Any) -> None:
    """Bias (where there is one) and soft-cap (where it is over 0) of 32 rows of a tile, in place."""
    one, zero, least = splat(np.float32(1.0)), splat(np.float32(0.0)), splat(_LOWEST)
    for i in range(2 * tokens):
        place = at + (i >> 1) * step + (i & 1) * LANES
        x = load(z, place)
        if len(bias):
            x = add(x, splat(bias[first_id + (i >> 1)]))
        if cap > 0:
            # tanh |x| = (1 − q) / (1 + q), q = e^−2|x|, within 4e-7. Added x − x keeps what is not finite NaN.
            q = exp(maximum(least, multiply(splat(np.float32(-2.0)), maximum(x, subtract(zero, x)))))
            x = add(signed(divide(subtract(one, q), add(one, q)), x), subtract(x, x))
            x = multiply(splat(cap), x)
        store(z, place, x)

"""One text's Jacobians: how the last residual stream moves with each layer's, in the mean over positions.

For a text of T tokens and a channel i of the last layer, a cotangent of one at channel i of every valid position is
pulled back through the blocks. At a position p it gives ``Σ_{p' ≥ p} ∂h_N[p', i]/∂h_j[p]``, row i of J_j; the mean over
valid p is the text's, the mean over texts the lens's. Valid are all positions but the first ``skip`` (where models park
states of another size) and the last.

``same-position`` wants the terms p' = p alone. In a sum with a sign at each position, Σ s_p' ∂h_N[p']/∂h_j[p], times
s_p, they stand with sign 1 and all others with signs that average out: over random signs in the mean, and over all
patterns of a Hadamard matrix exactly, whose columns are orthogonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.lenses.jacobian.lens import ESTIMATORS
from exitlens.models.protocol import LayeredModel
from exitlens.models.pullback import Gradient, Pulls, out_of_memory
from exitlens.parsing import cut

__all__ = ["LENGTH", "ROWS", "SKIP", "FitSettings", "rows_jacobian", "text_jacobian"]

LENGTH = 128  # tokens of a text, as in published lenses
SKIP = 16  # first positions left out, likewise
ROWS = 512  # rows pulled back at once where nothing else is said


@dataclass(frozen=True)
class FitSettings:
    """How a lens is fitted; what decides its numbers, beside model and texts.

    ``rows``: channels pulled back at once, None: as many as memory allows and the machine likes. ``patterns``: sign
    patterns a text, of ``same-position`` alone; a power of two, at least as many as valid positions, makes it exact.
    ``precision``: ``fast`` takes bf16 products where the machine is good at them, ``exact`` float32.
    """

    estimator: str = "summed"
    length: int = LENGTH
    skip: int = SKIP
    rows: int | None = None
    patterns: int = 1
    precision: str = "fast"

    def checked(self) -> FitSettings:
        """Itself. Raises :class:`InputError` for what cannot be."""
        if self.estimator not in ESTIMATORS:
            raise InputError(f"unknown estimator {cut(repr(self.estimator))}: use {' or '.join(ESTIMATORS)}")
        if self.skip < 0:
            raise InputError(f"skip {self.skip} is out of range: use 0 or more")
        if self.length < self.skip + 2:
            raise InputError(
                f"texts of {self.length} tokens have no valid position after the first {self.skip} and before the "
                f"last: use at least {self.skip + 2} tokens, or skip fewer"
            )
        for what, value in (("rows", self.rows), ("patterns", self.patterns)):
            if value is not None and value < 1:
                raise InputError(f"{what} {value} is too small: use 1 or more")
        if self.precision not in ("exact", "fast"):
            raise InputError(f"unknown precision {cut(repr(self.precision))}: use exact or fast")
        if self.patterns > 1 and self.estimator != "same-position":
            raise InputError(f"patterns {self.patterns} are for the estimator same-position: leave them out")
        return self


def text_jacobian(
    lm: LayeredModel, ids: Sequence[int], layers: Sequence[int], settings: FitSettings, how: Gradient | None = None
) -> Tensor:
    """One text's ``J_j``: ``[layers, d, d]`` float32, for ascending ``layers`` below N.

    ``how``: the way gradients are taken, block by block unless it is given.
    """
    text = (how or Gradient(lm)).text(ids, first=settings.skip, lowest=layers[0])
    out = torch.zeros(len(layers), lm.d_model, lm.d_model, device=lm.device)
    rows_jacobian(text, range(lm.d_model), layers, len(ids) - 1 - settings.skip, settings, out)
    return out


def rows_jacobian(
    text: Pulls, channels: range, layers: Sequence[int], positions: int, settings: FitSettings, out: Tensor
) -> None:
    """Some rows of one text's matrices, those of ``channels``, into ``out [layers, d, d]``.

    ``positions``: how many are valid. ``settings.rows`` are pulled back at once, half as many each time the device's
    memory does not hold them.
    """
    signs = _signs(positions, settings, out.device)
    start, batch = channels.start, settings.rows or ROWS
    while start < channels.stop:
        rows = slice(start, min(start + batch, channels.stop))
        try:
            _add_rows(text, rows, signs, layers, out)
        except RuntimeError as error:
            if batch == 1 or not out_of_memory(error):
                raise
            out[:, rows] = 0.0
            batch = batch // 2
            continue
        start = rows.stop


def _add_rows(text: Pulls, rows: slice, signs: Tensor, layers: Sequence[int], out: Tensor) -> None:
    """Rows of one text's matrices into ``out [layers, d, d]``, the mean over valid positions and sign patterns."""
    place = {layer: i for i, layer in enumerate(layers)}
    n, count, d = signs.shape[1], rows.stop - rows.start, out.shape[1]
    channel = torch.arange(count, device=out.device)
    for pattern in signs:
        cotangents = torch.zeros(n, count, d, device=out.device)
        cotangents[:, channel, rows.start + channel] = pattern[:, None]
        weights = pattern / signs.numel()

        def each(layer: int, v: Tensor, weights: Tensor = weights) -> None:
            if layer in place:
                part = weights.to(v.device) @ v.float().reshape(n, count * d)
                out[place[layer], rows] += part.view(count, d).to(out.device)

        text.pull(cotangents, each)


def _signs(n: int, settings: FitSettings, device: torch.device) -> Tensor:
    """Signs of the valid positions, a row a pattern ``[patterns, n]``: ones for ``summed``.

    Rows of a Hadamard matrix of order ≥ n (Sylvester's, entry (i, j) = −1 to the number of bits that i and j share)
    times one random row, so that each pattern by itself is random too.
    """
    if settings.estimator == "summed":
        return torch.ones(1, n, device=device)
    order = 1 << max(0, math.ceil(math.log2(n)))
    count = min(settings.patterns, order)
    rows = torch.randperm(order, generator=torch.Generator().manual_seed(n))[:count].tolist()
    hadamard = torch.tensor([[-1.0 if (i & j).bit_count() % 2 else 1.0 for j in range(n)] for i in rows])
    flips = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(n + 1)) * 2.0 - 1.0
    return (hadamard * flips).to(device)

"""Logits of exit heads: over a shortlist of the vocabulary, and every token that a row's text holds so far.

What an answer says next is often a word of the question that no general shortlist holds. The tokens of the text cost a
few dozen rows of the unembedding more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exitlens.compute.matmul import linear
from exitlens.compute.prepacked import packed
from exitlens.models.forward import padded
from exitlens.models.native.runner import logits_of
from exitlens.models.protocol import LayeredModel

__all__ = ["ExitLogits", "HeadReader", "Reader", "RowReader", "logit_reader", "reads_last", "show"]

# Logits [rows, vocab] of states [rows, d_model] at a layer.
Reader = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class ExitLogits:
    """Logits of an exit: of the whole vocabulary ``z [rows, vocab]`` (``ids`` None), or ``z [rows, S + P]`` of the
    tokens ``ids [S]`` and each row's own ``own [rows, P]`` (−inf where a row has fewer).
    """

    z: Tensor
    ids: Tensor | None = None
    own: Tensor | None = None

    def top(self) -> Tensor:
        """Top token ``[rows]``."""
        best = self.z.argmax(-1)
        if self.ids is None:
            return best
        if self.own is None:
            return self.ids[best]
        size = len(self.ids)
        mine = self.own.gather(1, (best - size).clamp_min(0)[:, None])[:, 0]
        return torch.where(best < size, self.ids[best.clamp_max(size - 1)], mine)

    def whole(self, vocab_size: int) -> Tensor:
        """``[rows, vocab]``, −inf where nothing was computed."""
        if self.ids is None:
            return self.z
        size = len(self.ids)
        out = self.z.new_full((len(self.z), vocab_size), -torch.inf)
        out[:, self.ids] = self.z[:, :size]
        if self.own is not None:
            out.scatter_reduce_(1, self.own, self.z[:, size:], "amax")
        return out

    def of(self, rows: Tensor) -> ExitLogits:
        """The same for some rows."""
        return ExitLogits(self.z[rows], self.ids, None if self.own is None else self.own[rows])


class HeadReader:
    """Logits of heads on states ``[rows, d_model]``: on the shortlist (:meth:`short`), or with what rows have said
    (:meth:`rows`).
    """

    def __init__(self, heads: Any, lm: LayeredModel) -> None:
        self.heads, self.lm = heads, lm
        self.layers = heads.layers
        self.shortlist = heads.shortlist
        self.listed = frozenset(heads.shortlist.tolist())
        weight = lm.weight.detach()[heads.shortlist].contiguous()
        bias = None if lm.bias is None else lm.bias.detach()[heads.shortlist]
        self._product = packed(weight, bias) or (lambda x: linear(x, weight, bias))

    def __call__(self, h: Tensor, layer: int) -> Tensor:
        """Logits ``[rows, vocab]``, −inf outside the shortlist."""
        return ExitLogits(self.short(h, layer), self.shortlist).whole(self.lm.vocab_size)

    def short(self, h: Tensor, layer: int) -> Tensor:
        """Logits ``[rows, S]`` of the shortlist's tokens."""
        return self.over(self.features(h, layer))

    def features(self, h: Tensor, layer: int) -> Tensor:
        """``[rows, d_head]``, ready for the unembedding; the last layer's states need no translation."""
        heads, e = self.heads, self.heads.index(layer)
        if layer < self.lm.n_layers:
            h = translate(h, heads.down[e], heads.up[e], heads.shift[e])
        return self.lm.norm(h)

    def over(self, x: Tensor) -> Tensor:
        """The shortlist's logits of features."""
        return self.lm.logit_transform(self._product(x)).float()

    def each(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits ``[rows, P]`` of features ``[rows, d_head]`` for each row's own tokens ``[rows, P]``."""
        return self.weighed(x, self.lm.weight[ids], ids)

    def weighed(self, x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        """The same with the tokens' rows of the unembedding at hand, ``[rows, P, d_head]``."""
        z = torch.einsum("rpd,rd->rp", weight, x)
        return self.lm.logit_transform(z if self.lm.bias is None else z + self.lm.bias[ids]).float()

    def rows(self, texts: Sequence[Sequence[int]]) -> RowReader:
        """A reader for a batch, one text a row, that grows with them."""
        return RowReader(self, texts)

    def shown(self, h: Tensor, layer: int, texts: Sequence[Sequence[int]], places: Sequence[int]) -> ExitLogits:
        """What a :class:`RowReader` shows of states at ``places`` of ``texts`` (a text a row), for many at once."""
        x = self.features(h, layer)
        own = [[t for t in dict.fromkeys(text[: at + 1]) if t not in self.listed]
               for text, at in zip(texts, places, strict=True)]  # fmt: skip
        return _joined(self, x, *padded(own, h.device))


class RowReader:
    """Heads for the rows of one batch. The token that a row is fed counts as said."""

    def __init__(self, reader: HeadReader, texts: Sequence[Sequence[int]]) -> None:
        self.reader = reader
        self._own = [[t for t in dict.fromkeys(text) if t not in reader.listed] for text in texts]
        self._known: dict[bytes, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, rows: np.ndarray, tokens: Sequence[int]) -> None:
        """One new token a row."""
        for row, token in zip(rows.tolist(), tokens, strict=True):
            if token not in self.reader.listed and token not in self._own[row]:
                self._own[row].append(token)
                self._known = {}

    def keep(self, rows: np.ndarray) -> None:
        """Drop every row but these."""
        self._own = [self._own[row] for row in rows.tolist()]
        self._known = {}

    def show(self, h: Tensor, layer: int, rows: np.ndarray) -> ExitLogits:
        """What the head at ``layer`` says of states ``[len(rows), d_model]``; a row may be there more than once."""
        key = rows.tobytes()
        if key not in self._known:  # the same rows are asked at exit after exit, and step after step
            ids, there = padded([self._own[row] for row in rows.tolist()], h.device)
            self._known[key] = (ids, there, self.reader.lm.weight.detach()[ids])
        ids, there, weight = self._known[key]
        return _joined(self.reader, self.reader.features(h, layer), ids, there, weight)


def _joined(reader: HeadReader, x: Tensor, ids: Tensor, there: Tensor, weight: Tensor | None = None) -> ExitLogits:
    z = reader.over(x)
    if not ids.shape[1]:
        return ExitLogits(z, reader.shortlist)
    more = reader.each(x, ids) if weight is None else reader.weighed(x, weight, ids)
    return ExitLogits(torch.cat([z, more.masked_fill(~there, -torch.inf)], dim=1), reader.shortlist, ids)


def logit_reader(lm: LayeredModel) -> Reader:
    """The model's own norm and unembedding at every layer."""
    logits = logits_of(lm)
    return lambda h, layer: logits(h, layer).float()


def reads_last(reader: Reader | None, n_layers: int) -> bool:
    """True when a policy may leave at layer N itself: a head there saves the product with the whole vocabulary."""
    return isinstance(reader, HeadReader) and n_layers in reader.layers


def show(reader: Reader | RowReader, h: Tensor, layer: int, rows: np.ndarray) -> ExitLogits:
    """What a reader says of the states ``[len(rows), d_model]`` of a batch's ``rows``."""
    return reader.show(h, layer, rows) if isinstance(reader, RowReader) else ExitLogits(reader(h, layer).float())


def translate(h: Tensor, down: Tensor, up: Tensor, shift: Tensor) -> Tensor:
    """``h + U V h + b`` for ``h [..., d]``."""
    low = h.to(down.dtype) @ down.T
    return h + (low @ up.T + shift).to(h.dtype)

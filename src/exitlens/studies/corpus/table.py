"""One shard of a reading as a table: a row a text, position and layer, a column a statistic.

``text``, ``position`` (of the token in its text), ``token_id``, ``token``, ``layer``; then float32 columns as
:data:`exitlens.lenses.STATS` names them. ``logprob`` and ``rank`` are those of the text's next token, missing at its
last one; ``cosine`` is missing at the last layer. ``top_k`` gives the lists ``top_ids``, ``top_tokens`` and
``top_logprobs``; ``saturation``, one number a token, stands on each of the token's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from exitlens.lenses.read_hidden import Readout
from exitlens.lenses.statistics import is_missing
from exitlens.models.forward import Window
from exitlens.models.protocol import LayeredModel

__all__ = ["ShardTable"]


class ShardTable:
    """Takes the statistics of a shard's windows, batch by batch, in any order; gives the table and its sums."""

    def __init__(
        self, lm: LayeredModel, ids: Mapping[int, Sequence[int]], windows: Sequence[Window], layers: Sequence[int]
    ) -> None:
        self.layers = tuple(layers)
        self._word = lm.token
        self._start: dict[tuple[int, int], int] = {}
        texts: list[int] = []
        positions: list[int] = []
        tokens: list[int] = []
        at = 0
        for window in windows:
            self._start[window.text, window.keep] = at
            n = window.stop - window.keep
            at += n
            texts += [window.text] * n
            positions += range(window.keep, window.stop)
            tokens += ids[window.text][window.keep : window.stop]
        self.tokens = at
        self._text = np.asarray(texts, dtype=np.int64)
        self._position = np.asarray(positions, dtype=np.int32)
        self._ids = np.asarray(tokens, dtype=np.int32)
        self._values: dict[str, NDArray[Any]] = {}

    def put(self, batch: Sequence[Window], found: Readout) -> None:
        """Keep a batch's statistics ``[layers, tokens, …]`` as ``[tokens, layers, …]`` of the shard."""
        for name, value in found.items():
            piece = value.cpu().numpy().swapaxes(0, 1)
            if name not in self._values:
                self._values[name] = np.zeros((self.tokens, *piece.shape[1:]), dtype=piece.dtype)
            at = 0
            for window in batch:
                n = window.stop - window.keep
                start = self._start[window.text, window.keep]
                self._values[name][start : start + n] = piece[at : at + n]
                at += n

    def sums(self) -> dict[str, list[tuple[float, int]]]:
        """Sum and number of known values of each scalar statistic, layer by layer (``saturation``: one pair)."""
        found: dict[str, list[tuple[float, int]]] = {}
        for name, values in self._values.items():
            if values.ndim == 2:
                known = ~is_missing(values)
                total = np.where(known, values, 0).sum(0, dtype=np.float64)
                found[name] = [(float(s), int(n)) for s, n in zip(total, known.sum(0), strict=True)]
        return found

    def arrow(self) -> Any:
        """The table, in the order of text, position and layer."""
        n = len(self.layers)
        columns: dict[str, Any] = {
            "text": pa.array(np.repeat(self._text, n)),
            "position": pa.array(np.repeat(self._position, n)),
            "token_id": pa.array(np.repeat(self._ids, n)),
            "token": self._words(np.repeat(self._ids, n)),
            "layer": pa.array(np.tile(np.asarray(self.layers, dtype=np.int16), self.tokens)),
        }
        for name, values in self._values.items():
            if values.ndim == 3:
                lengths = np.arange(0, values.size + 1, values.shape[2], dtype=np.int32)
                flat = values.reshape(-1)
                columns[name] = _lists(lengths, pa.array(_narrow(flat)))
                if name == "top_ids":
                    columns["top_tokens"] = _lists(lengths, self._words(flat))
                continue
            wide = values if values.shape[1] == n else np.repeat(values, n, axis=1)
            flat = wide.reshape(-1)
            columns[name] = pa.array(_narrow(flat), mask=is_missing(flat))
        return pa.table(columns)

    def _words(self, ids: NDArray[Any]) -> Any:
        kinds, place = np.unique(ids, return_inverse=True)
        return pa.array([str(self._word(int(kind))) for kind in kinds], type=pa.string()).take(pa.array(place))


def _lists(lengths: NDArray[Any], values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array(lengths), values)


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.int32) if values.dtype == np.int64 else values

"""Which token of which row has come how deep: states kept where a row left, taken further only when they are needed.

A token that left at layer e has no keys or values in deeper blocks. Under ``defer`` its state stays at e; when a later
token of the row goes through block e+1, all states waiting there go with it in one batch, so deep keys and values are
those of a full pass. ``propagate`` projects the state of the exit into every deeper block at once; ``recompute`` throws
it away and starts again from layer 0 when it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from exitlens.models.native.runner import KV, Runner, Where

__all__ = ["CachePolicy", "Depths"]

CachePolicy = Literal["defer", "propagate", "recompute"]


class Depths:
    """States ``[rows, capacity, d_model]`` with the layer each has reached, on top of a :class:`KV`."""

    def __init__(self, runner: Runner, kv: KV, lengths: Tensor) -> None:
        self.runner, self.kv = runner, kv
        lm = runner.lm
        self.states = torch.zeros(kv.rows, kv.capacity, lm.d_model, dtype=lm.dtype, device=lm.device)
        self.depth = np.full((kv.rows, kv.capacity), -1, dtype=np.int16)
        self.lengths = lengths.numpy().copy()
        for row, n in enumerate(self.lengths):
            self.depth[row, :n] = runner.n_layers  # the prompt has been through every block
        self.ids = np.zeros((kv.rows, kv.capacity), dtype=np.int64)
        self.parked = np.zeros((kv.rows, kv.capacity), dtype=bool)  # left early, not yet taken further
        self.blocks_run = 0  # block × token
        self._memo: tuple[bytes, Where] | None = None
        self._index: tuple[Tensor, Tensor]

    def append(self, rows: np.ndarray, tokens: Tensor) -> None:
        """Put one new token a row (of ``rows``) at layer 0, at the row's next position."""
        at = self.lengths[rows]
        positions = torch.from_numpy(at)[:, None]
        where = self._where(rows, at[:, None])
        x = self.runner.embed(tokens[:, None].to(self.states.device), where)
        self.states[torch.from_numpy(rows)[:, None], positions] = x
        self.depth[rows, at] = 0
        self.ids[rows, at] = tokens.cpu().numpy()
        self.lengths[rows] += 1

    def passed(self, tokens: Tensor) -> None:
        """One new token in every row has been through all blocks, run outside of this class."""
        rows = np.arange(self.kv.rows)
        self.depth[rows, self.lengths] = self.runner.n_layers
        self.ids[rows, self.lengths] = tokens.cpu().numpy()
        self.lengths += 1

    def waiting(self, rows: np.ndarray, layer: int) -> np.ndarray:
        """Positions ``[rows, width]`` of each row at exactly ``layer``; short rows repeat their last: harmless."""
        return self._waiting(rows, layer)[0]

    def _waiting(self, rows: np.ndarray, layer: int) -> tuple[np.ndarray, int]:
        """The same, and how many tokens they are without the repetitions."""
        here = self.depth[rows, : int(self.lengths[rows].max())] == layer
        counts = here.sum(1)
        width, total = int(counts.max()), int(counts.sum())
        if width == 1 and total == len(rows):  # the usual case: one token a row
            return here.argmax(1)[:, None], total
        order = np.argsort(~here, axis=1, kind="stable")[:, :width]
        last = np.maximum(counts - 1, 0)
        column = np.minimum(np.arange(width)[None], last[:, None])
        return np.take_along_axis(order, column, axis=1), total

    def advance(self, rows: np.ndarray, block: int, last: int | None = None) -> None:
        """Run blocks ``block``..``last`` (default: that one) on all states of ``rows`` that wait at the first's input.

        No state of these rows may wait at the input of a block between: nobody joins on the way.
        """
        last = block if last is None else last
        positions, total = self._waiting(rows, block - 1)
        self._move(rows, positions, block, last)
        self.blocks_run += total * (last - block + 1)

    def _move(self, rows: np.ndarray, positions: np.ndarray, block: int, last: int) -> None:
        where = self._where(rows, positions)
        if len(rows) == 1 and isinstance(where.start, int):  # one row, neighbouring tokens: a view, nothing is gathered
            row, first = int(rows[0]), where.start
            here = self.states[row : row + 1, first : first + where.width]
            here.copy_(self.runner.run(here, self.kv, where, first=block, last=last)[last])
        else:
            index, at = self._index
            self.states[index, at] = self.runner.run(self.states[index, at], self.kv, where, first=block, last=last)[
                last
            ]
        self.depth[rows[:, None], positions] = last

    def advance_last(self, rows: np.ndarray, last: int) -> None:
        """Take the newest token of each row from layer 0 to ``last`` (tokens drafted before it wait where they are)."""
        self._move(rows, self.lengths[rows][:, None] - 1, 1, last)
        self.blocks_run += len(rows) * last

    def draft_rest(
        self, rows: np.ndarray, first: int, skip_attention: Sequence[int], skip_mlp: Sequence[int]
    ) -> Tensor:
        """Take the newest token from ``first`` to the end without the skipped sub-layers; ``[rows, d_model]``.

        The kept states stay at ``first``. Keys and values written on the way are a draft's, and verification writes
        over them.
        """
        n, where = self.runner.n_layers, self._where(rows, self.lengths[rows][:, None] - 1)
        x = self.last(rows)[:, None]
        whole = {*skip_attention} & {*skip_mlp}
        self.blocks_run += len(rows) * sum(block not in whole for block in range(first + 1, n + 1))
        return self.runner.run(x, self.kv, where, first=first + 1, skip=(skip_attention, skip_mlp))[n][:, 0]

    def last(self, rows: np.ndarray) -> Tensor:
        """State ``[rows, d_model]`` of each row's newest token."""
        return self.states[torch.from_numpy(rows), torch.from_numpy(self.lengths[rows] - 1)]

    def propagate(self, rows: np.ndarray, layer: int) -> None:
        """Project the newest token's state at ``layer`` into the keys and values of every deeper block."""
        positions = self.lengths[rows][:, None] - 1
        where = self._where(rows, positions)
        x = self.last(rows)[:, None]
        self.runner.store_only(layer + 1, x, self.kv, where)
        self.depth[rows[:, None], positions] = self.runner.n_layers

    def restart(self, rows: np.ndarray, upto: int) -> None:
        """Bring what ``rows`` parked at ``upto`` there once more, from layer 0 (the ``recompute`` policy's price)."""
        for row in rows:
            late = np.flatnonzero(self.parked[row] & (self.depth[row] == upto))
            if len(late) == 0:
                continue
            self.parked[row, late] = False
            one, at = np.array([row]), late[None]
            where = self._where(one, at)
            ids = torch.from_numpy(self.ids[row, late])[None].to(self.states.device)
            x = self.runner.run(self.runner.embed(ids, where), self.kv, where, last=upto)[upto]
            self.blocks_run += upto * len(late)
            self.states[int(row), torch.from_numpy(late)] = x[0]

    def crop(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        """Forget every token of ``rows`` from ``lengths`` on; their places in the cache are written again later."""
        for row, n in zip(rows, lengths, strict=True):
            self.depth[row, n:] = -1
            self.parked[row, n:] = False
        self.lengths[rows] = lengths

    def select(self, keep: np.ndarray) -> None:
        """Keep only these rows."""
        index = torch.from_numpy(keep).to(self.states.device)
        self.kv = self.kv.select(index)
        self.states = self.states[index]
        self.depth, self.lengths = self.depth[keep], self.lengths[keep]
        self.ids, self.parked = self.ids[keep], self.parked[keep]
        self._memo = None

    def _where(self, rows: np.ndarray, positions: np.ndarray) -> Where:
        """Rotary tables and masks, worked out once for as long as the same tokens move together."""
        key = rows.tobytes() + b"/" + positions.tobytes()
        if self._memo is None or self._memo[0] != key:
            every = len(rows) == self.kv.rows
            self._memo = (key, self.runner.where_at(positions, None if every else torch.from_numpy(rows)))
            device = self.states.device
            self._index = (torch.from_numpy(rows)[:, None].to(device), torch.from_numpy(positions).to(device))
        return self._memo[1]

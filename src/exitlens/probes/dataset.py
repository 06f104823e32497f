"""The rows that probes are fitted on, checked once: states, labels, groups, topics."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.stats.arrays import Numbers

__all__ = ["ProbeData", "join_groups", "make_data"]


@dataclass(frozen=True)
class ProbeData:
    """Checked rows. Build with :func:`make_data`.

    ``states [layers, n, d]`` float; ``labels [n]`` 0/1; ``groups [n]`` and ``topics [n]`` are codes (0..k-1), with
    ``topic_names``; ``layers`` names axis 0; ``negated [n]`` bool or None; ``texts`` or ().
    ``has_groups`` is False when no groups were given (each row is then its own).
    """

    states: Tensor
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    topics: NDArray[np.int64]
    topic_names: tuple[str, ...]
    layers: tuple[int, ...]
    negated: NDArray[np.bool_] | None
    texts: tuple[str, ...]
    has_groups: bool

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.labels.shape[0])

    @property
    def y(self) -> Tensor:
        """Labels ``[n]`` in the states' dtype."""
        return torch.from_numpy(self.labels).to(self.states.dtype)

    def fingerprint(self) -> str:
        """Hash of texts, labels and topics (not of the states)."""
        h = hashlib.sha256()
        for text in self.texts:
            h.update(text.encode("utf-8", "surrogatepass") + b"\0")
        for part in (self.labels, self.topics, self.groups):
            h.update(part.tobytes())
        return h.hexdigest()[:16]


def _codes(values: Numbers, n: int, what: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if len(values) != n:
        raise ProbeError(f"{len(values)} {what} for {n} rows: give one {what[:-1]} a row")
    seen: dict[Hashable, int] = {}
    codes = np.fromiter((seen.setdefault(v, len(seen)) for v in list(values)), dtype=np.int64, count=n)
    return codes, tuple(str(v) for v in seen)


def join_groups(*keys: Sequence[Hashable | None]) -> NDArray[np.int64]:
    """Group codes ``[n]`` such that rows that share any key (pair, or entity, ...) are in one group.

    ``None`` joins nothing. Connected components, numbered in order of first appearance.
    """
    n = len(keys[0]) if keys else 0
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for key in keys:
        if len(key) != n:
            raise ProbeError(f"keys of {len(key)} and {n} rows cannot be joined: give one key a row")
        first: dict[Hashable, int] = {}
        for i, value in enumerate(key):
            if value is not None:
                parent[root(i)] = root(first.setdefault(value, i))
    return _codes([root(i) for i in range(n)], n, "groups")[0]


def check_labels(labels: Numbers, what: str = "rows") -> NDArray[np.int64]:
    """Labels as int64 ``[n]``; :class:`ProbeError` unless all are 0 or 1 and both occur."""
    raw = np.asarray(labels)
    bad = np.flatnonzero(~np.isin(raw, [0, 1]))
    if bad.size:
        raise ProbeError(f"label {raw[bad[0]].item()!r} of example {bad[0]} is neither 0 nor 1: recode the labels")
    y = raw.astype(np.int64)
    if y.size == 0 or y.min() == y.max():
        value = "no" if y.size == 0 else f"only label {y[0]}"
        raise ProbeError(f"{value} among {y.size} {what}: a probe needs both true (1) and false (0) statements")
    return y


def check_states(states: Tensor, layers: tuple[int, ...]) -> None:
    """:class:`ProbeError` naming layer and example at the first NaN or infinity."""
    for k, j in enumerate(layers):
        # A sum is NaN or infinite as soon as one number is; finite sums skip the slow search.
        if not bool(torch.isfinite(states[k].sum(dtype=torch.float64))):
            bad = torch.nonzero(~torch.isfinite(states[k]).all(-1))
            if len(bad):
                i = int(bad[0])
                worst = states[k, i][~torch.isfinite(states[k, i])][0].item()
                raise ProbeError(
                    f"state of example {i} at layer {j} holds {worst}: drop that example, or extract in float32"
                )


def make_data(
    states: Tensor | NDArray[Any],
    labels: Numbers,
    groups: Numbers | None = None,
    topics: Numbers | None = None,
    *,
    layers: Sequence[int] | None = None,
    negated: Numbers | None = None,
    texts: Sequence[str] | None = None,
) -> ProbeData:
    """Check rows and code their groups and topics.

    ``states [layers, n, d]`` (bfloat16 and float16 become float32); ``labels [n]`` 0/1. ``groups``: rows with one
    value (an entity, a true/false pair; see :func:`join_groups`) stay on one side of every split.
    Raises :class:`ProbeError`: wrong shapes, labels other than 0/1, one class only, NaN or infinite states.
    """
    x = torch.from_numpy(states) if isinstance(states, np.ndarray) else states
    if x.ndim != 3:
        raise ProbeError(f"states of shape {tuple(x.shape)}: give [layers, examples, width]")
    x = x.detach().cpu()  # probes are fitted and kept there, wherever the states come from
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    y = check_labels(labels)
    n = len(y)
    if x.shape[1] != n:
        raise ProbeError(f"states of {x.shape[1]} examples for {n} labels: give one state a label")
    names = tuple(range(x.shape[0])) if layers is None else tuple(int(j) for j in layers)
    if len(names) != x.shape[0]:
        raise ProbeError(f"{len(names)} layer numbers for states of {x.shape[0]} layers: name each once")
    check_states(x, names)
    group_codes = np.arange(n) if groups is None else _codes(groups, n, "groups")[0]
    topic_codes, topic_names = (np.zeros(n, np.int64), ("all",)) if topics is None else _codes(topics, n, "topics")
    neg = None if negated is None else np.asarray(negated, dtype=np.bool_)
    if neg is not None and len(neg) != n:
        raise ProbeError(f"{len(neg)} polarities for {n} rows: give one a row")
    if texts is not None and len(texts) != n:
        raise ProbeError(f"{len(texts)} texts for {n} rows: give one a row")
    return ProbeData(
        x, y, group_codes, topic_codes, topic_names, names, neg, tuple(texts or ()), has_groups=groups is not None
    )

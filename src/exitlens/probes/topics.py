"""Does what is learned on one topic hold on another? The topic × topic transfer matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.probes.dataset import ProbeData
from exitlens.probes.evaluation import measure
from exitlens.probes.grid import Fold, Progress
from exitlens.probes.kinds.base import Kind
from exitlens.probes.nested import KindRun, run_kind
from exitlens.probes.splits import Split, inner_folds
from exitlens.stats import resample_counts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TopicTransfer", "topic_transfer"]


@dataclass(frozen=True)
class TopicTransfer:
    """``cells``: (train topic, test topic, layer, metric, value, low, high, n)."""

    kind: str
    cells: tuple[tuple[str, str, int, str, float, float, float, int], ...]

    def to_frame(self) -> pd.DataFrame:
        """Table ``probe_transfer``: kind, train, test, layer (chosen on train), metric, value, low, high, n."""
        import pandas as pd

        columns = ["train", "test", "layer", "metric", "value", "low", "high", "n"]
        frame = pd.DataFrame(list(self.cells), columns=columns)
        frame.insert(0, "kind", self.kind)
        return frame


def topic_transfer(
    data: ProbeData,
    kind: str | Kind = "logistic",
    *,
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress | None = None,
) -> TopicTransfer:
    """Train on one topic (layer and setting chosen inside it by grouped folds), test on each other topic.

    On the diagonal, probes of the topic are tested on its own held-out third (three grouped folds). Raises
    :class:`ProbeError` when a topic has one class only, or there is one topic.
    """
    names = data.topic_names
    if len(names) < 2:
        raise ProbeError(f"one topic only ('{names[0]}'): a transfer matrix needs two")
    # Inner folds of "all others" and the diagonal's outer folds are the same three training sets, fitted once each.
    folds: list[Fold] = []
    inner: list[tuple[Fold, ...]] = []
    own: list[tuple[int, ...]] = []
    for t, name in enumerate(names):
        rows = np.flatnonzero(data.topics == t)
        parts = inner_folds(data, rows, seed)
        away = np.flatnonzero((data.topics != t) & ~np.isin(data.groups, data.groups[rows]))
        folds.append(Fold(name, rows, away))
        inner.append(parts)
        diagonal = []
        for part in parts:
            diagonal.append(len(folds))
            folds.append(Fold(f"{name} inside", part.train, part.test))
            inner.append(inner_folds(data, part.train, seed))
        own.append(tuple(diagonal))
    run = run_kind(kind, data, Split("topic-transfer", tuple(folds), tuple(inner)), seeds=(seed,), progress=progress)
    cells = []
    for t, train in enumerate(names):
        outer = int(np.flatnonzero([f.name == train for f in folds])[0])
        for u, test in enumerate(names):
            if u == t:
                picked = np.isin(run.folds, own[t])
                layer = run.chosen_layers[own[t][0]]
            else:
                picked = (run.folds == outer) & (data.topics[run.rows] == u)
                layer = run.chosen_layers[outer]
            cells += [(train, test, layer, *cell) for cell in _cell(data, run, picked, resamples, seed)]
    return TopicTransfer(run.kind, tuple(cells))


def _cell(
    data: ProbeData, run: KindRun, picked: NDArray[np.bool_], resamples: int, seed: int
) -> list[tuple[str, float, float, float, int]]:
    rows = run.rows[picked]
    if not len(rows):
        return []
    p: Tensor = run.best[:1, torch.from_numpy(picked)]
    counts = resample_counts(data.groups[rows], resamples, seed)
    found = measure(p, data.labels[rows], run.folds[picked], data.groups[rows], counts, ("accuracy", "auroc"))
    return [(name, v.value, v.low, v.high, len(rows)) for name, v in found.items()]

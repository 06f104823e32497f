"""What a probe study measured: filled by :func:`evaluate`, read by the tables and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from exitlens.probes.nested import KindRun
from exitlens.stats import Interval

__all__ = ["Comparison", "Measured", "ProbeStudy", "Role"]

# "probe", "ensemble" (several layers together), "control" (random labels), "floor" (text only), "model" (its answer)
Role = Literal["probe", "ensemble", "control", "floor", "model"]


@dataclass(frozen=True)
class Measured:
    """Metrics of one predictor: ``{metric: value and interval}``, mean over its seeds. ``layer``: None when chosen."""

    name: str
    role: Role
    layer: int | None
    n_seeds: int
    values: Mapping[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """Accuracy of ``a`` minus that of ``b`` on the same statements; p corrected by Holm over all comparisons."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class ProbeStudy:
    """Everything measured under one protocol.

    ``predictions``: name → P(true) ``[seeds, m]`` of the chosen probes, ensembles and baselines on the tested
    ``rows [m]``, whose ``labels [m]`` and ``groups [m]`` stand beside. ``selectivity``: kind → accuracy less that of
    the same kind on random labels (the mean of several draws).
    """

    protocol: str
    runs: tuple[KindRun, ...]
    layers: tuple[Measured, ...]
    best: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]
    predictions: Mapping[str, Tensor]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    rows: NDArray[np.int64]
    notes: tuple[str, ...]
    selectivity: Mapping[str, float]

    @property
    def n_groups(self) -> int:
        """Groups among the tested rows: the independent observations."""
        return len(np.unique(self.groups))

    @property
    def top(self) -> Measured:
        """The probe of highest accuracy outside its training folds."""
        return max((m for m in self.best if m.role == "probe"), key=lambda m: m.values["accuracy"].value)

    def run_of(self, kind: str) -> KindRun:
        """The run of that kind."""
        return next(run for run in self.runs if run.kind == kind)

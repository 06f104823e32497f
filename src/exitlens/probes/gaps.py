"""By how much a probe ranks better than what it has to beat: paired differences of AUROC, over the same resamples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exitlens.probes.evaluation import fold_auroc
from exitlens.probes.results import ProbeStudy
from exitlens.stats import quantiles, resample_counts
from exitlens.stats.arrays import Array

__all__ = ["AurocGap", "auroc_gaps"]


@dataclass(frozen=True, slots=True)
class AurocGap:
    """AUROC of ``probe`` minus that of ``rival`` on the same rows, with its interval."""

    probe: str
    rival: str
    difference: float
    low: float
    high: float


def auroc_gaps(study: ProbeStudy, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> list[AurocGap]:
    """Every probe of a study against its floor and the model's own answers.

    Accuracy compares thresholds, and where one class is rare every threshold that says "the other" wins; the AUROC
    compares rankings. Groups are resampled, both AUROCs are taken within test folds of the same resample.

    Args:
        study: What :func:`evaluate` returned.
        level: Of all intervals of one probe together: each is wider (Bonferroni), so that the statement "better than
            the best of them" keeps the level.
        resamples: Bootstrap draws of groups.
        seed: Of those draws.
    """
    folds, true = study.runs[0].folds, study.labels == 1
    counts = resample_counts(study.groups, resamples, seed)

    def areas(name: str) -> Array:
        seeds = study.predictions[name].double().numpy()
        found: Array = np.mean([fold_auroc(p, true, folds, counts) for p in seeds], axis=0)
        return found

    probes = [m.name for m in study.best if m.role == "probe"]
    rivals = {m.name: areas(m.name) for m in study.best if m.role in ("floor", "model")}
    out = []
    for probe in probes:
        mine = areas(probe)
        for rival, theirs in rivals.items():
            gap = mine - theirs
            low, high = quantiles(gap[1:, None], 1 - (1 - level) / len(rivals))
            out.append(AurocGap(probe, rival, float(gap[0]), float(low[0]), float(high[0])))
    return out

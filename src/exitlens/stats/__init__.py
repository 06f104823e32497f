"""Intervals, tests, ranking and calibration: numpy float64, vectorised over layers, the same for the same seed."""

from exitlens.stats.bootstrap import (
    Difference,
    Differences,
    Interval,
    Intervals,
    bootstrap,
    bootstrap_columns,
    mean,
    paired_difference,
    paired_differences,
    sign_flip_p,
)
from exitlens.stats.effects import McNemar, adjusted_difference, cohens_d, mcnemar, permutation_p
from exitlens.stats.multiple import benjamini_hochberg, holm
from exitlens.stats.ranking import auroc, auroc_columns, auroc_interval, auroc_intervals
from exitlens.stats.reliability import (
    Reliability,
    RiskCoverage,
    aurc,
    brier,
    ece,
    reliability,
    risk_coverage,
    selective_accuracy,
)
from exitlens.stats.token_means import POOLED_WARNING, TokenMeans, group_token_mean

__all__ = [
    "POOLED_WARNING",
    "Difference",
    "Differences",
    "Interval",
    "Intervals",
    "McNemar",
    "Reliability",
    "RiskCoverage",
    "TokenMeans",
    "adjusted_difference",
    "aurc",
    "auroc",
    "auroc_columns",
    "auroc_interval",
    "auroc_intervals",
    "benjamini_hochberg",
    "bootstrap",
    "bootstrap_columns",
    "brier",
    "cohens_d",
    "ece",
    "group_token_mean",
    "holm",
    "mcnemar",
    "mean",
    "paired_difference",
    "paired_differences",
    "permutation_p",
    "reliability",
    "risk_coverage",
    "selective_accuracy",
    "sign_flip_p",
]

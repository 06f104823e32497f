"""Intervals, tests, ranking and reliability: numpy float64, vectorised over layers, the same for the same seed."""

from exitlens.stats.bootstrap import (
    Interval,
    Intervals,
    bootstrap_interval,
    interval_note,
    interval_of,
    quantiles,
    resample_counts,
    weighted_mean,
)
from exitlens.stats.bounded import calibration_error_interval, risk_area_interval, share_interval
from exitlens.stats.effects import McNemar, adjusted_difference, cohens_d, mcnemar, permutation_p
from exitlens.stats.independent import independent_difference
from exitlens.stats.means import mean_interval, mean_intervals
from exitlens.stats.multiple import benjamini_hochberg, holm
from exitlens.stats.paired import Difference, Differences, paired_difference, paired_differences, sign_flip_p
from exitlens.stats.ranking import (
    auroc,
    auroc_columns,
    auroc_interval,
    auroc_intervals,
    logit_interval,
    perfect_room,
    weighted_auroc,
)
from exitlens.stats.reliability import (
    Reliability,
    RiskCoverage,
    aurc,
    brier,
    ece,
    reliability_curve,
    risk_coverage,
    selective_accuracy,
    weighted_brier,
    weighted_ece,
    weighted_ece_noise,
    weighted_risk,
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
    "bootstrap_interval",
    "brier",
    "calibration_error_interval",
    "cohens_d",
    "ece",
    "group_token_mean",
    "holm",
    "independent_difference",
    "interval_note",
    "interval_of",
    "logit_interval",
    "mcnemar",
    "mean_interval",
    "mean_intervals",
    "paired_difference",
    "paired_differences",
    "perfect_room",
    "permutation_p",
    "quantiles",
    "reliability_curve",
    "resample_counts",
    "risk_area_interval",
    "risk_coverage",
    "selective_accuracy",
    "share_interval",
    "sign_flip_p",
    "weighted_auroc",
    "weighted_brier",
    "weighted_ece",
    "weighted_ece_noise",
    "weighted_mean",
    "weighted_risk",
]

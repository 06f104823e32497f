"""Truth probes: what hidden states know about whether a statement is true, measured so that it means something.

Everything here is pure: states ``[layers, n, d]``, labels, groups and topics in, frozen results out.
"""

from .base import LinearProbe, Probe, Provenance, from_tensors
from .controls import Baseline, from_scores, lm_baselines, random_label_data, text_floor
from .data import ProbeData, join_groups, make_data
from .ensemble import Ensemble, make_ensemble
from .evaluate import Comparison, Measured, ProbeStudy, evaluate
from .fit import Fold, Grid, fit, fit_grid, fit_rows
from .kinds import KINDS, kind_named
from .nested import KindRun, run_kind
from .original import OriginalStudy, original_study
from .protocols import (
    Split,
    affirmed_to_negated,
    fixed_split,
    grouped_k_fold,
    leave_one_topic_out,
    make_split,
    random_k_fold,
    transfer,
)
from .tables import TABLES
from .topics import TopicTransfer, topic_transfer
from .verdict import verdict

__all__ = [
    "KINDS",
    "TABLES",
    "Baseline",
    "Comparison",
    "Ensemble",
    "Fold",
    "Grid",
    "KindRun",
    "LinearProbe",
    "Measured",
    "OriginalStudy",
    "Probe",
    "ProbeData",
    "ProbeStudy",
    "Provenance",
    "Split",
    "TopicTransfer",
    "affirmed_to_negated",
    "evaluate",
    "fit",
    "fit_grid",
    "fit_rows",
    "fixed_split",
    "from_scores",
    "from_tensors",
    "grouped_k_fold",
    "join_groups",
    "kind_named",
    "leave_one_topic_out",
    "lm_baselines",
    "make_data",
    "make_ensemble",
    "make_split",
    "original_study",
    "random_k_fold",
    "random_label_data",
    "run_kind",
    "text_floor",
    "topic_transfer",
    "transfer",
    "verdict",
]

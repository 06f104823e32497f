"""Truth probes: what hidden states know about whether a statement is true, measured so that it means something.

Everything here is pure: states ``[layers, n, d]``, labels, groups and topics in, frozen results out.
"""

from exitlens.probes.controls import Baseline, from_scores, lm_baselines, random_label_data, text_floor
from exitlens.probes.dataset import ProbeData, join_groups, make_data
from exitlens.probes.ensemble import Ensemble, make_ensemble
from exitlens.probes.evaluate import Comparison, Measured, ProbeStudy, evaluate
from exitlens.probes.fit import Fold, Grid, fit, fit_grid, fit_rows
from exitlens.probes.kinds import KINDS, kind_named
from exitlens.probes.nested import KindRun, run_kind
from exitlens.probes.original_study import OriginalStudy, original_study
from exitlens.probes.probe import LinearProbe, Probe, Provenance, from_tensors
from exitlens.probes.splits import (
    Split,
    affirmed_to_negated,
    fixed_split,
    grouped_k_fold,
    leave_one_topic_out,
    make_split,
    random_k_fold,
    transfer,
)
from exitlens.probes.tables import TABLES
from exitlens.probes.topic_transfer import TopicTransfer, topic_transfer
from exitlens.probes.verdict import verdict

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

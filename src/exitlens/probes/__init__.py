"""Truth probes: what hidden states know about whether a statement is true, measured so that it means something.

Everything here is pure: states ``[layers, n, d]``, labels, groups and topics in, frozen results out.
"""

from exitlens.probes.auroc_gaps import AurocGap, auroc_gaps
from exitlens.probes.controls import Baseline, calibrated, from_scores, lm_baselines, random_label_data, text_floor
from exitlens.probes.dataset import ProbeData, join_groups, make_data
from exitlens.probes.ensemble import Ensemble, make_ensemble
from exitlens.probes.evaluation import evaluate
from exitlens.probes.grid import Fold, Grid, fit, fit_grid, fit_rows
from exitlens.probes.kinds import KINDS, kind_named, register_kind
from exitlens.probes.kinds.base import FittedStack, Kind, LinearStack
from exitlens.probes.nested import KindRun, run_kind
from exitlens.probes.original import OriginalStudy, original_study
from exitlens.probes.probe import (
    LinearProbe,
    Probe,
    Provenance,
    SavedProbe,
    from_tensors,
    load_probe,
    register_form,
    save_probe,
)
from exitlens.probes.results import Comparison, Measured, ProbeStudy
from exitlens.probes.sentence import verdict
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
from exitlens.probes.tables import TABLES, to_frame
from exitlens.probes.topics import TopicTransfer, topic_transfer

__all__ = [
    "KINDS",
    "TABLES",
    "AurocGap",
    "Baseline",
    "Comparison",
    "Ensemble",
    "FittedStack",
    "Fold",
    "Grid",
    "Kind",
    "KindRun",
    "LinearProbe",
    "LinearStack",
    "Measured",
    "OriginalStudy",
    "Probe",
    "ProbeData",
    "ProbeStudy",
    "Provenance",
    "SavedProbe",
    "Split",
    "TopicTransfer",
    "affirmed_to_negated",
    "auroc_gaps",
    "calibrated",
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
    "load_probe",
    "make_data",
    "make_ensemble",
    "make_split",
    "original_study",
    "random_k_fold",
    "random_label_data",
    "register_form",
    "register_kind",
    "run_kind",
    "save_probe",
    "text_floor",
    "to_frame",
    "topic_transfer",
    "transfer",
    "verdict",
]

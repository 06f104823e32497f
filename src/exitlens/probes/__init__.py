"""Truth probes: what hidden states know about whether a statement is true, measured so that it means something.

Everything here is pure: states ``[layers, n, d]``, labels, groups and topics in, frozen results out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exitlens.lazy import lazy_names

if TYPE_CHECKING:
    from exitlens.probes.controls import Baseline as Baseline
    from exitlens.probes.controls import calibrated as calibrated
    from exitlens.probes.controls import from_scores as from_scores
    from exitlens.probes.controls import lm_baselines as lm_baselines
    from exitlens.probes.controls import random_label_data as random_label_data
    from exitlens.probes.controls import text_floor as text_floor
    from exitlens.probes.dataset import ProbeData as ProbeData
    from exitlens.probes.dataset import join_groups as join_groups
    from exitlens.probes.dataset import make_data as make_data
    from exitlens.probes.ensemble import Ensemble as Ensemble
    from exitlens.probes.ensemble import make_ensemble as make_ensemble
    from exitlens.probes.evaluation import evaluate as evaluate
    from exitlens.probes.gaps import AurocGap as AurocGap
    from exitlens.probes.gaps import auroc_gaps as auroc_gaps
    from exitlens.probes.grid import Fold as Fold
    from exitlens.probes.grid import Grid as Grid
    from exitlens.probes.grid import fit as fit
    from exitlens.probes.grid import fit_grid as fit_grid
    from exitlens.probes.grid import fit_rows as fit_rows
    from exitlens.probes.kinds import KINDS as KINDS
    from exitlens.probes.kinds import kind_named as kind_named
    from exitlens.probes.kinds import register_kind as register_kind
    from exitlens.probes.kinds.base import FittedStack as FittedStack
    from exitlens.probes.kinds.base import Kind as Kind
    from exitlens.probes.kinds.base import LinearStack as LinearStack
    from exitlens.probes.nested import KindRun as KindRun
    from exitlens.probes.nested import run_kind as run_kind
    from exitlens.probes.original import OriginalStudy as OriginalStudy
    from exitlens.probes.original import original_study as original_study
    from exitlens.probes.probe import LinearProbe as LinearProbe
    from exitlens.probes.probe import Probe as Probe
    from exitlens.probes.probe import Provenance as Provenance
    from exitlens.probes.probe import SavedProbe as SavedProbe
    from exitlens.probes.probe import from_tensors as from_tensors
    from exitlens.probes.probe import load_probe as load_probe
    from exitlens.probes.probe import register_form as register_form
    from exitlens.probes.probe import save_probe as save_probe
    from exitlens.probes.results import Comparison as Comparison
    from exitlens.probes.results import Measured as Measured
    from exitlens.probes.results import ProbeStudy as ProbeStudy
    from exitlens.probes.sentence import verdict as verdict
    from exitlens.probes.splits import Split as Split
    from exitlens.probes.splits import affirmed_to_negated as affirmed_to_negated
    from exitlens.probes.splits import fixed_split as fixed_split
    from exitlens.probes.splits import grouped_k_fold as grouped_k_fold
    from exitlens.probes.splits import leave_one_topic_out as leave_one_topic_out
    from exitlens.probes.splits import make_split as make_split
    from exitlens.probes.splits import random_k_fold as random_k_fold
    from exitlens.probes.splits import transfer as transfer
    from exitlens.probes.tables import TABLES as TABLES
    from exitlens.probes.tables import to_frame as to_frame
    from exitlens.probes.topics import TopicTransfer as TopicTransfer
    from exitlens.probes.topics import topic_transfer as topic_transfer

_HOME = {
    "AurocGap": "gaps",
    "Baseline": "controls",
    "Comparison": "results",
    "Ensemble": "ensemble",
    "FittedStack": "kinds.base",
    "Fold": "grid",
    "Grid": "grid",
    "KINDS": "kinds",
    "Kind": "kinds.base",
    "KindRun": "nested",
    "LinearProbe": "probe",
    "LinearStack": "kinds.base",
    "Measured": "results",
    "OriginalStudy": "original",
    "Probe": "probe",
    "ProbeData": "dataset",
    "ProbeStudy": "results",
    "Provenance": "probe",
    "SavedProbe": "probe",
    "Split": "splits",
    "TABLES": "tables",
    "TopicTransfer": "topics",
    "affirmed_to_negated": "splits",
    "auroc_gaps": "gaps",
    "calibrated": "controls",
    "evaluate": "evaluation",
    "fit": "grid",
    "fit_grid": "grid",
    "fit_rows": "grid",
    "fixed_split": "splits",
    "from_scores": "controls",
    "from_tensors": "probe",
    "grouped_k_fold": "splits",
    "join_groups": "dataset",
    "kind_named": "kinds",
    "leave_one_topic_out": "splits",
    "lm_baselines": "controls",
    "load_probe": "probe",
    "make_data": "dataset",
    "make_ensemble": "ensemble",
    "make_split": "splits",
    "original_study": "original",
    "random_k_fold": "splits",
    "random_label_data": "controls",
    "register_form": "probe",
    "register_kind": "kinds",
    "run_kind": "nested",
    "save_probe": "probe",
    "text_floor": "controls",
    "to_frame": "tables",
    "topic_transfer": "topics",
    "transfer": "splits",
    "verdict": "sentence",
}

__all__ = list(_HOME)

__getattr__ = lazy_names(__name__, _HOME)

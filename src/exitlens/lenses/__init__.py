"""What a layer would have said: lenses, statistics of their distributions, and named results over whole texts.

The names load what they need on first use: the command line lists the statistics without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exitlens.lazy import lazy_names

if TYPE_CHECKING:
    from exitlens.lenses.jacobian.fit import FitReport as FitReport
    from exitlens.lenses.jacobian.fit import fit_jacobian_lens as fit_jacobian_lens
    from exitlens.lenses.jacobian.lens import JacobianLens as JacobianLens
    from exitlens.lenses.lens import Lens as Lens
    from exitlens.lenses.read_hidden import Readout as Readout
    from exitlens.lenses.read_hidden import readout as readout
    from exitlens.lenses.read_texts import read as read
    from exitlens.lenses.read_texts import read_ids as read_ids
    from exitlens.lenses.statistics import STATS as STATS
    from exitlens.lenses.statistics import register_statistic as register_statistic
    from exitlens.lenses.trace import Trace as Trace
    from exitlens.lenses.train_tuned import TrainingReport as TrainingReport
    from exitlens.lenses.train_tuned import train_tuned_lens as train_tuned_lens
    from exitlens.lenses.tuned import TunedLens as TunedLens

_HOME = {
    "FitReport": "jacobian.fit",
    "JacobianLens": "jacobian.lens",
    "Lens": "lens",
    "Readout": "read_hidden",
    "STATS": "statistics",
    "Trace": "trace",
    "TrainingReport": "train_tuned",
    "TunedLens": "tuned",
    "fit_jacobian_lens": "jacobian.fit",
    "read": "read_texts",
    "read_ids": "read_texts",
    "readout": "read_hidden",
    "register_statistic": "statistics",
    "train_tuned_lens": "train_tuned",
}

__all__ = list(_HOME)

__getattr__ = lazy_names(__name__, _HOME)

"""What a layer would have said: lenses, statistics of their distributions, and named results over whole texts."""

from .files import load_lens, save_lens
from .reading import read, read_ids
from .readout import STATS, Readout, readout
from .trace import Trace
from .training import TrainingReport, train_tuned_lens
from .tuned import TunedLens

__all__ = [
    "STATS",
    "Readout",
    "Trace",
    "TrainingReport",
    "TunedLens",
    "load_lens",
    "read",
    "read_ids",
    "readout",
    "save_lens",
    "train_tuned_lens",
]

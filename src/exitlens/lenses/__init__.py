"""What a layer would have said: lenses, statistics of their distributions, and named results over whole texts."""

from .files import load_lens, load_trace, save_lens, save_trace
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
    "load_trace",
    "read",
    "read_ids",
    "readout",
    "save_lens",
    "save_trace",
    "train_tuned_lens",
]

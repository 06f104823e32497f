"""What a layer would have said: lenses, statistics of their distributions, and named results over whole texts."""

from exitlens.lenses.files import load_lens, load_trace, save_lens, save_trace
from exitlens.lenses.read_texts import read, read_ids
from exitlens.lenses.readout import STATS, Readout, readout
from exitlens.lenses.trace import Trace
from exitlens.lenses.train_tuned import TrainingReport, train_tuned_lens
from exitlens.lenses.tuned import TunedLens

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

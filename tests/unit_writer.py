"""Fills a run directory with units of work; as a script (``unit_writer.py PLACE N``) in a process that a test kills."""

from __future__ import annotations

import sys
from functools import partial

import pandas as pd

from exitlens.runs.directory import RunDirectory
from exitlens.storage.atomic import write_parquet

__all__ = ["fill"]


def fill(directory: RunDirectory, units: int = 6) -> None:
    """Make the units that are missing, each of two files, and a table of all."""
    sealed = directory.units("stage")
    for number in range(units):
        if sealed.whole(number, "k") is None:
            frame = pd.DataFrame({"x": [number * i for i in range(10)]})
            write = partial(write_parquet, frame=frame)
            sealed.write(number, "k", {"a.parquet": write, "b.parquet": write}, {"seconds": 1.0})
    directory.assemble("all", [sealed.path(n, "k", "a.parquet") for n in range(units)])


if __name__ == "__main__":
    with RunDirectory.open(sys.argv[1], {"a": 1}) as run:
        fill(run, int(sys.argv[2]))

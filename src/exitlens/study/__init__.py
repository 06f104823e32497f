"""Studies as resumable runs: configuration, run directory, stages and the engine that maps them."""

from __future__ import annotations

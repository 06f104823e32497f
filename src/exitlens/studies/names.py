"""The studies by name, in the order in which they run: the cheapest answer for the reader first, the longest last."""

from __future__ import annotations

__all__ = ["HOMES"]

# Where each study lives, so that a name can be checked and listed without importing the study (and with it torch).
# `exitlens.studies.registry.register` adds to it.
HOMES: dict[str, str] = {
    "layers": "exitlens.studies.layers.study",
    "entropy": "exitlens.studies.entropy.study",
    "probes": "exitlens.studies.probes.study",
    "decoding": "exitlens.studies.decoding.study",
    "exits": "exitlens.studies.exits.study",
}

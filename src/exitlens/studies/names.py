"""The studies by name, in the order in which they run: the cheapest answer for the reader first, the longest last."""

from __future__ import annotations

__all__ = ["HOMES", "usual_studies"]

# Where each study lives, so that a name can be checked and listed without importing the study (and with it torch).
# `exitlens.studies.registry.register` adds to it.
HOMES: dict[str, str] = {
    "layers": "exitlens.studies.layers.study",
    "entropy": "exitlens.studies.entropy.study",
    "probes": "exitlens.studies.probes.study",
    "decoding": "exitlens.studies.decoding.study",
    "exits": "exitlens.studies.exits.study",
    "lenses": "exitlens.studies.lens_quality.study",
}

_ON_REQUEST = frozenset({"lenses"})  # there are no bundled data of the kind that it reads


def usual_studies() -> tuple[str, ...]:
    """The studies that a run without ``--only`` has."""
    return tuple(name for name in HOMES if name not in _ON_REQUEST)

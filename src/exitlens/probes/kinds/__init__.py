"""The registry of kinds: a name of ``--kinds`` to the object that fits it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from exitlens.errors import ProbeError
from exitlens.probes.kinds.base import Kind
from exitlens.probes.kinds.ccs import CCS
from exitlens.probes.kinds.lda import LDA
from exitlens.probes.kinds.logistic import Logistic
from exitlens.probes.kinds.mass_mean import MassMean
from exitlens.probes.kinds.mlp import MLP
from exitlens.probes.kinds.ttpd import TTPD

__all__ = ["KINDS", "kind_named"]

KINDS: Mapping[str, Kind] = MappingProxyType(
    {k.name: k for k in (Logistic(), MassMean(), MassMean(whiten=True), LDA(), MLP(), CCS(), TTPD())}
)


def kind_named(name: str | Kind) -> Kind:
    """The kind of that name (a kind is returned as it is); :class:`ProbeError` lists the known names."""
    if not isinstance(name, str):
        return name
    if name not in KINDS:
        raise ProbeError(f"unknown kind of probe '{name}': known are {', '.join(KINDS)}")
    return KINDS[name]

"""The registry of kinds: a name of ``--kinds`` to the object that fits it. :func:`register_kind` adds one of your own:

@dataclass(frozen=True, kw_only=True)
class Nearest(Kind):
    name: str = "nearest"

    def fit(self, states, data, trains, seeds): ...

register_kind(Nearest())
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from exitlens.errors import ProbeError
from exitlens.probes.kinds.base import Kind
from exitlens.probes.kinds.ccs import CCS
from exitlens.probes.kinds.lda import LDA
from exitlens.probes.kinds.logistic import Logistic
from exitlens.probes.kinds.mass_mean import MassMean, WhitenedMassMean
from exitlens.probes.kinds.mlp import MLP
from exitlens.probes.kinds.ttpd import TTPD

__all__ = ["KINDS", "kind_named", "register_kind"]

_BUILT_IN: tuple[Kind, ...] = (Logistic(), MassMean(), WhitenedMassMean(), LDA(), MLP(), CCS(), TTPD())
_KINDS = {kind.name: kind for kind in _BUILT_IN}
KINDS: Mapping[str, Kind] = MappingProxyType(_KINDS)


def kind_named(name: str | Kind) -> Kind:
    """The kind of that name (a kind is returned as it is); :class:`ProbeError` lists the known names."""
    if not isinstance(name, str):
        return name
    if name not in _KINDS:
        raise ProbeError(f"unknown kind of probe '{name[:80]}': known are {', '.join(_KINDS)}")
    return _KINDS[name]


def register_kind(kind: Kind) -> Kind:
    """Let ``kind.name`` be used wherever a kind is named (``--kinds``, :func:`evaluate`); returns the kind.

    Raises :class:`ProbeError` for a name that is taken, empty, or holds a comma (names are comma-separated).
    """
    if not isinstance(kind, Kind):
        raise ProbeError(f"{str(kind)[:80]!r} is no kind of probe: give an object of a class that extends Kind")
    name = kind.name
    if not name or "," in name or name != name.strip():
        raise ProbeError(f"'{name[:80]}' cannot name a kind of probe: use a word without commas")
    if _KINDS.get(name, kind) != kind:
        raise ProbeError(f"a kind of probe '{name[:80]}' is registered already: give yours another name")
    _KINDS[name] = kind
    return kind

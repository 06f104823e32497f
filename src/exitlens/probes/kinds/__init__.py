"""The registry of kinds: a name of ``--kinds`` to the object that fits it. :func:`register_kind` adds one of your own:

@dataclass(frozen=True, kw_only=True)
class Nearest(Kind):
    name: str = "nearest"

    def fit(self, states, data, trains, seeds): ...

register_kind(Nearest())
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

from exitlens.errors import ProbeError

if TYPE_CHECKING:
    from exitlens.probes.kinds.base import Kind

__all__ = ["KINDS", "check_kind", "kind_named", "register_kind"]

# Where each kind lives, so that a name can be checked and listed without importing the kind (and with it torch).
_HOMES: dict[str, tuple[str, str]] = {
    "logistic": ("logistic", "Logistic"),
    "mass-mean": ("mass_mean", "MassMean"),
    "mass-mean-whitened": ("mass_mean", "WhitenedMassMean"),
    "lda": ("lda", "LDA"),
    "mlp": ("mlp", "MLP"),
    "ccs": ("ccs", "CCS"),
    "ttpd": ("ttpd", "TTPD"),
}


class _Kinds(Mapping[str, "Kind"]):
    """Kinds by name, a user's own last; a built-in one is loaded when it is first asked for."""

    def __init__(self) -> None:
        self.own: dict[str, Kind] = {}
        self._loaded: dict[str, Kind] = {}

    def __getitem__(self, name: str) -> Kind:
        if name in self.own:
            return self.own[name]
        if name not in self._loaded:
            module, kind = _HOMES[name]
            self._loaded[name] = cast("Kind", getattr(import_module(f"{__name__}.{module}"), kind)())
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in _HOMES or name in self.own

    def __iter__(self) -> Iterator[str]:
        return iter((*_HOMES, *self.own))

    def __len__(self) -> int:
        return len(_HOMES) + len(self.own)


KINDS = _Kinds()


def check_kind(name: str) -> None:
    """Raise :class:`ProbeError`, which lists the known names, when no kind is called ``name``; nothing is loaded."""
    if name not in KINDS:
        raise ProbeError(f"unknown kind of probe '{name[:80]}': known are {', '.join(KINDS)}")


def kind_named(name: str | Kind) -> Kind:
    """The kind of that name (a kind is returned as it is); :class:`ProbeError` lists the known names."""
    if not isinstance(name, str):
        return name
    check_kind(name)
    return KINDS[name]


def register_kind(kind: Kind) -> Kind:
    """Let ``kind.name`` be used wherever a kind is named (``--kinds``, :func:`evaluate`); returns the kind.

    Raises :class:`ProbeError` for a name that is taken, empty, or holds a comma (names are comma-separated).
    """
    from exitlens.probes.kinds.base import Kind as Base

    if not isinstance(kind, Base):
        raise ProbeError(f"{str(kind)[:80]!r} is no kind of probe: give an object of a class that extends Kind")
    name = kind.name
    if not name or "," in name or name != name.strip():
        raise ProbeError(f"'{name[:80]}' cannot name a kind of probe: use a word without commas")
    if KINDS.get(name, kind) != kind:
        raise ProbeError(f"a kind of probe '{name[:80]}' is registered already: give yours another name")
    if name not in KINDS:
        KINDS.own[name] = kind
    return kind

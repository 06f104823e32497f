"""How the protocols of a probe study are named: checked without loading what splits the rows."""

from __future__ import annotations

from exitlens.errors import ProbeError
from exitlens.parsing import cut

__all__ = ["PROTOCOLS", "check_protocol_name"]

PROTOCOLS = (
    "leave-one-topic-out", "grouped-k-fold", "original", "affirmed-to-negated", "transfer", "random-k-fold",
)  # fmt: skip


def check_protocol_name(name: str) -> None:
    """Raise :class:`ProbeError`, which lists the known names, when no protocol is called ``name``."""
    if name not in PROTOCOLS:
        raise ProbeError(f"unknown protocol {cut(repr(name))}: known are {', '.join(PROTOCOLS)}")

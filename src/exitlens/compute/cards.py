"""What makers state of their accelerators: enough to say how long a known amount of work takes on one.

Peaks are those of dense bf16 products with float32 sums. Data sheets of NVIDIA print twice as much, "with sparsity",
which no language model's product reaches.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from exitlens.errors import InputError

__all__ = ["CARDS", "Card", "card_named"]


@dataclass(frozen=True, slots=True)
class Card:
    """An accelerator.

    Attributes:
        name: As ``--card`` takes it.
        peak: Dense bf16 products [FLOP/s].
        memory: Its own memory [bytes].
        bandwidth: Of that memory [bytes/s].
        source: Where the maker says so.
    """

    name: str
    peak: float
    memory: float
    bandwidth: float
    source: str


# Checked on 2026-11-27 against copies of these sheets and tables that cite them. Where one prints the peak "with
# sparsity", half of it is taken.
_ALL = (
    Card("A100-40GB", 312e12, 40e9, 1.555e12, "NVIDIA A100 Tensor Core GPU data sheet (SXM)"),
    Card("A100", 312e12, 80e9, 2.039e12, "NVIDIA A100 Tensor Core GPU data sheet (SXM, 80 GB)"),
    Card("H100", 989e12, 80e9, 3.35e12, "NVIDIA H100 Tensor Core GPU data sheet (SXM)"),  # 1,979 with sparsity
    Card("H100-PCIe", 756e12, 80e9, 2.0e12, "NVIDIA H100 Tensor Core GPU data sheet (PCIe)"),  # 1,513 with sparsity
    Card("H200", 989e12, 141e9, 4.8e12, "NVIDIA H200 Tensor Core GPU data sheet (SXM)"),  # 1,979 with sparsity
    # 2,250 dense at 1,000 W; the bus has 7,680 bits at 3,996 MHz, of the 8,192 that were announced.
    Card("B200", 2250e12, 180e9, 7.67e12, "NVIDIA Blackwell architecture brief (HGX B200)"),
    Card("L4", 121e12, 24e9, 0.3e12, "NVIDIA L4 Tensor Core GPU data sheet"),  # 242 with sparsity
    Card("L40S", 362e12, 48e9, 0.864e12, "NVIDIA L40S GPU data sheet"),  # 362 dense, 733 with sparsity
    Card("RTX-4090", 165e12, 24e9, 1.008e12, "NVIDIA Ada GPU architecture white paper (sums in float32)"),
    Card("MI300X", 1307e12, 192e9, 5.3e12, "AMD Instinct MI300X accelerator data sheet"),  # 1,307.4 dense
)

CARDS: Mapping[str, Card] = MappingProxyType({card.name: card for card in _ALL})
"""Every card by name."""


def card_named(name: str) -> Card:
    """The card of this name, upper and lower case alike. Raises InputError for one that is not in the table."""
    lower = {card.name.lower(): card for card in _ALL}
    if name.lower() in lower:
        return lower[name.lower()]
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    hint = f"did you mean {lower[near[0]].name}? " if near else ""
    raise InputError(f"unknown card {name[:80]!r}: {hint}use {', '.join(CARDS)}")

"""Which prompts run together: sorted by length, in batches, with what all of them begin with computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Plan", "plan_batches"]

# Below this many tokens a shared prefix costs more in copies than it saves.
_MIN_PREFIX = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """``prefix``: token ids that every prompt starts with; ``batches``: indices into the prompts, longest first."""

    prefix: tuple[int, ...]
    batches: tuple[tuple[int, ...], ...]


def plan_batches(ids: Sequence[Sequence[int]], batch_size: int, *, gap_exact: bool) -> Plan:
    """Batches of at most ``batch_size`` rows, close in length (of one length where padding would change numbers).

    The prefix leaves at least one token to every prompt, and is empty for a single one.
    """
    prefix = _shared(ids)
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    for i in order:
        full = len(batch) == batch_size
        if batch and (full or (not gap_exact and len(ids[i]) != len(ids[batch[0]]))):
            batches.append(tuple(batch))
            batch = []
        batch.append(i)
    if batch:
        batches.append(tuple(batch))
    return Plan(prefix, tuple(batches))


def _shared(ids: Sequence[Sequence[int]]) -> tuple[int, ...]:
    if len(ids) < 2:
        return ()
    rows = [tuple(row) for row in ids]
    first, last = min(rows), max(rows)  # the least alike in dictionary order share what all share
    n = 0
    limit = min(len(row) for row in ids) - 1
    while n < limit and first[n] == last[n]:
        n += 1
    return first[:n] if n >= _MIN_PREFIX else ()

"""The part of a data set that ``limit`` keeps: always the same one, spread evenly."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from exitlens.data.records import ConceptPrompt, Dataset, Statement
from exitlens.errors import InputError

__all__ = ["limited"]


def limited(data: Dataset, limit: int | None) -> Dataset:
    """The first ``limit`` questions, or statements spread evenly over topics and labels, or concept prompts over sets.

    For statements, each topic gets an equal share (a topic with fewer gives its rest to the others). Inside a topic,
    whole pairs are taken in an order fixed by a hash of their ids, choosing each time one that brings true and false
    nearer to balance; a pair is cut only when nothing whole fits. Order of the source is kept.
    Raises InputError when ``limit`` is not a positive whole number.
    """
    if limit is None:
        return data
    if limit < 1:
        raise InputError(f"limit {limit!r} is not a positive whole number; leave it out for all records")
    if limit >= len(data):
        return data
    note = (*data.notes, f"limited to {limit} of {len(data)} {data.kind}")
    if data.kind == "questions":
        return replace(data, questions=data.questions[:limit], notes=note)
    if data.kind == "concepts":
        return replace(data, concepts=_first_of_sets(data.concepts, limit), notes=note)
    return replace(data, statements=_spread(data.statements, limit), notes=note)


def _first_of_sets(prompts: Sequence[ConceptPrompt], limit: int) -> tuple[ConceptPrompt, ...]:
    left = _shares(dict(Counter(prompt.set_name for prompt in prompts)), limit)
    kept = []
    for prompt in prompts:
        if left[prompt.set_name]:
            left[prompt.set_name] -= 1
            kept.append(prompt)
    return tuple(kept)


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _spread(statements: Sequence[Statement], limit: int) -> tuple[Statement, ...]:
    topics: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(statements):
        topics[row.topic].append(at)
    share = _shares({topic: len(rows) for topic, rows in topics.items()}, limit)
    chosen: set[int] = set()
    for topic, rows in topics.items():
        chosen.update(_topic(statements, rows, share[topic]))
    return tuple(row for at, row in enumerate(statements) if at in chosen)


def _shares(sizes: dict[str, int], limit: int) -> dict[str, int]:
    share = dict.fromkeys(sizes, 0)
    left = limit
    while left:
        open_topics = [topic for topic in sizes if share[topic] < sizes[topic]]
        each = max(1, left // len(open_topics))
        for topic in open_topics:
            more = min(each, sizes[topic] - share[topic], left)
            share[topic] += more
            left -= more
    return share


def _topic(statements: Sequence[Statement], rows: Sequence[int], room: int) -> list[int]:
    units: dict[str, list[int]] = defaultdict(list)
    for at in rows:
        units[statements[at].pair or statements[at].id].append(at)
    # Three queues by the sign of (true - false): the next unit is the first that fits and pulls towards balance.
    queues: dict[int, list[list[int]]] = {-1: [], 0: [], 1: []}
    for _, unit in sorted(units.items(), key=lambda item: _order(item[0])):
        tilt = sum(1 if statements[at].label else -1 for at in unit)
        queues[(tilt > 0) - (tilt < 0)].append(unit)
    taken: list[int] = []
    balance = 0
    while len(taken) < room:
        wish = (0, 1, -1) if balance == 0 else ((-1, 0, 1) if balance > 0 else (1, 0, -1))
        fitting = _next(queues, wish, room - len(taken))
        if fitting is None:
            break
        taken.extend(fitting)
        balance += sum(1 if statements[at].label else -1 for at in fitting)
    rest = [at for queue in (queues[0], queues[1], queues[-1]) for unit in queue for at in unit]
    while len(taken) < room:
        label = 0 if balance > 0 else 1
        at = next((at for at in rest if statements[at].label == label), rest[0])
        rest.remove(at)
        taken.append(at)
        balance += 1 if statements[at].label else -1
    return taken


def _next(queues: dict[int, list[list[int]]], wish: Sequence[int], room: int) -> list[int] | None:
    for sign in wish:
        for place, unit in enumerate(queues[sign]):
            if len(unit) <= room:
                return queues[sign].pop(place)
    return None

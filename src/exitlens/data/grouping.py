"""Which statements belong together: the entity a statement is about, and the twins it must not be parted from.

A probe that has seen "Lima is in Peru" (true) in training should not be scored on "Lima is in Chad" (false): it would
be scored on what it remembers of Lima. Published true-false files carry no such key, so it is worked out from the text:

- *entity*: the words before the first verb, without article, case or plural ("The koala has a diet of ..." -> "koala").
  When no verb of the list is met, the longest opening that is another statement's entity is taken.
- *pair*: statements of one entity that open with the same predicate are twins. In topics of free text, where a twin
  often changes the subject ("The Great Wall of France ..."), so are statements whose rare words agree (cosine of their
  inverse-document-frequency weights), more loosely for a statement's nearest neighbour of the other label. Nearest
  only: joining all of them would chain a whole topic into one group.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from exitlens.data.records import Statement

__all__ = ["groups", "leading_entity", "with_groups"]

SIMILAR = 0.65  # any two statements this alike are twins (measured on the published "facts"; docs/data.md has counts)
OPPOSITE = 0.35  # so is a statement's nearest neighbour of the other label, when at least this alike
EXACT = 2_000  # texts of a topic up to which every word counts; more than any published file has
WORK = 2_000  # products a text beyond that: 100,000 texts take 5 to 8 s of one core
BLOCK = 1_000  # texts compared with all others at once
FREE_TEXT = 0.75  # a topic is free text when fewer of its statements than this share their entity with another

_VERB_LIST = (
    "is isn't are aren't was wasn't were has have had do does don't doesn't did can cannot can't could will would "
    "may might must should use uses used operates operate engages engage appears appear lives lived live invented "
    "invents discovered wrote provides provide produces produce contains contain consists consist offers offer "
    "makes make causes cause helps help allows allow prevents prevent occurs occur occurred orbits orbit belongs "
    "belong became becomes become means mean lies flows covers cover includes include eats eat gets receives "
    "experiences averages sees regulates regulate converts convert requires require gives give takes take revolves "
    "rotates travels moves move freezes boils sinks floats sink float"
)
_VERBS = frozenset(_VERB_LIST.split())
_FIXED = (
    re.compile(r"^there are no specific human uses for (.+?)\.*$", re.I),
    re.compile(r"^human uses for (.+?) include\b", re.I),
)
_EMPTY = frozenset({"there", "it", "this", "that", "these", "they", "we", "you", "one", "some", "most", "all"})
_WORD = re.compile(r"\w+(?:['’]\w+)?", re.UNICODE)
_ARTICLE = re.compile(r"^(the|a|an)\s+")
_POSSESSIVE = re.compile(r"['’]s\b.*$")
_AROUND = " .,;:\"'"


def _plain(text: str) -> str:
    """Case, accents kept, width and white space folded: the form in which two texts count as the same words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _normal_entity(text: str) -> str:
    text = _POSSESSIVE.sub("", _ARTICLE.sub("", _plain(text))).strip(_AROUND)
    last = text.rsplit(" ", 1)[-1]
    if len(last) > 3 and last.endswith("s") and not last.endswith(("ss", "us", "is")):
        text = text[:-1]
    return text


def leading_entity(statement: str) -> str | None:
    """What ``statement`` is about: the words before its first verb, normalised; None when no verb is found there."""
    for pattern in _FIXED:
        found = pattern.match(_plain(statement))
        if found is not None:
            return _normal_entity(found.group(1)) or None
    words = statement.split()
    for at, word in enumerate(words):
        if at > 0 and word.strip(",.;").casefold() in _VERBS:
            entity = _normal_entity(" ".join(words[:at]))
            return None if entity in _EMPTY else entity or None
    return None


class _Union:
    """Disjoint sets with path halving."""

    def __init__(self) -> None:
        self.parent: dict[Hashable, Hashable] = {}

    def find(self, item: Hashable) -> Hashable:
        self.parent.setdefault(item, item)
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def join(self, one: Hashable, other: Hashable) -> None:
        self.parent[self.find(other)] = self.find(one)


def groups(statements: Iterable[Statement]) -> list[int]:
    """A group number per statement, so that statements sharing an entity or a pair share the number.

    Numbers count up from 0 in order of first appearance. A statement with neither key is a group of its own.
    Use them to split: all rows of a group go to one side.
    """
    rows = list(statements)
    union = _Union()
    for at, row in enumerate(rows):
        union.find(("row", at))
        if row.entity is not None:
            union.join(("entity", row.entity), ("row", at))
        if row.pair is not None:
            union.join(("pair", row.pair), ("row", at))
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(union.find(("row", at)), len(numbers)) for at in range(len(rows))]


def _prefix_entity(statement: str, known: frozenset[str], starts: frozenset[str]) -> str | None:
    """The longest opening of a statement that is one of the ``known`` entities, whose first words ``starts`` holds."""
    words = _ARTICLE.sub("", _plain(statement)).split()
    first = words[0].strip(_AROUND) if words else ""
    # Most statements open with no known entity's first word: eight openings a statement need not be looked up.
    if first not in {"", "the", "a", "an"} and not {first, _normal_entity(first)} & starts:
        return None
    for length in range(min(len(words), 8), 0, -1):
        candidate = _normal_entity(" ".join(words[:length]))
        if candidate in known:
            return candidate
    return None


def _twins(rows: Sequence[Statement]) -> list[tuple[int, int]]:
    """Index pairs of twins in free text: cosine of inverse document frequencies over word stems (first six letters).

    A word that half of all texts share costs time quadratic in their number, and tells little. Beyond ``EXACT`` texts
    words count from the rarest on, until the products they ask for come to ``WORK`` a text: near-linear time. A common
    word's part is then missing from a similarity, never from the length it is divided by, so no pair is added.
    """
    import numpy as np
    from scipy.sparse import csr_array

    n = len(rows)
    # Sorted: the order of additions, and with it the last bits of a similarity, must not depend on a set's order.
    bags = [sorted({word[:6] for word in _WORD.findall(_plain(row.statement))}) for row in rows]
    seen = Counter(stem for bag in bags for stem in bag)
    order = sorted(seen, key=lambda stem: (seen[stem], stem))
    number = {stem: at for at, stem in enumerate(order)}
    weight = np.log(1 + n / np.array([seen[stem] for stem in order] or [1], dtype=np.float64))
    at = np.array([number[stem] for bag in bags for stem in bag], dtype=np.int64)
    sizes = np.array([len(bag) for bag in bags])
    owner = np.repeat(np.arange(n), sizes)
    norm = np.sqrt(np.bincount(owner, weight[at] ** 2, minlength=n))
    products = np.cumsum(np.array([seen[stem] for stem in order], dtype=np.float64) ** 2)
    used = len(order) if n <= EXACT else int(np.searchsorted(products, WORK * n, side="right"))
    kept = at < used
    unit = csr_array((weight[at[kept]] / norm[owner[kept]], (owner[kept], at[kept])), shape=(n, max(1, len(order))))
    label = np.array([row.label for row in rows])
    pairs: list[tuple[int, int]] = []
    turned = unit.T.tocsr()
    for begin in range(0, n, BLOCK):
        block = (unit[begin : begin + BLOCK] @ turned).tocoo()
        # Rounded: equal similarities, added in another order, must tie.
        one, other, score = block.row + begin, block.col, np.round(block.data, 12)
        near = (score >= OPPOSITE) & (one != other)
        one, other, score = one[near], other[near], score[near]
        alike = score >= SIMILAR
        against = np.flatnonzero(label[one] != label[other])
        # The nearest of the other label: largest similarity, then lowest number, first of each text.
        against = against[np.lexsort((other[against], -score[against], one[against]))]
        _, first = np.unique(one[against], return_index=True)
        alike[against[first]] = True
        pairs.extend(zip(one[alike].tolist(), other[alike].tolist(), strict=True))
    return pairs


def with_groups(statements: Sequence[Statement]) -> list[Statement]:
    """The same statements with ``entity`` and ``pair`` worked out from their texts; keys already there are kept.

    Keys carry the topic in front, so equal words in two topics stay apart only where they are pairs: entities are
    plain words and join across topics (a country named in two files is one entity).
    """
    by_topic: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(statements):
        by_topic[row.topic].append(at)
    out = list(statements)
    for topic, rows in by_topic.items():
        entities = {at: leading_entity(out[at].statement) for at in rows}
        count = Counter(e for e in entities.values() if e is not None)
        shared = frozenset(e for e, n in count.items() if n > 1)
        starts = frozenset(e.split(" ", 1)[0] for e in shared)
        for at in rows:
            own = entities[at]
            if own is None or own not in shared:
                entities[at] = _prefix_entity(out[at].statement, shared, starts) or own
        count = Counter(e for e in entities.values() if e is not None)
        lonely = sum(1 for e in entities.values() if e is None or count[e] == 1)
        union = _Union()
        for at in rows:
            entity, words = entities[at], _plain(out[at].statement)
            if entity is not None and count[entity] > 1:
                rest = words[words.find(entity) + len(entity) :].split() if entity in words else words.split()
                union.join((entity, *rest[:2]), at)
        if lonely > (1 - FREE_TEXT) * len(rows):
            for one, other in _twins([out[at] for at in rows]):
                union.join(rows[one], rows[other])
        members = Counter(union.find(at) for at in rows)
        number: dict[Hashable, int] = {}
        for at in rows:
            root = union.find(at)
            pair = f"{topic}:{number.setdefault(root, len(number) + 1)}" if members[root] > 1 else None
            out[at] = replace(out[at], entity=out[at].entity or entities[at], pair=out[at].pair or pair)
    return out

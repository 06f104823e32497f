"""Makes the built-in data set facts-tf from the tables in scripts/fact_tables/ (plain facts, written for this project).

    python scripts/make_facts_tf.py            # writes src/exitlens/data/builtin/facts-tf.jsonl
    python scripts/make_facts_tf.py OTHER.jsonl

Each fact (entity, relation, value) gives four statements that share a pair id: the fact, its false twin with another
row's value, and the negation of each. So true and false, affirmative and negated are in exact balance in every topic.
False values come from a seeded permutation of the relation's own column: every value is used as often in false
statements as in true ones, and no word by itself tells the label. A value that is also true of the entity, or that
could be argued to be, is never used (``_DISPUTED``). The same tables always give the same bytes.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TABLES = Path(__file__).parent / "fact_tables"
OUT = Path(__file__).parents[1] / "src" / "exitlens" / "data" / "builtin" / "facts-tf.jsonl"
SEED = 20240229


@dataclass(frozen=True)
class Relation:
    """A table's column turned into statements: ``{e}`` is the entity's cell, ``{v}`` the value's.

    ``where`` keeps only rows whose column has one of the given cells.
    """

    topic: str
    name: str
    table: str
    kind: str
    entity: str
    value: str
    true: str
    negated: str
    where: tuple[str, tuple[str, ...]] | None = None


RELATIONS = (
    Relation(
        "capitals", "capital", "capitals", "country", "country", "capital",
        "The capital of {e} is {v}.", "The capital of {e} is not {v}.",
    ),
    Relation(
        "countries", "continent", "continents", "country", "country", "continent",
        "{e} is in {v}.", "{e} is not in {v}.",
    ),
    Relation(
        "countries", "currency", "currencies", "country", "country", "currency",
        "The currency of {e} is the {v}.", "The currency of {e} is not the {v}.",
    ),
    Relation(
        "countries", "language", "languages", "country", "country", "language",
        "The most widely spoken language in {e} is {v}.", "The most widely spoken language in {e} is not {v}.",
    ),
    Relation(
        "elements", "symbol", "elements", "element", "element", "symbol",
        "The chemical symbol of {e} is {v}.", "The chemical symbol of {e} is not {v}.",
    ),
    Relation(
        "elements", "number", "elements", "element", "element", "number",
        "{e} has the atomic number {v}.", "{e} does not have the atomic number {v}.",
    ),
    Relation(
        "animals", "class", "animals", "animal", "animal", "class",
        "{a e} is {a v}.", "{a e} is not {a v}.",
    ),
    Relation(
        "animals", "young", "young", "animal", "animal", "young",
        "A young {e} is called {a v}.", "A young {e} is not called {a v}.",
    ),
    Relation(
        "numbers", "sum", "products", "sum", "sum", "result",
        "{e} equals {v}.", "{e} does not equal {v}.", ("operation", ("plus", "minus")),
    ),
    Relation(
        "numbers", "product", "products", "sum", "sum", "result",
        "{e} equals {v}.", "{e} does not equal {v}.", ("operation", ("times",)),
    ),
    Relation(
        "numbers", "unit", "units", "thing", "thing", "number",
        "{a e} has {v} {part}.", "{a e} does not have {v} {part}.",
    ),
    Relation(
        "works", "writer", "works", "work", "work", "maker",
        "The {kind} {e} was written by {v}.", "The {kind} {e} was not written by {v}.",
        ("kind", ("play", "novel")),
    ),
    Relation(
        "works", "composer", "works", "work", "work", "maker",
        "The {kind} {e} was composed by {v}.", "The {kind} {e} was not composed by {v}.",
        ("kind", ("opera", "ballet")),
    ),
    Relation(
        "works", "painter", "works", "work", "work", "maker",
        "The painting {e} was painted by {v}.", "The painting {e} was not painted by {v}.",
        ("kind", ("painting",)),
    ),
    Relation(
        "astronomy", "planet of moon", "moons", "moon", "moon", "planet",
        "{e} is a moon of {v}.", "{e} is not a moon of {v}.",
    ),
    Relation(
        "astronomy", "place", "planets", "planet", "planet", "place",
        "{e} is the {v} planet from the Sun.", "{e} is not the {v} planet from the Sun.",
    ),
    Relation(
        "astronomy", "constellation", "stars", "star", "star", "constellation",
        "The star {e} is in the constellation {v}.", "The star {e} is not in the constellation {v}.",
    ),
)  # fmt: skip

_OPERATION = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}

# (relation, own value, other value): another value that some would call true as well. Birds descend from reptiles and
# insects from crustaceans; "calf", "kid", "kitten" and the like are used for the young of several animals.
_DISPUTED = frozenset(
    [("class", "bird", "reptile"), ("class", "insect", "crustacean")]
    + [("young", own, other) for own in ("fawn", "leveret") for other in ("calf", "kid", "kitten", "puppy", "cub")]
    + [("young", own, other) for own in ("puppy", "kitten") for other in ("cub", "kitten", "puppy")]
    + [("young", "gosling", "duckling"), ("young", "cygnet", "duckling"), ("young", "cub", "puppy")]
)


def _rows(relation: Relation) -> list[dict[str, str]]:
    with (TABLES / f"{relation.table}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if relation.where is not None:
        column, allowed = relation.where
        rows = [row for row in rows if row[column] in allowed]
    for row in rows:
        if "operation" in row:
            row["sum"] = f"{row['left']} {row['operation']} {row['right']}"
            row["result"] = str(_OPERATION[row["operation"]](int(row["left"]), int(row["right"])))
    return rows


def _false_values(relation: Relation, rows: list[dict[str, str]]) -> list[str]:
    """A permutation of the column in which every row gets a value that is false of it."""
    values = [row[relation.value] for row in rows]
    true_of: dict[str, set[str]] = {}
    for row in rows:
        true_of.setdefault(row[relation.entity], set()).add(row[relation.value])

    def allowed(at: int, value: str) -> bool:
        disputed = (relation.name, values[at], value) in _DISPUTED
        return value not in true_of[rows[at][relation.entity]] and not disputed

    shuffled = list(values)
    rng = random.Random(f"{SEED} {relation.topic} {relation.name}")
    rng.shuffle(shuffled)
    for _ in range(10_000):
        wrong = [at for at in range(len(rows)) if not allowed(at, shuffled[at])]
        if not wrong:
            return shuffled
        one, other = wrong[0], rng.randrange(len(rows))
        shuffled[one], shuffled[other] = shuffled[other], shuffled[one]
    raise SystemExit(f"no permutation of {relation.table}.{relation.value} makes every twin false; widen the table")


def _a(word: str) -> str:
    return ("an " if word[0].lower() in "aeio" or word == "hour" else "a ") + word


def _fill(template: str, row: dict[str, str], entity: str, value: str) -> str:
    text = (
        template.replace("{a e}", _a(entity)).replace("{a v}", _a(value)).replace("{e}", entity).replace("{v}", value)
    )
    for column in ("part", "kind"):
        text = text.replace("{" + column + "}", row.get(column, ""))
    return text[0].upper() + text[1:]


def records() -> Iterator[dict[str, object]]:
    """The statements in order: relation by relation, fact by fact, four a fact."""
    number = 0
    for relation in RELATIONS:
        rows = _rows(relation)
        for row, false in zip(rows, _false_values(relation, rows), strict=True):
            entity, true = row[relation.entity], row[relation.value]
            key = f"{relation.kind}:{entity}"
            for value, template, negated, label in (
                (true, relation.true, False, 1),
                (false, relation.true, False, 0),
                (true, relation.negated, True, 0),
                (false, relation.negated, True, 1),
            ):
                number += 1
                yield {
                    "id": f"facts-tf-{number:04d}",
                    "statement": _fill(template, row, entity, value),
                    "label": label,
                    "topic": relation.topic,
                    "entity": key,
                    "pair": f"{relation.name}:{entity}",
                    "negated": negated,
                }


def build() -> bytes:
    """The whole file: one JSON object a line, UTF-8."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records()).encode()


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    target.write_bytes(build())
    sys.stdout.write(f"{target}: {sum(1 for _ in records())} statements\n")

"""The tables of `exitlens read`, column by column: the places, then whatever statistics there are."""

from __future__ import annotations

from exitlens.errors import InputError
from exitlens.lenses.statistics import STATS, known
from exitlens.studies.tables import Field, TableSpec

__all__ = ["check_stats", "corpus_tables"]


def check_stats(names: tuple[str, ...]) -> tuple[str, ...]:
    """The statistics, each once. Raises InputError for none, an unknown one, and for choices, which need a question."""
    for name in names:
        if name == "choices":
            raise InputError("'choices' belongs to one question: use exitlens look --choices; here --stats entropy,kl")
    known(names, without=("choices",))
    return tuple(dict.fromkeys(names))


def corpus_tables() -> tuple[TableSpec, TableSpec]:
    """A shard, and the means over all shards; a statistic is there when ``--stats`` names it."""
    statistics = [
        Field(column.name, record.meaning if column.axis is None else f"{record.meaning}: a list", column.unit, True)
        for record in STATS.values()
        for column in record.columns
    ]
    tokens = Field("top_tokens", "text of each of `top_ids`: a list", optional=True)
    places = (
        Field("text", "number of the text in its source, from 0"),
        Field("position", "of the token in its text, from 0", "tokens"),
        Field("token_id", "id of the token that was read"),
        Field("token", "its text"),
        Field("layer", "0: embeddings, N: the model's own output"),
    )
    means = tuple(
        Field(field.name, f"mean of {field.name}", field.unit, True)
        for field, column in zip(statistics, (c for r in STATS.values() for c in r.columns), strict=True)
        if column.axis is None and not column.shared
    )
    return (
        TableSpec("shards/00001", "a text, position and layer", (*places, *statistics, tokens)),
        TableSpec("by_layer", "a layer", (Field("layer", "as in the shards"), Field("tokens", "read"), *means)),
    )

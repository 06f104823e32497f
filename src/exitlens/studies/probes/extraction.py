"""Hidden states of statements, extracted once and kept: every layer, the shared prompt run once.

Positions: the last token, the mean over the statement's tokens, the last one of the statement before its full stop, or
every token of the statement. What the model itself says at the end (the probabilities of the
label words, and its most probable token) is read in the same pass, so the baselines cost nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.data.prompts import LABEL_WORDS, Position, Setting, check_position, truth_prompt
from exitlens.data.records import Statement
from exitlens.errors import InputError
from exitlens.models.forward import check_context, passes, same_beginning
from exitlens.models.protocol import LayeredModel
from exitlens.report.text import continued
from exitlens.runs.engine import Clock, Engine
from exitlens.runs.hidden_states import SHARD_ROWS, Origin, ShardWriter, StateStore
from exitlens.storage.atomic import text_hash
from exitlens.studies.layers.stage import check_layers

__all__ = ["Item", "extract", "extract_items", "label_probabilities", "label_tokens", "origin_of", "read_states"]

_LOG = logging.getLogger("exitlens")
_CLOSING = " \t\n.!?…\"'”’)»。！？"


@dataclass(frozen=True, slots=True)
class Item:
    """A text to run, and the tokens ``first`` to ``end`` (exclusive) whose mean is kept; ``text`` names it in a store.

    ``statement``: what it is a state of; where a statement has several, each under an id of its own.
    """

    statement: Statement
    text: str
    ids: list[int]
    first: int
    end: int


ItemsOf = Callable[[Statement], list[Item]]


def origin_of(
    lm: LayeredModel,
    setting: Setting,
    layers: Sequence[int] | Literal["all"] = "all",
    position: Position = "last",
) -> Origin:
    """What a store of these states says about itself."""
    prefix, suffix = truth_prompt("{}", setting == "few-shot")
    return Origin(
        model=lm.name,
        fingerprint=lm.fingerprint,
        dtype=str(lm.dtype).removeprefix("torch."),
        d_model=lm.d_model,
        layers=tuple(check_layers(lm, layers)),
        position=position,
        setting=setting,
        prompt=prefix + suffix,
    )


def extract(
    engine: Engine,
    statements: Sequence[Statement],
    path: str | Path,
    *,
    setting: Setting = "few-shot",
    layers: Sequence[int] | Literal["all"] = "all",
    position: Position = "last",
    shard_rows: int = SHARD_ROWS,
) -> StateStore:
    """Fill the store at ``path`` with the states of ``statements``; what it already holds is not computed again.

    The store's index gains ``p_true``, ``p_false`` (probability of the label words, summed over their spellings) and
    ``top_id`` (the most probable token). With position "every" an example is one token, its id ``ID@TOKEN``. Memory
    grows with the number of statements by their row of the index alone.
    Raises ContextError for a statement that does not fit, ProbeError when the store is of another model or prompt.
    """
    check_position(position)
    origin = origin_of(engine.lm, setting, layers, position)
    items_of = partial(_items, engine.lm, setting=setting, position=position)
    label = f"states-{setting}" if position == "last" else f"states-{setting}-{position}"
    return extract_items(engine, statements, path, origin, items_of, label, words=True, shard_rows=shard_rows)


def extract_items(
    engine: Engine,
    statements: Sequence[Statement],
    path: str | Path,
    origin: Origin,
    items_of: ItemsOf,
    label: str,
    *,
    words: bool = False,
    shard_rows: int = SHARD_ROWS,
) -> StateStore:
    """The same for texts of any kind: ``items_of`` says which tokens of which text stand for a statement.

    ``label`` names the stage, in progress and in the manifest; ``words``: the label words' probabilities are read too.
    """
    if not statements:
        raise InputError("no statements to extract hidden states of: give a data set of statements with --data")
    lm = engine.lm
    store = StateStore.open(path, origin)
    rows, source = _plan(lm, statements, items_of)
    total = len(rows)
    store.plan(rows, shard_rows)
    del rows
    todo = store.unfinished()
    if engine.directory is not None:
        engine.directory.stage_state(label, "running")
    clock = Clock(label, total, engine.report)
    clock.skipped(total - sum(store.rows(shard) for shard in todo))

    def jobs() -> Iterator[_Job]:
        for shard in todo:
            planned = store.planned(shard)
            keys = list(zip(planned["id"], planned["hash"], strict=True))
            # Others are of an earlier, larger request; this one does not need them.
            if all(key in source for key in keys):
                mine = [statements[source[key]] for key in keys]
                yield _Job(shard, store.key(planned), store.missing(shard), _chosen(keys, mine, items_of))

    task = _ReadShard(label_tokens(lm) if words else None, store.writer())
    for job, _ in engine.stream(task, jobs()):
        clock.worked(len(job.items))
    index, made_by = store.finish(), store.made_by()
    if engine.directory is not None:
        engine.directory.stage_state(label, "done", shards=int(index["shard"].nunique()), made_by=made_by)
    if todo and (said := continued(label, made_by, "shards")):
        _LOG.warning("%s", said)
    return store


@dataclass(frozen=True, slots=True)
class _Job:
    """The texts of one shard, and the layers that it lacks."""

    shard: int
    key: str
    layers: tuple[int, ...]
    items: list[Item]

    @property
    def size(self) -> int:
        return len(self.items)

    @property
    def named(self) -> str:
        first, last = self.items[0].statement.id, self.items[-1].statement.id
        return f"shard {self.shard} of {len(self.items)} statements, '{first}' to '{last}'"


@dataclass(frozen=True, slots=True)
class _ReadShard:
    """Writes states of a shard's layers ``{layer: [rows, d_model]}``, and a table of what was read at each row."""

    words: Mapping[int, Sequence[int]] | None
    writer: ShardWriter

    def run(self, lm: LayeredModel, job: _Job, /) -> None:
        words = None if self.words is None else _on_device(lm, self.words)
        states, said, top = _read(lm, job.items, job.layers, words)
        rows: dict[str, Any] = {
            "position": [item.end - 1 for item in job.items],
            "token": [lm.decode(item.ids[item.end - 1 : item.end]) for item in job.items],
        }
        if words is not None:
            rows |= {"p_true": said[:, 0], "p_false": said[:, 1], "top_id": top}
        found = {layer: states[k] for k, layer in enumerate(job.layers)}
        self.writer.write(job.shard, job.key, [item.statement.id for item in job.items], found, pd.DataFrame(rows))


def label_tokens(lm: LayeredModel) -> dict[int, list[int]]:
    """Token ids that write each label's word after "A:": every spelling that is one token, the usual one in any case.

    Where no spelling is one token, the first token of the usual one stands for the word. Raises InputError when both
    labels would then be the same token.
    """
    stem = lm.encode("A:")
    found: dict[int, list[int]] = {}
    for label, spellings in LABEL_WORDS.items():
        tails = []
        for word in spellings:
            ids = lm.encode("A:" + word)
            if ids[: len(stem)] == stem and len(ids) > len(stem):
                tails.append(ids[len(stem) :])
        if not tails:
            raise InputError(
                f"the tokenizer of {lm.name} does not write '{spellings[0]}' after 'A:' as tokens of its own"
            )
        found[label] = sorted({tail[0] for tail in tails if len(tail) == 1} or {tails[0][0]})
    if set(found[0]) & set(found[1]):
        raise InputError(f"the tokenizer of {lm.name} begins 'true' and 'false' with the same token: no label words")
    return found


def read_states(
    lm: LayeredModel,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    setting: Setting = "few-shot",
    position: Position = "last",
    batch: int = SHARD_ROWS,
) -> Tensor:
    """Hidden states ``[layers, texts, d_model]`` float32 of statements, in memory; nothing is stored.

    Raises InputError for position "every" (a text then has many states) and ContextError.
    """
    if position == "every":
        raise InputError("position 'every' gives a state for each token: read statements at last, mean or answer")
    items = [_items(lm, Statement(str(i), text, 0, ""), setting, position)[0] for i, text in enumerate(texts)]
    check_context(lm, [item.ids for item in items])
    out = torch.empty(len(layers), len(items), lm.d_model)
    order = sorted(range(len(items)), key=lambda i: len(items[i].ids))
    for begin in range(0, len(order), batch):
        here = order[begin : begin + batch]
        out[:, here] = _read(lm, [items[i] for i in here], tuple(layers), None)[0].float()
    return out


def label_probabilities(lm: LayeredModel, texts: Sequence[str]) -> NDArray[np.float64]:
    """P of the words for true and for false ``[texts, 2]`` after each statement under the few-shot prompt."""
    items = [_items(lm, Statement(str(i), text, 0, ""), "few-shot", "last")[0] for i, text in enumerate(texts)]
    return _read(lm, items, (lm.n_layers,), _on_device(lm, label_tokens(lm)))[1]


def _on_device(lm: LayeredModel, words: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
    return {label: torch.tensor(ids, device=lm.device) for label, ids in words.items()}


def _read(
    lm: LayeredModel, items: Sequence[Item], layers: Sequence[int], words: dict[int, torch.Tensor] | None
) -> tuple[Tensor, NDArray[np.float64], NDArray[np.int64]]:
    """States ``[layers, items, d_model]``, P of each label's words ``[items, 2]`` and the top token ``[items]``."""
    # Tokens of one text are read from one pass over it.
    places: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(items):
        places.setdefault(tuple(item.ids), []).append(i)
    texts, members = list(places), list(places.values())
    at_end = all(item.end - item.first == 1 and item.end == len(item.ids) for item in items)
    read = tuple(layers) if words is None or lm.n_layers in layers else (*layers, lm.n_layers)
    states = torch.empty(len(layers), len(items), lm.d_model, dtype=lm.dtype)
    said = np.zeros((len(items), 2))
    top = np.zeros(len(items), dtype=np.int64)
    needed = None if at_end else min(item.first for item in items)
    for part in passes(lm, texts, layers=read, positions="last" if at_end else "all", needed=needed):
        stacked = torch.stack([part.hidden[layer] for layer in layers])
        pairs = [(row, i) for row, text in enumerate(part.index) for i in members[text]]
        if at_end:
            read_here = stacked[:, [row for row, _ in pairs], -1]
        else:
            spans = [stacked[:, row, items[i].first - part.start : items[i].end - part.start] for row, i in pairs]
            means = [span[:, 0] if span.shape[1] == 1 else span.float().mean(1).to(lm.dtype) for span in spans]
            read_here = torch.stack(means, 1)
        states[:, [i for _, i in pairs]] = read_here.cpu()
        if words is None:
            continue
        z = lm.logits(part.hidden[lm.n_layers][:, -1], lm.n_layers).float()
        p = z.softmax(-1)
        both = torch.stack([p[:, words[label]].sum(-1) for label in (1, 0)], 1).double().cpu().numpy()
        best = z.argmax(-1).cpu().numpy()
        for row, text in enumerate(part.index):
            said[members[text]], top[members[text]] = both[row], best[row]
    return states, said, top


def _items(lm: LayeredModel, statement: Statement, setting: Setting, position: Position) -> list[Item]:
    """One item, or with position "every" one a token of the statement."""
    prefix, suffix = truth_prompt(statement.statement, setting == "few-shot")
    ids = lm.encode(prefix + suffix)
    if not ids:
        raise InputError(f"statement '{statement.id}' has no tokens: leave it out")
    whole = Item(statement, prefix + suffix, ids, len(ids) - 1, len(ids))
    if position == "last":
        return [whole]
    before, after = truth_prompt("\0", setting == "few-shot")[1].split("\0")
    opening = prefix + before.rstrip(" ")
    first = min(same_beginning(lm.encode(opening), ids), len(ids) - 1)
    body = lm.encode(prefix + before + statement.statement)
    # A token that holds the statement's last characters and a line break belongs to the statement too.
    end = len(ids) if not after else min(same_beginning(body, ids) + (body != ids[: len(body)]), len(ids) - 1)
    end = max(end, first + 1)
    if position == "mean":
        return [replace(whole, first=first, end=end)]
    if position == "answer":
        bare = lm.encode(prefix + before + statement.statement.rstrip(_CLOSING))
        place = min(max(same_beginning(bare, ids) - 1, first), end - 1)
        return [replace(whole, first=place, end=place + 1)]
    return [
        replace(whole, statement=replace(statement, id=f"{statement.id}@{place}"), first=place, end=place + 1)
        for place in range(first, end)
    ]


def _plan(
    lm: LayeredModel, statements: Sequence[Statement], items_of: ItemsOf
) -> tuple[pd.DataFrame, dict[tuple[str, str], int]]:
    """The rows of a store's plan, and which statement each id and hash is of.

    Token ids are not kept: to encode a statement again when its shard is read costs far less than to run it, and
    keeping 10^5 of them would take hundreds of megabytes.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "label", "topic", "group", "hash", "n_tokens")}
    source: dict[tuple[str, str], int] = {}
    for place, statement in enumerate(statements):
        for item in items_of(statement):
            check_context(lm, [item.ids])
            key = item.statement.id, text_hash(item.text)
            source[key] = place
            group = statement.pair or statement.entity or item.statement.id
            values = (key[0], statement.label, statement.topic, group, key[1], len(item.ids))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    rows = pd.DataFrame(columns)
    # By length: texts that run together are alike. By id after that: the plan never depends on the source's order.
    return rows.sort_values(["n_tokens", "id"], kind="stable", ignore_index=True), source


def _chosen(keys: Sequence[tuple[str, str]], statements: Sequence[Statement], items_of: ItemsOf) -> list[Item]:
    """The item of each key (id and hash of the text), one of its statement's."""
    made: dict[Statement, dict[str, Item]] = {}
    for statement in statements:
        if statement not in made:
            made[statement] = {item.statement.id: item for item in items_of(statement)}
    return [made[statement][name] for (name, _), statement in zip(keys, statements, strict=True)]

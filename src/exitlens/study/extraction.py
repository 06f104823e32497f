"""Hidden states of statements, extracted once and kept: every layer at the last token, the shared prompt run once.

What the model itself says at that token (the probabilities of the label words, and its most probable token) is read in
the same pass, so the baselines cost nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from exitlens.data.prompts import LABEL_WORDS, truth_prompt
from exitlens.data.records import Statement
from exitlens.errors import InputError
from exitlens.models.protocol import LayeredModel
from exitlens.study.engine import Clock, Report
from exitlens.study.passes import check_context, passes
from exitlens.study.stage_layers import check_layers
from exitlens.study.state_store import SHARD_ROWS, Origin, StateStore, text_hash

__all__ = ["Setting", "extract", "label_tokens", "origin_of"]

Setting = Literal["prompted", "bare"]


@dataclass(frozen=True, slots=True)
class _Item:
    statement: Statement
    text: str
    ids: list[int]


def origin_of(lm: LayeredModel, setting: Setting, layers: Sequence[int] | Literal["all"] = "all") -> Origin:
    """What a store of these states says about itself."""
    prefix, suffix = truth_prompt("{}", setting == "prompted")
    return Origin(
        model=lm.name,
        fingerprint=lm.fingerprint,
        dtype=str(lm.dtype).removeprefix("torch."),
        d_model=lm.d_model,
        layers=tuple(check_layers(lm, layers)),
        position="last",
        setting=setting,
        prompt=prefix + suffix,
    )


def extract(
    lm: LayeredModel,
    statements: Sequence[Statement],
    path: str | Path,
    *,
    setting: Setting = "prompted",
    layers: Sequence[int] | Literal["all"] = "all",
    shard_rows: int = SHARD_ROWS,
    report: Report | None = None,
) -> StateStore:
    """Fill the store at ``path`` with the states of ``statements``; what it already holds is not computed again.

    The store's index gains ``p_true``, ``p_false`` (probability of the label words, summed over their spellings) and
    ``top_id`` (the most probable token). Memory does not grow with the number of statements beyond their token ids.
    Raises ContextError for a statement that does not fit, ProbeError when the store is of another model or prompt.
    """
    if not statements:
        raise InputError("no statements to extract hidden states of: give a data set of statements with --data")
    store = StateStore.open(path, origin_of(lm, setting, layers))
    items = [_item(lm, statement, setting) for statement in statements]
    check_context(lm, [item.ids for item in items])
    # By length: texts that run together are alike. By id after that: the plan never depends on the source's order.
    items.sort(key=lambda item: (len(item.ids), item.statement.id))
    store.plan(_plan_rows(items), shard_rows)
    by_key = {(item.statement.id, text_hash(item.text)): item for item in items}
    words = {label: torch.tensor(ids, device=lm.device) for label, ids in label_tokens(lm).items()}
    todo = store.unfinished()
    clock = Clock(f"states-{setting}", len(items), report)
    clock.skipped(len(items) - sum(len(store.planned(shard)) for shard in todo))
    for shard in todo:
        rows = store.planned(shard)
        keys = list(zip(rows["id"], rows["hash"], strict=True))
        if any(key not in by_key for key in keys):
            continue  # of an earlier, larger request; this one does not need it
        _fill(lm, store, shard, [by_key[key] for key in keys], words)
        clock.worked(len(keys))
    store.finish()
    return store


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


def _fill(
    lm: LayeredModel, store: StateStore, shard: int, items: Sequence[_Item], words: dict[int, torch.Tensor]
) -> None:
    wanted = store.origin.layers
    read = wanted if lm.n_layers in wanted else (*wanted, lm.n_layers)
    states = {j: torch.empty(len(items), lm.d_model, dtype=lm.dtype) for j in wanted}
    said = np.zeros((len(items), 2))
    top = np.zeros(len(items), dtype=np.int64)
    for part in passes(lm, [item.ids for item in items], layers=read, positions="last"):
        for layer in wanted:
            states[layer][part.index] = part.hidden[layer][:, -1].cpu()
        z = lm.logits(part.hidden[lm.n_layers][:, -1], lm.n_layers).float()
        p = z.softmax(-1)
        for column, label in enumerate((1, 0)):
            said[part.index, column] = p[:, words[label]].sum(-1).double().cpu().numpy()
        top[part.index] = z.argmax(-1).cpu().numpy()
    rows: dict[str, Any] = {
        "position": [len(item.ids) - 1 for item in items],
        "token": [lm.decode(item.ids[-1:]) for item in items],
        "p_true": said[:, 0],
        "p_false": said[:, 1],
        "top_id": top,
    }
    store.write(shard, states, pd.DataFrame(rows))


def _item(lm: LayeredModel, statement: Statement, setting: Setting) -> _Item:
    prefix, suffix = truth_prompt(statement.statement, setting == "prompted")
    text = prefix + suffix
    ids = lm.encode(text)
    if not ids:
        raise InputError(f"statement '{statement.id}' has no tokens: leave it out")
    return _Item(statement, text, ids)


def _plan_rows(items: Sequence[_Item]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [item.statement.id for item in items],
            "label": [item.statement.label for item in items],
            "topic": [item.statement.topic for item in items],
            "group": [item.statement.pair or item.statement.entity or item.statement.id for item in items],
            "hash": [text_hash(item.text) for item in items],
            "n_tokens": [len(item.ids) for item in items],
        }
    )

"""Does decoding stay the model's own past every threshold that its configuration names, and beside longer rows?

Every token that :func:`exitlens.generate` chooses is compared with the model's own whole pass, without a cache, over
the text so far: through whatever of caches, own blocks, padding and shared prefixes exitlens uses for this model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from exitlens.decoding import generate
from exitlens.errors import ExitlensError
from exitlens.models import Layered, wrap
from exitlens.models.native.runner import runner_of

from . import zoo

BOUND = 1e-3  # of the largest logit: how far below the top a token may lie that rounding chose
NEW = 20  # tokens, from a prompt of five: past thresholds of 6 to 16
_THRESHOLDS = (
    "sliding_window", "sliding_window_size", "attention_chunk_size", "local_attention", "window_size",
    "attention_window_size", "index_topk", "indexer_budget", "index_block_size", "index_topk_blocks",
    "original_max_position_embeddings", "lsh_attn_chunk_length", "local_attn_chunk_length", "attention_window",
    "keep_window_size", "compress_rate", "compress_rates", "ngram", "sparse_block_size",
)  # fmt: skip


class Numbers:
    """A tokenizer whose texts are its ids: prompts are given as ids, and answers compared as ids."""

    eos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 100 for c in text]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """The ids, a space before each."""
        return "".join(f" {i}" for i in ids)


def taken(model: Any, entry: str) -> Layered:
    """The model as exitlens sees it, with nothing that ends an answer early."""
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        settings.eos_token_id = None
    lm = wrap(model, None, name=entry)
    lm.tokenizer = Numbers()
    return lm


def prompts(lm: Layered, lengths: Sequence[int], seed: int, shared: int = 0) -> list[list[int]]:
    """Random prompts of these lengths, the first ``shared`` tokens the same in all."""
    draw = torch.Generator().manual_seed(seed)
    top = min(zoo.VOCAB, lm.vocab_size) - 12
    same = torch.randint(3, top, (shared,), generator=draw).tolist()
    return [same + torch.randint(3, top, (n - shared,), generator=draw).tolist() for n in lengths]


@torch.no_grad()
def strays(lm: Layered, model: Any, asked: Sequence[Sequence[int]], new: int, batch_size: int) -> str:
    """The first token that is not the top one of the model's whole pass over the text so far; empty for none."""
    own: dict[str, Any] = {"use_cache": False} if "use_cache" in lm.accepts or "kwargs" in lm.accepts else {}
    masks = lm.takes_masks and "attention_mask" in lm.accepts
    for row, answer in enumerate(generate(lm, asked, max_new_tokens=new, batch_size=batch_size)):
        text = list(asked[row])
        if len(answer.token_ids) != new:
            return f"row {row} has {len(answer.token_ids)} of {new} tokens"
        for token in answer.token_ids:
            ids = torch.tensor([text])
            if masks:  # without one XLM takes a token that is also its padding for padding
                own["attention_mask"] = torch.ones_like(ids)
            logits = model(input_ids=ids, **own).logits[0, -1]
            if float(logits.max() - logits[token]) > BOUND * max(1.0, float(logits.abs().max())):
                return f"row {row}: token {len(text)} is not the model's own"
            text.append(token)
    return ""


def thresholds(config: Any) -> dict[str, int]:
    """What a configuration says of positions from which on something changes, wherever it stands."""

    def walk(values: Mapping[Any, Any]) -> Iterator[tuple[str, int]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from walk(value)
            elif name in _THRESHOLDS:
                sizes = value if isinstance(value, list | tuple) else [value]
                found = [v for v in sizes if isinstance(v, int) and not isinstance(v, bool) and 0 < v < 10_000]
                if found:
                    yield name, max(found)

    return dict(walk((getattr(config, "text_config", None) or config).to_dict()))


def _rotation(rope: Mapping[str, Any]) -> str | None:
    """The kind of rotation that was asked for, also where each kind of layer has its own."""
    return next((str(r["rope_type"]) for r in (rope, *rope.values()) if isinstance(r, dict) and "rope_type" in r), None)


def late(entry: str) -> tuple[str, str]:
    """Which thresholds were passed, and the first fault; the first is "none" where there is no threshold."""
    passed: list[str] = []
    for changes in ({}, *zoo.thresholds_of(entry)):
        try:
            model = zoo.build(entry, changes=changes)
        except Exception as error:  # noqa: BLE001 - not every rotation is for every family
            if not changes:
                return "", f"{type(error).__name__}: {error}"
            continue
        kind = _rotation(changes.get("rope_parameters", {}))
        said = thresholds(model.config)
        names = [kind] if kind else [name for name, size in said.items() if size < 5 + NEW]
        if not names:
            continue
        try:
            lm = taken(model, entry)
        except ExitlensError as error:
            if not changes:
                return "", str(error)
            continue
        if kind == "dynamic":
            lm.context = None  # its table grows past the positions that the configuration names
        fault = strays(lm, model, prompts(lm, (5,), 3), NEW, 1)
        if fault:
            return ", ".join([*passed, *names]), f"past {', '.join(names)}: {fault}"
        passed += [f"{name} (own blocks)" if runner_of(lm) is not None else name for name in names]
    return ", ".join(dict.fromkeys(passed)) or "none", ""


def ragged(entry: str) -> str:
    """The first fault of answers at prompts of different lengths, with and without a shared beginning."""
    model = zoo.build(entry)
    lm = taken(model, entry)
    for asked in (prompts(lm, (3, 12, 5, 9), 7), prompts(lm, (11, 9, 14, 10), 8, shared=8)):
        fault = strays(lm, model, asked, 6, 4)
        if fault:
            return fault
        alone = [generate(lm, [ids], max_new_tokens=6)[0].token_ids for ids in asked]
        together = [answer.token_ids for answer in generate(lm, asked, max_new_tokens=6, batch_size=4)]
        if alone != together:
            return f"row {next(i for i, (a, b) in enumerate(zip(alone, together, strict=True)) if a != b)} differs"
    return ""

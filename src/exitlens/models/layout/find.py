"""Find a model's layers from the model itself: run a few tokens, watch which module hands what to which.

What is looked for: a list of blocks that are each called once, in order, and hand a residual stream on; the path from
the last block's output to the unembedding's input; and what happens to the unembedding's output on its way to the
logits (nothing, a scale, a soft cap, padding cut off). Each step is compared by value, so a model that does something
else is refused with what was seen, never read wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from exitlens.errors import UnsupportedModel
from exitlens.models.layout.final_path import FinalPath, Injection, TailStep, scale_between
from exitlens.models.layout.hooks import eval_mode
from exitlens.models.layout.logit_transform import find_logit_transform
from exitlens.models.layout.residual import Stream
from exitlens.models.layout.watch import Call, found_at, watch
from exitlens.models.protocol import LogitTransform

__all__ = ["Layout", "find_layout", "part_of", "unwrapped"]

# What tracing cannot see, by class: models whose blocks are no modules of their own. The list whose elements give the
# stream after each block, and the module whose input is layer 0.
_KNOWN: dict[str, tuple[str, str]] = {"XLMWithLMHeadModel": ("transformer.layer_norm2", "transformer.attentions.0")}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a model keeps its parts. ``tail`` leads from the last block's output to the unembedding's input."""

    blocks: tuple[nn.Module, ...]
    embed: nn.Module
    stream: Stream
    tail: FinalPath | Injection
    head: nn.Module
    head_name: str
    logit_transform: LogitTransform
    vocab_size: int


@dataclass(frozen=True, slots=True)
class _Blocks:
    name: str
    calls: list[Call]
    stream: Stream
    chained: bool


def find_layout(
    model: nn.Module,
    ids: Tensor,
    run: Callable[[Tensor], Any],
    *,
    embed: nn.Module | None,
    head: nn.Module | None,
    limit: int | None = None,
) -> Layout:
    """Trace ``model`` while ``run(ids)`` does a forward pass that returns its output (with ``logits``).

    ``ids``: ``[rows, seq]``, at least 2 different rows. ``limit``: the most positions that one pass may have. Raises
    :class:`UnsupportedModel` naming what was looked for and not found.
    """
    family = type(model).__name__
    calls, logits = watch(model, lambda: run(ids), head)
    if embed is None:
        raise UnsupportedModel(f"{family}: no input embedding (looked for get_input_embeddings())")
    if logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise UnsupportedModel(
            f"{family}: its logits have shape {tuple(logits.shape)} for tokens {tuple(ids.shape)}, so they are not one "
            "distribution a token"
        )
    head_call = _find_head(calls, head, logits, family)
    # A model spread over devices brings its logits back to where its tokens are.
    own = _output(head_call)
    logit_transform, vocab = find_logit_transform(own, logits.to(own.device), model, family)
    found = list(_block_lists(model, calls, head_call, ids))
    if not found:
        raise UnsupportedModel(
            f"{family}: no list of blocks found (looked for a ModuleList whose elements are each called once, in "
            f"order, and each give hidden states [batch, positions, width]{_repeated(model, calls)})"
        )
    # A list whose elements hand one stream on comes first; a block's own lists lie deeper.
    found.sort(key=lambda b: (not b.chained, b.name.count("."), -len(b.calls)))
    for blocks in found:
        with eval_mode(model):
            path = _find_path(calls, blocks, head_call)
        if path is not None:
            return _layout(blocks, embed, path, head_call, logit_transform, vocab)
    chained = [b for b in found if b.chained] or found
    blocks = max(chained, key=lambda b: b.calls[-1].end)
    injected = Injection(
        run,
        tuple(c.module for c in blocks.calls),
        blocks.stream,
        head_call.module,
        ids.device,
        limit,
        blocks.calls[-1].arity,
    )
    if not _injects(model, injected, blocks, head_call):
        ran = ", ".join(c.name for c in _between(calls, blocks.calls[-1], head_call)) or "no module"
        raise UnsupportedModel(
            f"{family}: no path from the last block's output to the unembedding's input (looked for modules, scales, "
            f"and the model's own code on the last block's output alone; between them ran: {ran})"
        )
    return _layout(blocks, embed, injected, head_call, logit_transform, vocab)


def _layout(
    blocks: _Blocks,
    embed: nn.Module,
    tail: FinalPath | Injection,
    head: Call,
    logit_transform: LogitTransform,
    vocab: int,
) -> Layout:
    return Layout(
        blocks=tuple(call.module for call in blocks.calls),
        embed=embed,
        stream=blocks.stream,
        tail=tail,
        head=head.module,
        head_name=head.name,
        logit_transform=logit_transform,
        vocab_size=vocab,
    )


def _output(call: Call) -> Tensor:
    return call.gave[0][1]


def _find_head(calls: list[Call], head: nn.Module | None, logits: Tensor, family: str) -> Call:
    for call in reversed(calls):
        if head is not None and call.module is head and call.gave:
            return call
    for call in reversed(calls):
        if call.gave and _output(call).shape[-1] == logits.shape[-1] and hasattr(call.module, "weight"):
            return call
    raise UnsupportedModel(
        f"{family}: no unembedding found (looked for get_output_embeddings() and for a module with a weight "
        f"whose output has the {logits.shape[-1]} logits)"
    )


def _block_lists(model: nn.Module, calls: list[Call], head: Call, ids: Tensor) -> Iterator[_Blocks]:
    by_module: dict[int, list[Call]] = {}
    for call in calls:
        by_module.setdefault(id(call.module), []).append(call)
    known, entry_name = _KNOWN.get(type(model).__name__, ("", ""))
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict) or (known and name != known):
            continue
        children = list(module.values()) if isinstance(module, nn.ModuleDict) else list(module)
        groups = [by_module[id(child)] for child in children if id(child) in by_module]
        used = [group[0] for group in groups if len(group) == 1 and group[0].gave]
        if not used or len(used) != len(groups) or any(a.end > b.order for a, b in pairwise(used)):
            continue
        if used[-1].end > head.order:
            continue
        if known:
            entry = model.get_submodule(entry_name)
            path = by_module[id(entry)][0].given[0][0]
            yield _Blocks(name, used, Stream(enters=path, entry=entry), chained=True)
            continue
        blocks = _stream(name, used, ids)
        if blocks is not None:
            yield blocks


def _stream(name: str, used: list[Call], ids: Tensor) -> _Blocks | None:
    """Which tensor is handed on: the one that leaves each block as it enters the next, else the first of one shape."""
    rows, seq = ids.shape
    fallback: _Blocks | None = None
    for leaves, out in used[0].gave:
        shape = Stream.of(out, rows, seq)
        if shape is None:
            continue
        for enters, entered in used[0].given:
            if entered.shape != out.shape:
                continue
            if any(_shape_at(c.gave, leaves) != out.shape or _shape_at(c.given, enters) != out.shape for c in used):
                continue
            stream = Stream(shape.kind, shape.count, enters, leaves)
            if all(torch.equal(found_at(a.gave, leaves), found_at(b.given, enters)) for a, b in pairwise(used)):
                return _Blocks(name, used, stream, chained=len(used) > 1)
            fallback = fallback or _Blocks(name, used, stream, chained=False)
    return fallback


def _shape_at(found: list[tuple[tuple[Any, ...], Tensor]], path: tuple[Any, ...]) -> torch.Size | None:
    return next((tensor.shape for way, tensor in found if way == path), None)


def _repeated(model: nn.Module, calls: list[Call]) -> str:
    counts: dict[int, int] = {}
    for call in calls:
        counts[id(call.module)] = counts.get(id(call.module), 0) + 1
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and counts.get(id(module[0]), 0) > 1:
            return f"; {name} runs {counts[id(module[0])]} times a pass"
    return ""


def _between(calls: list[Call], last: Call, head: Call) -> list[Call]:
    inside = [c for c in calls if c.order > last.end and -1 < c.end < head.order]
    # A composite module is one step; what it calls inside is not.
    return [c for c in inside if not any(o.order < c.order and c.end < o.end for o in inside)]


def _find_path(calls: list[Call], blocks: _Blocks, head: Call) -> FinalPath | None:
    last, stream = blocks.calls[-1], blocks.stream
    if not head.given:
        return None
    start = found_at(last.gave, stream.leaves)
    several = stream.kind in ("stacked", "split")
    current = start if several else stream.pack(start)
    steps: list[TailStep] = []
    for call in _between(calls, last, head):
        if not call.given or not call.gave:
            continue
        given = call.given[0][1]
        ratio = scale_between(current, given)
        if ratio is None:
            continue
        if ratio != 1.0:
            steps.append(TailStep(None, "scale", ratio))
        steps.append(TailStep(call.module, call.name))
        current = _output(call)
    ratio = scale_between(current, head.given[0][1])
    if ratio is None:
        return None
    if ratio != 1.0:
        steps.append(TailStep(None, "scale", ratio))
    path = FinalPath(tuple(steps), stream if several else None)
    return path if _agrees(path, stream.pack(start), head) else None


def _agrees(tail: FinalPath | Injection, h: Tensor, head: Call) -> bool:
    try:
        with torch.no_grad():
            got = tail(h)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, UnsupportedModel):
        return False
    return scale_between(got, head.given[0][1]) == 1.0


def _injects(model: nn.Module, tail: Injection, blocks: _Blocks, head: Call) -> bool:
    rows = head.given[0][1].shape[0] if head.given[0][1].dim() == 3 else None
    h = blocks.stream.pack(found_at(blocks.calls[-1].gave, blocks.stream.leaves), rows)
    if not head.given:
        return False
    with eval_mode(model):
        return _agrees(tail, h, head)


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside torch.compile's and PEFT's wrappers."""
    model = getattr(model, "_orig_mod", model)
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]  # PEFT
    return getattr(model, "_orig_mod", model)


def part_of(model: nn.Module, getter: str) -> Any:
    """What a method of transformers models names, such as ``get_input_embeddings``; None where it names nothing."""
    try:
        return getattr(model, getter)()
    except (AttributeError, NotImplementedError, TypeError):
        return None

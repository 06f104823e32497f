"""Find a model's layers from the model itself: run a few tokens, watch which module hands what to which.

What is looked for: a list of blocks that are each called once, in order; the one path of modules from the last
block's output to the unembedding's input; and what happens to the unembedding's output on its way to the logits
(nothing, a scale, a soft cap). Each step is compared by value, so a model that does something else is refused with
what was seen, never read wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModel
from .protocol import Post
from .recorder import evaluating, first_tensor

__all__ = ["Layout", "TailStep", "find_layout"]


@dataclass(frozen=True, slots=True)
class TailStep:
    """One step between the last block and the unembedding: a module (or none), then a scale."""

    module: nn.Module | None
    name: str
    scale: float = 1.0

    def __call__(self, h: Tensor) -> Tensor:
        if self.module is not None:
            out = first_tensor(self.module(h))
            if out is None:
                raise UnsupportedModel(f"module {self.name!r} between the last block and the unembedding gave no tensor")
            h = out
        return h * self.scale if self.scale != 1.0 else h


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a model keeps its parts. ``tail`` leads from the last block's output to the unembedding's input."""

    blocks: tuple[nn.Module, ...]
    blocks_name: str
    embed: nn.Module
    tail: tuple[TailStep, ...]
    head: nn.Module
    head_name: str
    post: Post


@dataclass(slots=True)
class _Call:
    name: str
    module: nn.Module
    order: int
    end: int = -1
    inputs: Tensor | None = None
    output: Tensor | None = None


def find_layout(model: nn.Module, run: Callable[[], Any], *, embed: nn.Module | None, head: nn.Module | None) -> Layout:
    """Trace ``model`` while ``run()`` executes a forward pass that returns its output (with ``logits``).

    Raises :class:`UnsupportedModel` naming what was looked for and not found.
    """
    calls, logits = _watch(model, run)
    family = type(model).__name__
    if embed is None:
        raise UnsupportedModel(f"{family}: no input embedding (looked for get_input_embeddings())")
    head_call = _find_head(calls, head, logits, family)
    name, blocks = _find_blocks(model, calls, head_call, family)
    last = blocks[-1]
    assert last.output is not None  # _find_blocks keeps only calls with an output
    tail = _find_tail(calls, last, head_call, family)
    post = _find_post(head_call, logits, model, family)
    return Layout(
        blocks=tuple(call.module for call in blocks),
        blocks_name=name,
        embed=embed,
        tail=tail,
        head=head_call.module,
        head_name=head_call.name,
        post=post,
    )


def _watch(model: nn.Module, run: Callable[[], Any]) -> tuple[list[_Call], Tensor]:
    calls: list[_Call] = []
    open_calls: dict[int, list[_Call]] = {}
    clock = iter(range(1 << 30))
    handles = []

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            source = first_tensor(args) if args else None
            if source is None:
                source = first_tensor(kwargs.get("hidden_states"))
            call = _Call(name, module, next(clock), inputs=None if source is None else source.detach().clone())
            calls.append(call)
            open_calls.setdefault(id(module), []).append(call)

        return hook

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        call = open_calls[id(module)].pop()
        call.end = next(clock)
        result = first_tensor(output)
        call.output = None if result is None else result.detach().clone()

    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
                handles.append(module.register_forward_hook(after))
        with evaluating(model):
            out = run()
    finally:
        for handle in handles:
            handle.remove()
    logits = out.logits if hasattr(out, "logits") else first_tensor(out)
    if not isinstance(logits, Tensor):
        raise UnsupportedModel(f"{type(model).__name__}: its forward pass gives no logits, so it is not a causal LM")
    return calls, logits.detach()


def _find_head(calls: list[_Call], head: nn.Module | None, logits: Tensor, family: str) -> _Call:
    if head is not None:
        for call in reversed(calls):
            if call.module is head and call.output is not None:
                return call
    for call in reversed(calls):
        if call.output is not None and call.output.shape[-1] == logits.shape[-1] and hasattr(call.module, "weight"):
            return call
    raise UnsupportedModel(
        f"{family}: no unembedding found (looked for get_output_embeddings() and for a module with a weight "
        f"whose output has the {logits.shape[-1]} logits)"
    )


def _find_blocks(
    model: nn.Module, calls: list[_Call], head: _Call, family: str
) -> tuple[str, list[_Call]]:
    by_module: dict[int, list[_Call]] = {}
    for call in calls:
        by_module.setdefault(id(call.module), []).append(call)
    best: tuple[str, list[_Call]] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
            continue
        found = [by_module.get(id(child), []) for child in module]
        used = [group[0] for group in found if len(group) == 1 and group[0].output is not None]
        if len(used) != len(module) or any(a.end > b.order for a, b in zip(used, used[1:], strict=False)):
            continue
        if not all(_is_stream(call, head) for call in used):
            continue
        # The outermost list wins: a block's own lists (experts, sub-layers) lie inside it.
        if best is None or name.count(".") < best[0].count("."):
            best = (name, used)
    if best is None:
        raise UnsupportedModel(
            f"{family}: no list of blocks found (looked for a ModuleList whose elements are each called once, in order, "
            "and each give hidden states [batch, positions, width])"
        )
    return best


def _is_stream(call: _Call, head: _Call) -> bool:
    if call.output is None or call.inputs is None or head.inputs is None or call.end > head.order:
        return False
    return call.output.dim() == 3 and call.inputs.shape == call.output.shape


def _find_tail(calls: list[_Call], last: _Call, head: _Call, family: str) -> tuple[TailStep, ...]:
    assert last.output is not None and head.inputs is not None
    between = [c for c in calls if c.order > last.end and c.end < head.order and c.end >= 0]
    # A composite module is one step; what it calls inside is not.
    outer = [c for c in between if not any(o.order < c.order and c.end < o.end for o in between)]
    steps: list[TailStep] = []
    current = last.output
    for call in outer:
        if call.inputs is None or call.output is None:
            continue
        ratio = scale_between(current, call.inputs)
        if ratio is None:
            continue
        if ratio != 1.0:
            steps.append(TailStep(None, "scale", ratio))
        steps.append(TailStep(call.module, call.name))
        current = call.output
    ratio = scale_between(current, head.inputs)
    if ratio is None:
        seen = ", ".join(c.name for c in outer) or "no module"
        raise UnsupportedModel(
            f"{family}: no path from the last block's output to the unembedding's input (looked for modules and scales; "
            f"between them ran: {seen})"
        )
    if ratio != 1.0:
        steps.append(TailStep(None, "scale", ratio))
    return tuple(steps)


def scale_between(a: Tensor, b: Tensor) -> float | None:
    """The constant ``c`` with ``b = c·a`` to rounding (exactly 1.0 when equal), or None when there is none."""
    if a.shape != b.shape:
        if a.dim() == b.dim() and a.shape[-1] == b.shape[-1] and b.shape[1] <= a.shape[1]:
            a = a[:, -b.shape[1] :]
        if a.shape != b.shape:
            return None
    if torch.equal(a, b):
        return 1.0
    x, y = a.double().flatten(), b.double().flatten()
    norm = float(x @ x)
    if norm == 0.0 or not math.isfinite(norm):
        return None
    ratio = float(x @ y) / norm
    if ratio == 0.0 or float((y - ratio * x).abs().max()) > 2e-3 * float(y.abs().max()) * _slack(b):
        return None
    return _tidy(ratio, _slack(b))


def _slack(t: Tensor) -> float:
    return 1.0 if t.dtype in (torch.bfloat16, torch.float16) else 1e-2


def _tidy(ratio: float, slack: float) -> float:
    """A ratio that rounding has blurred, put back on the simple number (k/8, 1/k) it must be, where one is near."""
    for candidate in (1.0, round(ratio * 1024) / 1024, *(1 / k for k in range(2, 257))):
        if candidate and abs(ratio - candidate) <= 1e-4 * slack * abs(ratio):
            return float(candidate)
    return ratio


def _find_post(head: _Call, logits: Tensor, model: nn.Module, family: str) -> Post:
    assert head.output is not None
    z = head.output
    ratio = scale_between(z, logits)
    if ratio is not None:
        return Post(ratio, None)
    if z.shape[-1] == logits.shape[-1]:
        for scale, cap in _cap_candidates(model, z, logits):
            post = Post(scale, cap)
            got = post(z.float())
            if float((got - logits.float()).abs().max()) <= 1e-4 * max(1.0, cap) * (100 if _slack(z) == 1.0 else 1):
                return post
    raise UnsupportedModel(
        f"{family}: the unembedding's output is turned into logits in a way not known here (looked for: unchanged, "
        "scaled by a constant, soft-capped)"
    )


def _cap_candidates(model: nn.Module, z: Tensor, logits: Tensor) -> Sequence[tuple[float, float]]:
    config = getattr(model, "config", None)
    values: dict[str, Any] = {}
    for part in (config, getattr(config, "text_config", None)):
        values.update(vars(part) if part is not None else {})
    caps = [float(v) for k, v in values.items() if "cap" in k and isinstance(v, int | float) and v and v > 0]
    caps += [15.0, 30.0, 50.0]
    scales = [1.0] + [
        f
        for k, v in values.items()
        if "scal" in k and isinstance(v, int | float) and v and not isinstance(v, bool)
        for f in (float(v), 1.0 / float(v))
    ]
    return [(s, c) for c in dict.fromkeys(caps) for s in dict.fromkeys(scales)]

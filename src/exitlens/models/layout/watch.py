"""Which module was called when, what it was given and what it gave, while a model runs once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from exitlens.errors import UnsupportedModel
from exitlens.models.layout.hooks import eval_mode, here
from exitlens.models.layout.residual import floats

__all__ = ["Call", "found_at", "watch"]


@dataclass(slots=True)
class Call:
    """One call of a module: when it ran, what it was given and what it gave, each tensor with the way to it."""

    name: str
    module: nn.Module
    order: int
    end: int = -1
    given: list[tuple[tuple[Any, ...], Tensor]] = field(default_factory=list)
    gave: list[tuple[tuple[Any, ...], Tensor]] = field(default_factory=list)
    arity: int = 0  # parts of the output, where it is a tuple


def watch(model: nn.Module, run: Callable[[], Any], head: nn.Module | None) -> tuple[list[Call], Tensor]:
    """Every call of every module while ``run()`` does a forward pass, in the order in which they began, and the logits.

    Raises :class:`UnsupportedModel` when the pass fails or gives no logits.
    """
    calls: list[Call] = []
    open_calls: dict[int, list[Call]] = {}
    clock = iter(range(1 << 30))
    handles = []

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [(path, t.detach().clone()) for path, t in floats((args, kwargs))]
            call = Call(name, module, next(clock), given=given)
            calls.append(call)
            open_calls.setdefault(id(module), []).append(call)

        return hook

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        call = open_calls[id(module)].pop()
        call.end = next(clock)
        call.arity = len(output) if isinstance(output, tuple) else 0
        call.gave = [(path, t.detach().clone()) for path, t in floats(output)]

    family = type(model).__name__
    try:
        for name, module in model.named_modules():
            if name:
                # The user's own hooks on the unembedding belong to it: what counts is what it is handed.
                first = module is head
                handles.append(module.register_forward_pre_hook(here(before(name)), with_kwargs=True, prepend=first))
                handles.append(module.register_forward_hook(here(after)))
        with eval_mode(model):
            out = run()
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UnsupportedModel(
            f"{family}: its forward pass does not run on token ids alone ({reason}): look at config.json"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    logits = out.logits if hasattr(out, "logits") else next((t for _, t in floats(out)), None)
    if not isinstance(logits, Tensor):
        raise UnsupportedModel(f"{family}: its forward pass gives no logits, so it is not a causal LM")
    return calls, logits.detach()


def found_at(found: list[tuple[tuple[Any, ...], Tensor]], path: tuple[Any, ...]) -> Tensor:
    """The tensor at ``path`` among those of a call."""
    return next(tensor for way, tensor in found if way == path)

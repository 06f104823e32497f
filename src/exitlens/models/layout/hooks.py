"""Record what modules see while a model runs, and leave no hook behind.

Hooks, training modes and replaced methods belong to a module, and so to every thread that runs it. A pass that needs
them therefore has the model to itself (:func:`undisturbed`), whichever wrapper of the model it comes from; and hooks
act in their own thread alone (:func:`here`), since passes of the user's, and blocks run one by one, ask nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from exitlens.models.layout.residual import Stream, at, first_tensor

__all__ = ["eval_mode", "first_tensor", "here", "record_blocks", "stopping_at", "undisturbed"]

_HELD: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_HELD_ALONE = threading.Lock()


def undisturbed(model: nn.Module) -> threading.RLock:
    """What a thread holds while a pass of ``model`` needs it to itself; the same thread may take it again.

    One a model: two wrappers of one model in two threads would otherwise record each other's states.
    """
    with _HELD_ALONE:
        return _HELD.setdefault(model, threading.RLock())


def here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """``hook`` where this thread runs the module; nothing where another does."""
    own = threading.get_ident()

    def guarded(*given: Any) -> Any:
        return hook(*given) if threading.get_ident() == own else None

    return guarded


class _Reached(Exception):
    """The module whose input was wanted is about to run."""


@contextmanager
def record_blocks(
    blocks: Sequence[nn.Module],
    stream: Stream,
    layers: Sequence[int],
    positions: Literal["all", "last"],
    into: dict[int, Tensor],
    *,
    shape: tuple[int, ...],
    copy: bool = False,
) -> Iterator[None]:
    """While open, put the residual stream at ``layers`` (0 = what enters block 1) into ``into``.

    ``shape``: of the tokens ``[batch, seq]`` that run meanwhile. ``copy``: keep clones, for models whose
    blocks write over the tensors that they were given. What another thread runs meanwhile is not looked at.
    """

    def keep(value: Any, path: tuple[Any, ...], layer: int) -> None:
        h = at(value, path)
        if not isinstance(h, Tensor):
            return
        h = stream.pack(h.detach(), shape[0], shape[1])
        if positions == "last" and h.shape[1] > 1:
            h = h[:, -1:].clone()  # a slice would keep the whole of a long prompt alive
        into[layer] = h.clone() if copy else h

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep((args, kwargs), stream.enters, 0)

    def leave(layer: int) -> Callable[..., None]:
        return lambda _module, _args, output: keep(output, stream.leaves, layer)

    handles = []
    try:
        for layer in layers:
            if layer == 0:
                handles.append((stream.entry or blocks[0]).register_forward_pre_hook(here(enter), with_kwargs=True))
            else:
                handles.append(blocks[layer - 1].register_forward_hook(here(leave(layer))))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def stopping_at(module: nn.Module, found: list[Tensor]) -> Iterator[None]:
    """While open, a pass ends where ``module`` would run, and what it was about to be given is put into ``found``."""

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = first_tensor(args) if args else first_tensor(kwargs)
        if given is not None:
            found.append(given)
        raise _Reached

    handle = module.register_forward_pre_hook(here(enter), with_kwargs=True, prepend=True)
    try:
        yield
    except _Reached:
        pass
    finally:
        handle.remove()


@contextmanager
def eval_mode(model: nn.Module, only: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Run ``model`` eagerly, without dropout and without gradients, and put every module's mode back afterwards.

    This thread alone, meanwhile. ``only``: parts that alone will run; where they have nothing to put back, another
    thread may run the model.
    """
    modules = list(model.modules()) if only is None else [module for part in only for module in part.modules()]
    with ExitStack() as stack:
        if only is None or any(module.training for module in modules):
            stack.enter_context(undisturbed(model))
        training = [module for module in modules if module.training]
        if any(getattr(module, "_compiled_call_impl", None) is not None for module in modules):
            # A compiled module would not call hooks put on it later.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True

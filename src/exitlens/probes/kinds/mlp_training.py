"""Many small networks trained side by side.

Where numba is installed and a vector of the processor holds 16 numbers, compiled kernels train one network after the
other (:mod:`._mlp_compiled`): the same up to rounding, and twice as fast.

Elsewhere: weights ``[models, in, out]``, one batched product a layer of the network, the gradient written by hand into
one flat buffer, and one fused Adam pass over all parameters of all models. Small stacks (3 models a thread) are fastest
on a CPU: their weights, moments and gradients (3 MB a model at width 576) stay in its last-level cache.

Each model keeps its own batches, so it ends where it would have ended alone, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from exitlens.probes.kinds._mlp_compiled import Network, stacked, usable

__all__ = ["HIDDEN", "Adam", "forward", "train_stack"]

HIDDEN = (256, 128, 64)  # SAPLMA's widths (Azaria and Mitchell 2023, section 4)


def forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Log-odds ``[models, rows]`` of states ``[models, rows, d]``."""
    h = x
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        h = torch.baddbmm(b, h, w)
        if k < len(weights) - 1:
            h = h.relu_()
    return h[..., 0]


class Adam:
    """Adam with PyTorch's defaults (betas .9 and .999, eps 1e-8) over one flat buffer, one fused pass a step.

    ``torch.optim`` is left alone on purpose: importing it costs seconds, and its step more than a small network's.
    """

    def __init__(self, like: Tensor) -> None:
        self.first, self.second, self.step = torch.zeros_like(like), torch.zeros_like(like), torch.zeros(())

    def update(self, parameters: Tensor, gradient: Tensor, lr: float) -> None:
        """Move ``parameters`` in place."""
        self.step += 1
        torch._fused_adam_(
            [parameters], [gradient], [self.first], [self.second], [], [self.step],
            lr=lr, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip


class _Stack:
    """Parameters and gradients of several networks, each in one flat buffer.

    A weight lies as ``[out, in]``, the order in which its gradient is written fastest; ``weights`` show it as
    ``[models, in, out]``.
    """

    def __init__(self, models: int, d: int, seeds: Sequence[int], dtype: torch.dtype) -> None:
        widths = (d, *HIDDEN, 1)
        shapes = [(models, b, a) for a, b in pairwise(widths)]
        shapes += [(models, 1, b) for b in widths[1:]]
        size = sum(math.prod(s) for s in shapes)
        self.flat, self.grad = torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype)
        self.adam = Adam(self.flat)
        params, self.grads = self._views(self.flat, shapes), self._views(self.grad, shapes)
        self.half = len(shapes) // 2
        self.weights = [w.transpose(1, 2) for w in params[: self.half]]
        self.biases = params[self.half :]
        for m, seed in enumerate(seeds):
            g = torch.Generator().manual_seed(seed)
            for k in range(self.half):  # torch's default for Linear: uniform within 1/sqrt(inputs)
                bound = 1 / math.sqrt(widths[k])
                for part in (self.weights[k], self.biases[k]):
                    part[m].copy_(torch.empty(part[m].shape, dtype=dtype).uniform_(-bound, bound, generator=g))

    @staticmethod
    def _views(flat: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        views, at = [], 0
        for shape in shapes:
            views.append(flat[at : at + math.prod(shape)].view(shape))
            at += math.prod(shape)
        return views

    def backward(self, x: Tensor, y: Tensor) -> None:
        """Gradient of the mean cross-entropy of ``x [models, batch, d]``, ``y [models, batch]`` into ``grad``."""
        last, grads = self.half - 1, self.grads
        acts = [x]
        for k in range(self.half):
            h = torch.baddbmm(self.biases[k], acts[-1], self.weights[k])
            acts.append(h.relu_() if k < last else h)
        delta = torch.sigmoid_(acts.pop()).sub_(y[..., None]).mul_(1 / y.shape[1])
        for k in range(last, -1, -1):
            torch.bmm(delta.transpose(1, 2), acts[k], out=grads[k])
            torch.sum(delta, 1, keepdim=True, out=grads[self.half + k])
            if k:
                back = self.weights[k].transpose(1, 2)
                # Behind the one output stands an outer product, for which a matrix product is slow.
                delta = delta * back if k == last else torch.bmm(delta, back)
                delta = torch.ops.aten.threshold_backward(delta, acts[k], 0)


def train_stack(
    states: Tensor,
    items: Sequence[tuple[int, int]],
    y: Tensor,
    rows: Tensor,
    *,
    epochs: int = 5,
    batch: int = 16,
    lr: float = 1e-3,
    centre: Tensor | None = None,
    spread: Tensor | None = None,
    on_epoch: Callable[[int, list[Tensor], list[Tensor]], None] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Train one network for each of ``items`` = (index into axis 0 of ``states [layers, n, d]``, seed) on ``rows``.

    The seed decides first weights and the order of rows, so the same seed at another layer sees the same batches.
    ``centre``/``spread [layers, 1, d]`` standardise. ``on_epoch(epoch, weights, biases)`` runs after each epoch
    (epoch from 1). Returns weights ``[models, in, out]`` and biases ``[models, 1, out]``.
    """
    stack = _Stack(len(items), states.shape[2], [seed for _, seed in items], states.dtype)
    at = torch.tensor([layer for layer, _ in items])
    generators = {seed: torch.Generator().manual_seed(seed + 1_000_003) for _, seed in items}
    y = y.to(states.dtype)
    moved = None if centre is None or spread is None else (centre[at], spread[at].reciprocal())
    networks = None
    if usable(states, len(rows), epochs, batch):
        networks = [Network([w[m] for w in stack.weights], [b[m] for b in stack.biases]) for m in range(len(items))]
    for epoch in range(1, epochs + 1):
        orders = {seed: rows[torch.randperm(len(rows), generator=g)] for seed, g in generators.items()}
        if networks is None:
            order = torch.stack([orders[seed] for _, seed in items])
            _epoch(stack, states, at, order, y, batch=batch, lr=lr, moved=moved)
        else:
            for m, ((layer, seed), network) in enumerate(zip(items, networks, strict=True)):
                own = None if moved is None else (moved[0][m], moved[1][m])
                network.epoch(states[layer], orders[seed], y, batch=batch, lr=lr, moved=own)
        if on_epoch is not None:
            on_epoch(epoch, *_parameters(stack, networks))
    return _parameters(stack, networks)


def _parameters(stack: _Stack, networks: list[Network] | None) -> tuple[list[Tensor], list[Tensor]]:
    return (stack.weights, stack.biases) if networks is None else stacked(networks)


def _epoch(
    stack: _Stack,
    states: Tensor,
    at: Tensor,
    order: Tensor,
    y: Tensor,
    *,
    batch: int,
    lr: float,
    moved: tuple[Tensor, Tensor] | None,
) -> None:
    """Each network once over its rows ``order [models, rows]`` of layer ``at [models]``."""
    n_layers, n, d = states.shape
    flat_states = states.reshape(n_layers * n, d)
    targets, source = y[order], order + (at * n)[:, None]
    for start in range(0, order.shape[1], batch):
        index = source[:, start : start + batch]
        x = flat_states.index_select(0, index.flatten()).view(*index.shape, d)
        if moved is not None:
            x = x.sub_(moved[0]).mul_(moved[1])
        stack.backward(x, targets[:, start : start + batch])
        stack.adam.update(stack.flat, stack.grad, lr)

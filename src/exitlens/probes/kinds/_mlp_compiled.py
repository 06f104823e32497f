"""Networks trained by compiled kernels (:mod:`._mlp_kernels`), where numba and AVX512 are there."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exitlens.compute import compiled

__all__ = ["KERNELS", "Network", "stacked", "usable"]

LEAST = 1 << 20  # rows × epochs × width of one network: smaller ones are trained before numba is loaded
KERNELS = ("exitlens.probes.kinds._mlp_kernels", "exitlens.compute.vectors", "exitlens.compute.tiles")
_LANES = 16  # rows of a batch, and outputs of a block


def usable(states: Tensor, rows: int, epochs: int, batch: int) -> bool:
    """Whether the kernels train networks on ``rows`` of ``states [..., d]``, and it is worth loading them.

    How many there are does not decide, so that a network is the same alone as among others.
    """
    fits = states.device.type == "cpu" and states.dtype == torch.float32 and batch <= _LANES
    return fits and rows * epochs * states.shape[-1] >= LEAST and _there()


@functools.cache
def _there() -> bool:
    return compiled.problem(*KERNELS) is None and compiled.wide_vectors()


class Network:
    """One network with its moments.

    Args:
        weights: First weights ``[in, out]`` of each layer; copied.
        biases: ``[1, out]`` of each layer; copied.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self._run: Any = compiled.kernels(*KERNELS)
        self._shapes = [(w.shape[0], w.shape[1]) for w in weights]
        self._inputs = np.array([a for a, _ in self._shapes])
        self._blocks = np.array([-(-b // _LANES) for _, b in self._shapes])
        packed = []  # [blocks of 16 outputs, inputs and bias, 16] of each layer; missing outputs are 0
        for w, b in zip(weights, biases, strict=True):
            whole = torch.nn.functional.pad(torch.cat([w, b]), (0, -w.shape[1] % _LANES))
            packed.append(whole.view(len(whole), -1, _LANES).permute(1, 0, 2).flatten())
        self._weight = torch.cat(packed).numpy()
        self._first, self._second, self._steps = np.zeros_like(self._weight), np.zeros_like(self._weight), 0

    def epoch(
        self, states: Tensor, order: Tensor, y: Tensor, *, batch: int, lr: float, moved: tuple[Tensor, Tensor] | None
    ) -> None:
        """Train on rows of ``states [n, d]`` once.

        Args:
            states: Float32.
            order: Which rows, in their order.
            y: Labels ``[n]``.
            batch: Rows of a step, 16 at most.
            lr: Adam's learning rate.
            moved: What is taken from each number of a state, and what the rest is multiplied by, ``[d]`` each; or None.
        """
        batches = -(-len(order) // batch)
        last = len(order) - (batches - 1) * batch
        # Each batch is filled up to 16 rows by its own first ones, which count nothing.
        place = torch.arange(_LANES)
        index = torch.arange(batches)[:, None] * batch + place % batch
        index[-1] = (batches - 1) * batch + place % last
        rows = order[index.flatten()]
        centre, factor = (np.zeros(0, np.float32),) * 2 if moved is None else (x.flatten().numpy() for x in moved)
        self._run.epoch(
            states.reshape(-1).numpy(), rows.numpy(), y[rows].numpy(), batch, last, centre, factor,
            self._weight, self._first, self._second, self._inputs, self._blocks, self._steps, lr,
        )  # fmt: skip
        self._steps += batches

    def layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Copies of weights ``[in, out]`` and biases ``[1, out]``."""
        weights, biases, at = [], [], 0
        for (inputs, outputs), blocks in zip(self._shapes, self._blocks.tolist(), strict=True):
            size = (inputs + 1) * blocks * _LANES
            part = torch.from_numpy(self._weight[at : at + size]).view(blocks, inputs + 1, _LANES)
            whole = part.permute(1, 0, 2).reshape(inputs + 1, -1)[:, :outputs]
            weights.append(whole[:inputs].clone())
            biases.append(whole[inputs:].clone())
            at += size
        return weights, biases


def stacked(networks: Sequence[Network]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights ``[networks, in, out]`` and biases ``[networks, 1, out]`` of each layer."""
    weights, biases = zip(*(network.layers() for network in networks), strict=True)
    return [torch.stack(w) for w in zip(*weights, strict=True)], [torch.stack(b) for b in zip(*biases, strict=True)]

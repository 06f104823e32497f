"""The original study's network (SAPLMA, Azaria and Mitchell 2023): 256-128-64 ReLU units, Adam, cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from exitlens.probes.dataset import ProbeData
from exitlens.probes.kinds.base import FittedStack, Kind
from exitlens.probes.kinds.mlp_training import forward, train_stack
from exitlens.probes.probe import Provenance, header, introduction, register_form, width_check

__all__ = ["MLP", "MLPProbe"]


@dataclass(frozen=True, repr=False)
class MLPProbe:
    """One network: ``weights`` each ``[in, out]``, ``biases`` each ``[out]``; ``P(true) = sigmoid(output)``."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    provenance: Provenance = field(default_factory=Provenance)
    kind: str = "mlp"

    def __repr__(self) -> str:
        return introduction("MLPProbe", len(self.weights[0]), self.kind, self.provenance)

    def predict_proba(self, states: Tensor) -> Tensor:
        """P(true) ``[..., n]`` of states ``[..., n, d]``."""
        h = width_check(states, self.weights[0].shape[0]).to(self.weights[0].dtype)
        for k, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = h @ w + b
            if k < len(self.weights) - 1:
                h = torch.relu(h)
        return torch.sigmoid(h[..., 0])

    def check(self, model: str | None = None, *, position: str | None = None, layer: int | None = None) -> None:
        """See :meth:`Provenance.check`."""
        self.provenance.check(model, position=position, layer=layer)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """``weight.k``, ``bias.k`` and the metadata."""
        tensors = {f"weight.{k}": w.contiguous() for k, w in enumerate(self.weights)}
        tensors |= {f"bias.{k}": b.contiguous() for k, b in enumerate(self.biases)}
        return tensors, header("mlp", self.kind, self.provenance, depth=len(self.weights))


def _read(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], provenance: Provenance) -> MLPProbe:
    depth = range(int(metadata["depth"]))
    return MLPProbe(
        tuple(tensors[f"weight.{k}"] for k in depth),
        tuple(tensors[f"bias.{k}"] for k in depth),
        provenance,
        str(metadata["kind"]),
    )


register_form("mlp", _read)


@dataclass
class _Networks:
    """Networks of one layer: for each fold, weights ``[seeds, in, out]`` and biases ``[seeds, 1, out]``."""

    weights: list[list[Tensor]]
    biases: list[list[Tensor]]

    def predict(self, fold: int, x: Tensor) -> Tensor:
        seeds = self.weights[fold][0].shape[0]
        # One seed at a time: the first hidden layer of all rows and seeds at once would be the largest tensor here.
        out = [
            forward(x[None], [w[s : s + 1] for w in self.weights[fold]], [b[s : s + 1] for b in self.biases[fold]])
            for s in range(seeds)
        ]
        return torch.sigmoid(torch.cat(out))[None]

    def probe(
        self,
        fold: int,
        setting: int,  # noqa: ARG002  # the interface of kinds that have settings
        seed: int,
        provenance: Provenance,
    ) -> MLPProbe:
        return MLPProbe(
            tuple(w[seed].clone(memory_format=torch.contiguous_format) for w in self.weights[fold]),
            tuple(b[seed, 0].clone() for b in self.biases[fold]),
            provenance,
        )


@dataclass(frozen=True, kw_only=True)
class MLP(Kind):
    """256-128-64 ReLU network, Adam 1e-3, batch 16, 5 epochs, binary cross-entropy.

    ``standardize`` rescales each feature over the training rows first (the original did not).
    """

    name: str = "mlp"
    random: bool = True
    stack: int = 3
    inner: int | None = 2  # choosing a layer with all inner folds would cost more than the study itself
    epochs: int = 5
    batch: int = 16
    lr: float = 1e-3
    standardize: bool = False

    def fit(self, states: Tensor, data: ProbeData, trains: Sequence[Tensor], seeds: Sequence[int]) -> list[FittedStack]:
        """One stack a layer; all given layers and seeds train side by side, fold after fold."""
        items = [(layer, seed) for layer in range(len(states)) for seed in seeds]
        stacks = [_Networks([], []) for _ in states]
        for rows in trains:
            centre = spread = None
            if self.standardize:
                centre = states[:, rows].mean(1, keepdim=True)
                spread = states[:, rows].std(1, keepdim=True, correction=0)
                spread = torch.where(spread > 1e-12, spread, torch.ones_like(spread))
            weights, biases = train_stack(
                states, items, data.y, rows, epochs=self.epochs, batch=self.batch, lr=self.lr,
                centre=centre, spread=spread,
            )  # fmt: skip
            if centre is not None and spread is not None:  # fold the standardisation into the first layer
                at = torch.tensor([layer for layer, _ in items])
                first = weights[0] / spread[at].transpose(1, 2)
                biases = [biases[0] - torch.bmm(centre[at], first), *biases[1:]]
                weights = [first, *weights[1:]]
            for layer, stack in enumerate(stacks):
                part = slice(layer * len(seeds), (layer + 1) * len(seeds))
                stack.weights.append([w[part].clone() for w in weights])
                stack.biases.append([b[part].clone() for b in biases])
        return list(stacks)

"""The tuned lens (Belrose et al. 2023, arXiv 2303.08112): one affine translator a layer before the final norm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError, layer_range_error

__all__ = ["TunedLens", "from_published"]

FORMAT = "exitlens-tuned-lens-1"


@dataclass(frozen=True, eq=False)
class TunedLens:
    """``transform(h, j) = h + A_j h + b_j`` for j < N; layer N is the model itself and is never changed.

    ``weight [N, d, d]`` holds the ``A_j`` (zero = the logit lens); or ``up [N, d, r]`` and ``down [N, r, d]`` with
    ``A_j = up_j down_j``. ``bias [N, d]``. ``fingerprint`` is that of the model it was trained for ("" = unknown, as
    for published ones); ``provenance`` says from what text and how well.
    """

    name: str
    fingerprint: str
    bias: Tensor
    weight: Tensor | None = None
    up: Tensor | None = None
    down: Tensor | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, d = self.bias.shape
        if self.weight is not None:
            right = self.weight.shape == (n, d, d)
        else:
            right = self.up is not None and self.down is not None and self.up.shape == self.down.transpose(1, 2).shape
            right = right and self.up is not None and self.up.shape[:2] == (n, d)
        if not right:
            raise InputError(
                f"tuned lens {self.name!r}: its tensors do not fit {n} layers of width {d}: train it again"
            )
        for tensor in (self.bias, self.weight, self.up, self.down):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise InputError(f"tuned lens {self.name!r} holds NaN or infinity: train it again")
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping does not pickle, and stages that hold a lens must.
        parts = (self.bias, self.weight, self.up, self.down, dict(self.provenance))
        return TunedLens, (self.name, self.fingerprint, *parts)

    @property
    def n_layers(self) -> int:
        """N, the number of translators."""
        return len(self.bias)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.bias.shape[1])

    def transform(self, h: Tensor, layer: int) -> Tensor:
        """``h [..., d]`` at ``layer`` → what the final norm shall read; at N ``h`` itself. Raises LayerError."""
        if not 0 <= layer <= self.n_layers:
            raise layer_range_error(layer, 0, self.n_layers, owner=f"lens {self.name!r}")
        if layer == self.n_layers:
            return h
        x = h.float()
        if self.weight is not None:
            moved = x @ self.weight[layer].to(h.device).T
        else:
            assert self.up is not None
            assert self.down is not None
            moved = x @ self.down[layer].to(h.device).T @ self.up[layer].to(h.device).T
        return (x + moved + self.bias[layer].to(h.device)).to(h.dtype)

    def check(self, fingerprint: str, n_layers: int, d_model: int, model: str) -> None:
        """Raise :class:`InputError` unless it fits this model."""
        if self.fingerprint and self.fingerprint != fingerprint:
            raise InputError(
                f"lens {self.name!r} was trained for model {self.fingerprint[:16]!r}, not for {model} "
                f"({fingerprint[:16]!r}): train one with exitlens lens train"
            )
        if (self.n_layers, self.d_model) != (n_layers, d_model):
            raise InputError(
                f"lens {self.name!r} is for {self.n_layers} layers of width {self.d_model}, but {model} has "
                f"{n_layers} of width {d_model}: train one with exitlens lens train"
            )

    def low_rank(self, rank: int) -> TunedLens:
        """The closest lens (in Frobenius norm) whose ``A_j`` have this rank. Raises :class:`InputError`."""
        if not 1 <= rank <= self.d_model:
            raise InputError(f"rank {rank} is out of range: use 1 to {self.d_model}")
        weight = self.weight
        if weight is None:
            assert self.up is not None
            assert self.down is not None
            weight = self.up @ self.down
        u, s, v = torch.linalg.svd(weight)
        up, down = (u[..., :rank] * s[:, None, :rank]).contiguous(), v[:, :rank].contiguous()
        notes = {**self.provenance, "rank": str(rank)}
        return TunedLens(self.name, self.fingerprint, self.bias, None, up, down, notes)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and text metadata, as a safetensors file holds them."""
        tensors = {"bias": self.bias, "weight": self.weight, "up": self.up, "down": self.down}
        head = {"format": FORMAT, "name": self.name, "fingerprint": self.fingerprint}
        kept = {k: v.detach().float().cpu().contiguous() for k, v in tensors.items() if v is not None}
        return kept, head | {"provenance": json.dumps(dict(self.provenance))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> TunedLens:
        """The inverse of :meth:`to_tensors`. Raises :class:`InputError` when it is no tuned lens."""
        if metadata.get("format") != FORMAT or "bias" not in tensors:
            raise InputError(f"not a tuned lens: its format is {metadata.get('format')!r}, expected {FORMAT!r}")
        try:
            provenance = json.loads(metadata.get("provenance", "{}"))
        except json.JSONDecodeError as error:
            raise InputError(
                f"tuned lens {metadata.get('name')!r}: its provenance is damaged: train it again"
            ) from error
        return cls(
            metadata.get("name", "tuned"),
            metadata.get("fingerprint", ""),
            tensors["bias"],
            tensors.get("weight"),
            tensors.get("up"),
            tensors.get("down"),
            provenance,
        )


def from_published(config: Mapping[str, object], tensors: Mapping[str, Tensor], name: str) -> TunedLens:
    """A checkpoint of the ``tuned-lens`` package: ``config.json``, tensors ``{j}.weight`` and ``{j}.bias``.

    Such files name a model but carry no fingerprint, so only the shape is checked against the model.
    Raises :class:`InputError`.
    """
    n = config.get("num_hidden_layers")
    if not isinstance(n, int) or n < 1:
        raise InputError(f"lens {name!r}: config.json has no num_hidden_layers: it is not a tuned-lens checkpoint")
    missing = [f"{j}.weight" for j in range(n) if f"{j}.weight" not in tensors]
    if missing:
        raise InputError(f"lens {name!r} has no tensor {missing[0]!r}, though config.json says {n} layers")
    weight = torch.stack([tensors[f"{j}.weight"].float() for j in range(n)])
    zero = torch.zeros(weight.shape[1])
    bias = torch.stack([tensors.get(f"{j}.bias", zero).float() for j in range(n)])
    source = str(config.get("base_model_name_or_path", "unknown"))
    return TunedLens(name, "", bias, weight, provenance={"model": source, "source": "published checkpoint"})

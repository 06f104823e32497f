"""The Jacobian lens: each layer read after the average linear map from there to the last layer.

``z_j = post(W norm(J_j h_j))`` with ``J_j = E[∂h_N/∂h_j]``, h_N before the final norm ("Verbalizable Representations
Form a Global Workspace in Language Models", Anthropic, July 2026). :mod:`.fit` estimates the matrices;
:mod:`.published` reads and writes the files that others publish.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError, layer_range_error
from exitlens.layer_range import spelled
from exitlens.lenses.lens import Lens
from exitlens.models.protocol import LayeredModel
from exitlens.parsing import cut, parse_json
from exitlens.storage.atomic import write_tensors
from exitlens.storage.tensors import read_tensors

__all__ = ["ESTIMATORS", "FORMAT", "JacobianLens", "merged"]

FORMAT = "exitlens-jacobian-lens-1"
ESTIMATORS: Mapping[str, str] = MappingProxyType({
    "summed": "how all later positions of the last layer move with a position, itself included (as published)",
    "same-position": "how a position of the last layer moves with the same position alone",
})  # fmt: skip
_AGAIN = "fit it again with exitlens lens train --method jacobian"


@dataclass(frozen=True, eq=False, repr=False)
class JacobianLens(Lens):
    """A Jacobian lens: ``transform(h, j) = J_j h`` for j < N; at layer N, ``h`` itself.

    Attributes:
        name: What tables call it.
        fingerprint: Of the model that it was fitted to; "" is unknown.
        matrices: ``J_j`` ``[n, d, d]`` for each of ``layers``, in order.
        layers: The layers that have a matrix.
        depth: N, or None where the file does not say (files published elsewhere).
        texts: How many texts the means are over.
        estimator: ``summed`` (over later targets, as published) or ``same-position``.
        provenance: Which texts, how it was fitted, and how well it reads.

    Source: "Verbalizable Representations Form a Global Workspace in Language Models", Anthropic, July 2026.
    """

    name: str
    fingerprint: str
    matrices: Tensor
    layers: tuple[int, ...]
    depth: int | None
    texts: int
    estimator: str = "summed"
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"JacobianLens {cut(repr(self.name))}: the {self.estimator} Jacobian at {len(self.layers)} layers of width "
            f"{self.matrices.shape[1]}, mean over {self.texts} texts\n"
            f"  for a model of fingerprint {cut(repr(self.fingerprint), 14)}\n"
            "  .provenance says how it was fitted, .save(FILE) keeps it"
        )

    def __post_init__(self) -> None:
        """Raise :class:`InputError` unless the parts are numbers that fit together: files may be forged."""
        name, shape = cut(repr(self.name)), tuple(self.matrices.shape)
        n = len(self.layers)
        if n == 0 or len(shape) != 3 or shape[0] != n or shape[1] != shape[2] or shape[1] == 0:
            raise InputError(f"Jacobian lens {name}: matrices of shape {shape} for {n} layers, expected ({n}, d, d)")
        if list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise InputError(f"Jacobian lens {name}: its layers {cut(self.layers)} are not in order: {_AGAIN}")
        if self.depth is not None and self.layers[-1] >= self.depth:
            raise InputError(
                f"Jacobian lens {name} has layer {self.layers[-1]}, but its model ends at {self.depth}: {_AGAIN}"
            )
        if self.estimator not in ESTIMATORS:
            raise InputError(f"unknown estimator {cut(repr(self.estimator))}: use {' or '.join(ESTIMATORS)}")
        if self.texts < 1:
            raise InputError(f"Jacobian lens {name} counts {self.texts} texts, 1 at least: {_AGAIN}")
        if not self.matrices.is_floating_point():
            raise InputError(f"Jacobian lens {name} holds {self.matrices.dtype}, no floating-point numbers: {_AGAIN}")
        for layer, matrix in zip(self.layers, self.matrices, strict=True):  # one by one: a mask of all would be large
            if not bool(torch.isfinite(matrix).all()):
                raise InputError(f"Jacobian lens {name}: the matrix of layer {layer} holds NaN or infinity: {_AGAIN}")
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping does not pickle, and stages that hold a lens must.
        parts = (self.name, self.fingerprint, self.matrices, self.layers, self.depth, self.texts, self.estimator)
        return JacobianLens, (*parts, dict(self.provenance))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.matrices.shape[1])

    @property
    def flops(self) -> float:
        """One product with a matrix for one state [FLOPs]."""
        return 2.0 * self.d_model**2

    def transform(self, h: Tensor, layer: int) -> Tensor:
        """``h [..., d]`` at ``layer`` → ``J h``; at N ``h`` itself. Raises InputError, LayerError."""
        if layer == self.depth:
            return h
        self.check_layers([layer])
        matrix = self.matrices[self.layers.index(layer)].to(h.device, torch.float32)
        return (h.float() @ matrix.T).to(h.dtype)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise :class:`InputError` unless it has a matrix for each of ``layers`` below N."""
        for layer in layers:
            if layer in self.layers or layer == self.depth:
                continue
            if self.depth is not None and not 0 <= layer <= self.depth:
                raise layer_range_error(layer, 0, self.depth, owner=f"lens {self.name!r}")
            raise InputError(
                f"lens {self.name!r} has no matrix for layer {layer}, only for {spelled(self.layers)}: name those with "
                "--layers (layers= in Python), or fit a lens of all layers"
            )

    def check(self, lm: LayeredModel) -> None:
        """Raise :class:`InputError` unless it fits this model."""
        if self.fingerprint and self.fingerprint != lm.fingerprint:
            raise InputError(
                f"lens {self.name!r} was fitted to model {self.fingerprint[:16]!r}, not to {lm.name} "
                f"({lm.fingerprint[:16]!r}): {_AGAIN}"
            )
        if self.d_model != lm.d_model or (self.depth or lm.n_layers) != lm.n_layers or self.layers[-1] >= lm.n_layers:
            depth = f"{self.depth} layers" if self.depth is not None else f"layers up to {self.layers[-1]}"
            raise InputError(
                f"lens {self.name!r} is for {depth} of width {self.d_model}, but {lm.name} has {lm.n_layers} of width "
                f"{lm.d_model}: {_AGAIN}"
            )

    @property
    def identity(self) -> str:
        """Its name and a hash of its matrices."""
        digest = hashlib.sha256(f"{self.layers}{self.matrices.dtype}".encode())
        for matrix in self.matrices:
            digest.update(matrix.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return f"{self.name} {digest.hexdigest()[:16]}"

    def save(self, path: str | Path) -> Path:
        """Save as one safetensors file; returns its path."""
        path = Path(path)
        write_tensors(path, *self.to_tensors())
        return path

    @classmethod
    def load(cls, path: str | Path, lm: LayeredModel | None = None) -> JacobianLens:
        """A lens of ours, a safetensors file; with ``lm`` checked to fit that model. Raises :class:`InputError`."""
        lens = cls.from_tensors(*read_tensors(Path(path)))
        if lm is not None:
            lens.check(lm)
        return lens

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and text metadata, as a safetensors file holds them."""
        facts = {"layers": list(self.layers), "depth": self.depth, "texts": self.texts}
        head = {"format": FORMAT, "name": self.name, "fingerprint": self.fingerprint, "estimator": self.estimator}
        head |= {"facts": json.dumps(facts), "provenance": json.dumps(dict(self.provenance))}
        return {"J": self.matrices.detach().cpu().contiguous()}, head

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> JacobianLens:
        """The inverse of :meth:`to_tensors`. Raises :class:`InputError` when it is no Jacobian lens."""
        if metadata.get("format") != FORMAT or "J" not in tensors:
            kind = cut(repr(metadata.get("format")))
            raise InputError(f"not a Jacobian lens: its format is {kind}, expected {FORMAT!r}")
        where = f"Jacobian lens {cut(repr(metadata.get('name')))}"
        facts, provenance = (
            parse_json(metadata.get(key, "{}"), f"the {key} of {where}", error=InputError, remedy=_AGAIN)
            for key in ("facts", "provenance")
        )
        if not isinstance(provenance, dict) or not all(isinstance(v, str) for v in provenance.values()):
            raise InputError(f"the provenance of {where} is no object of texts: {_AGAIN}")
        layers, depth, texts = _facts(facts, where)
        return cls(
            metadata.get("name", "jacobian"),
            metadata.get("fingerprint", ""),
            tensors["J"],
            layers,
            depth,
            texts,
            metadata.get("estimator", ""),
            provenance,
        )


def _facts(facts: Any, where: str) -> tuple[tuple[int, ...], int | None, int]:
    """Layers, depth and texts as a file says them, every one a number. Raises InputError."""
    said: dict[str, Any] = facts if isinstance(facts, dict) else {}
    layers, depth = said.get("layers"), said.get("depth")
    numbers: list[Any] = [*layers, said.get("texts")] if isinstance(layers, list) else [None]
    if all(type(number) is int for number in numbers) and (depth is None or type(depth) is int):
        return tuple(numbers[:-1]), depth, numbers[-1]
    raise InputError(f"{where} does not say its layers, depth and texts ({cut(facts)}): {_AGAIN}")


def merged(lenses: Sequence[JacobianLens], *, name: str = "jacobian") -> JacobianLens:
    """One lens from several that were fitted to one model on texts of their own: means weighted by their texts.

    Raises:
        InputError: Fewer than two, another model, other layers, another estimator, or texts in common.
    """
    if len(lenses) < 2:
        raise InputError(f"{len(lenses)} lens to merge: give two or more")
    first = lenses[0]
    for other in lenses[1:]:
        for what, a, b in (
            ("model", first.fingerprint, other.fingerprint),
            ("layers", spelled(first.layers), spelled(other.layers)),
            ("width", first.d_model, other.d_model),
            ("estimator", first.estimator, other.estimator),
            ("skipped positions", first.provenance.get("skip"), other.provenance.get("skip")),
        ):
            if a != b:
                raise InputError(
                    f"lenses {first.name!r} and {other.name!r} differ in {what} ({cut(a)}, {cut(b)}): only lenses "
                    "fitted alike can be merged"
                )
    seen: dict[str, str] = {}
    for lens in lenses:
        for mark in text_marks(lens):
            if mark in seen:
                raise InputError(
                    f"lenses {seen[mark]!r} and {lens.name!r} were fitted on a text in common ({mark}): merge lenses "
                    "of different texts"
                )
            seen[mark] = lens.name
    total = sum(lens.texts for lens in lenses)
    matrices = torch.zeros_like(first.matrices, dtype=torch.float32)
    for lens in lenses:
        matrices += lens.matrices.float() * (lens.texts / total)
    kept = {"model", "skip", "length", "precision"}
    notes = {key: value for key, value in first.provenance.items() if key in kept}
    notes["source"] = " + ".join(lens.provenance.get("source", "?") for lens in lenses)
    notes["merged"] = json.dumps([[lens.name, lens.texts] for lens in lenses])
    if all(text_marks(lens) for lens in lenses):
        notes["texts"] = json.dumps(list(seen))
    return JacobianLens(name, first.fingerprint, matrices, first.layers, first.depth, total, first.estimator, notes)


def text_marks(lens: JacobianLens) -> list[str]:
    """Hashes of the texts that it was fitted on; none where its file does not say."""
    try:
        marks = json.loads(lens.provenance.get("texts", "[]"))
    except ValueError:
        return []
    return [str(mark) for mark in marks] if isinstance(marks, list) else []

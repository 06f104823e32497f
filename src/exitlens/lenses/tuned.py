"""The tuned lens (Belrose et al. 2023, arXiv 2303.08112): one affine translator a layer before the final norm.

On disk it is a safetensors file, or the folder of a published checkpoint; never a pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exitlens.errors import InputError, layer_range_error
from exitlens.lenses.lens import Lens
from exitlens.models.protocol import LayeredModel
from exitlens.parsing import cut, parse_json, read_bytes
from exitlens.storage.atomic import write_tensors
from exitlens.storage.tensors import read_tensors

__all__ = ["TunedLens", "from_published", "unembedding_hash"]

FORMAT = "exitlens-tuned-lens-1"
_PUBLISHED = "published checkpoint"
_LOG = logging.getLogger("exitlens")


@dataclass(frozen=True, eq=False, repr=False)
class TunedLens(Lens):
    """A tuned lens: ``transform(h, j) = h + A_j h + b_j`` for j < N; at layer N, ``h`` itself.

    Attributes:
        name: What tables call it.
        fingerprint: Of the model that it was trained for; "" is unknown, as for published lenses.
        bias: The ``b_j`` ``[N, d]``.
        weight: The ``A_j`` ``[N, d, d]``; zero is the logit lens. None where ``up`` and ``down`` are given.
        up: ``[N, d, r]``, with ``A_j = up_j down_j``.
        down: ``[N, r, d]``.
        provenance: From what text, and how well it reads.

    Source: Belrose et al. 2023, arXiv 2303.08112.
    """

    name: str
    fingerprint: str
    bias: Tensor
    weight: Tensor | None = None
    up: Tensor | None = None
    down: Tensor | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        layers, width = self.bias.shape
        rank = "" if self.up is None else f" of rank {self.up.shape[2]}"
        return (
            f"TunedLens {cut(repr(self.name))}: affine translators{rank} for {layers} layers of width {width}\n"
            f"  for a model of fingerprint {cut(repr(self.fingerprint), 14)}\n"
            "  .provenance says how it was trained, .save(FILE) keeps it"
        )

    def __post_init__(self) -> None:
        """Raise :class:`InputError` unless the tensors are numbers of shapes that fit together: files may be forged."""
        name = cut(repr(self.name))
        given = {"bias": self.bias, "weight": self.weight, "up": self.up, "down": self.down}
        parts = {key: tensor for key, tensor in given.items() if tensor is not None}
        n, d = self.bias.shape if self.bias.dim() == 2 else (0, 0)
        rank = self.up.shape[2] if self.up is not None and self.up.dim() == 3 else 0
        shapes = {"bias": (n, d), "weight": (n, d, d), "up": (n, d, rank), "down": (n, rank, d)}
        if n * d == 0 or parts.keys() not in ({"bias", "weight"}, {"bias", "up", "down"}):
            raise InputError(f"tuned lens {name} needs bias [layers, d] with weight, or up and down: train it again")
        for key, tensor in parts.items():
            if tuple(tensor.shape) != shapes[key]:
                raise InputError(
                    f"tuned lens {name}: {key} has shape {tuple(tensor.shape)}, which does not fit {n} layers of width "
                    f"{d}: train it again"
                )
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                raise InputError(f"tuned lens {name}: {key} holds NaN, infinity or no floats: train it again")
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping does not pickle, and stages that hold a lens must.
        parts = (self.bias, self.weight, self.up, self.down, dict(self.provenance))
        return TunedLens, (self.name, self.fingerprint, *parts)

    @property
    def n_layers(self) -> int:
        """N, the number of affine translators."""
        return len(self.bias)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.bias.shape[1])

    @property
    def flops(self) -> float:
        """One product with a matrix, or with two thin ones, for one state [FLOPs]."""
        return 2.0 * self.d_model**2 if self.down is None else 4.0 * self.down.shape[1] * self.d_model

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

    def check(self, lm: LayeredModel) -> None:
        """Raise :class:`InputError` unless it fits this model."""
        if self.fingerprint and self.fingerprint != lm.fingerprint:
            raise InputError(
                f"lens {self.name!r} was trained for model {self.fingerprint[:16]!r}, not for {lm.name} "
                f"({lm.fingerprint[:16]!r}): train one with exitlens lens train"
            )
        if (self.n_layers, self.d_model) != (lm.n_layers, lm.d_model):
            raise InputError(
                f"lens {self.name!r} is for {self.n_layers} layers of width {self.d_model}, but {lm.name} has "
                f"{lm.n_layers} of width {lm.d_model}: train one with exitlens lens train"
            )
        self._check_published(lm)

    def _check_published(self, lm: LayeredModel) -> None:
        """A published lens says of which unembedding it is; without that, the name of its model is all there is."""
        said, named = self.provenance.get("unembed_hash"), self.provenance.get("model", "")
        if said and said == unembedding_hash(lm.weight):
            return
        where = f"lens {self.name!r} was published for {named[:80]!r}"
        if said and lm.weight.dtype == torch.float32:
            raise InputError(f"{where}, whose unembedding is not that of {lm.name}: use that model, or train a lens")
        if said:
            # Its hash is of printed digits, which rounding to half precision can change.
            _LOG.warning("%s; whether %s is it cannot be told in %s: load it in float32", where, lm.name, lm.dtype)
        elif self.provenance.get("source") == _PUBLISHED and _last(named) != _last(lm.name):
            _LOG.warning("%s, not for %s, and carries no hash of its unembedding", where, lm.name)

    @property
    def identity(self) -> str:
        """Its name and a hash of its parameters."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.to_tensors()[0].items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
        return f"{self.name} {digest.hexdigest()[:16]}"

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

    def save(self, path: str | Path) -> Path:
        """Save as one safetensors file; returns its path."""
        path = Path(path)
        write_tensors(path, *self.to_tensors())
        return path

    @classmethod
    def load(cls, path: str | Path, lm: LayeredModel | None = None) -> TunedLens:
        """A lens of ours (a safetensors file), or a published folder: ``config.json`` and ``params.safetensors``.

        With ``lm`` it is checked to fit that model.

        Raises:
            InputError: Not a lens, another model's lens, or a pickled ``params.pt``, which is never opened because
                unpickling runs code.
        """
        path = Path(path)
        if path.suffix in (".pt", ".pth", ".bin"):
            raise _pickled(path)
        lens = _from_folder(path) if path.is_dir() else cls.from_tensors(*read_tensors(path))
        if lm is not None:
            lens.check(lm)
        return lens

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
            kind = cut(repr(metadata.get("format")))
            raise InputError(f"not a tuned lens: its format is {kind}, expected {FORMAT!r}")
        where = f"the provenance of tuned lens {cut(repr(metadata.get('name')))}"
        provenance = parse_json(metadata.get("provenance", "{}"), where, error=InputError, remedy="train it again")
        texts = provenance.items() if isinstance(provenance, dict) else [(provenance, provenance)]
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in texts):
            raise InputError(f"{where} is no object of texts: train it again")
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

    Such files carry no fingerprint, but name a model and (newer ones) hold a hash of its unembedding's printed digits:
    both are compared when the lens is used. Raises :class:`InputError`.
    """
    n, shown = config.get("num_hidden_layers"), cut(repr(name))
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise InputError(f"lens {shown}: config.json has no num_hidden_layers: it is not a tuned-lens checkpoint")
    # The number of tensors bounds the search: a number of layers is easily forged.
    missing = next((j for j in range(min(n, len(tensors) + 1)) if f"{j}.weight" not in tensors), None)
    if missing is not None:
        raise InputError(f"lens {shown} has no tensor '{missing}.weight', though config.json says {cut(n)} layers")
    d = tensors["0.weight"].shape[-1] if tensors["0.weight"].dim() else 0
    weights = [tensors[f"{j}.weight"] for j in range(n)]
    biases = [tensors.get(f"{j}.bias", torch.zeros(d)) for j in range(n)]
    for what, parts, shape in (("weight", weights, (d, d)), ("bias", biases, (d,))):
        for j, tensor in enumerate(parts):
            if tuple(tensor.shape) != shape or not tensor.is_floating_point():
                found = f"shape {tuple(tensor.shape)} of {tensor.dtype}"
                raise InputError(f"lens {shown}: '{j}.{what}' has {found}, expected {shape} floats")
    weight = torch.stack([tensor.float() for tensor in weights])
    bias = torch.stack([tensor.float() for tensor in biases])
    notes = {"model": str(config.get("base_model_name_or_path") or "unknown"), "source": _PUBLISHED}
    if config.get("unembed_hash"):
        notes["unembed_hash"] = str(config["unembed_hash"])
    return TunedLens(name, "", bias, weight, provenance=notes)


def unembedding_hash(weight: Tensor) -> str:
    """The ``tuned-lens`` package's own: sha256 of the matrix ``[vocab, d]`` as numpy prints it with one digit."""
    digits = np.array_str(weight.detach().float().cpu().numpy(), precision=1)
    return hashlib.sha256(digits.encode()).hexdigest()


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].partition("@")[0].lower()


def _from_folder(path: Path) -> TunedLens:
    params = path / "params.safetensors"
    if not params.exists():
        if (path / "params.pt").exists():
            raise _pickled(path / "params.pt")
        raise InputError(f"'{path}' holds no params.safetensors: give a lens file or a tuned-lens folder")
    where = f"'{path / 'config.json'}'"
    try:
        text = read_bytes(path / "config.json", error=InputError, holds="a lens's settings").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8: fetch the lens again") from None
    config = parse_json(text, where, error=InputError, remedy="fetch the lens again")
    if not isinstance(config, dict):
        raise InputError(f"{where} is {cut(repr(config))}, no object: fetch the lens again")
    return from_published(config, read_tensors(params)[0], path.name)


def _pickled(path: Path) -> InputError:
    return InputError(
        f"'{path}' is a pickle, which exitlens never opens: where you trust it, convert it once with "
        f"safetensors.torch.save_file(torch.load('{path.name}', weights_only=True), 'params.safetensors')"
    )

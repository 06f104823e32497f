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
from exitlens.storage.atomic import write_tensors
from exitlens.storage.tensors import read_tensors

__all__ = ["TunedLens", "from_published", "unembedding_hash"]

FORMAT = "exitlens-tuned-lens-1"
_PUBLISHED = "published checkpoint"
_LOG = logging.getLogger("exitlens")


@dataclass(frozen=True, eq=False)
class TunedLens(Lens):
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
        """N, the number of affine translators."""
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

    Such files carry no fingerprint, but name a model and (newer ones) hold a hash of its unembedding's printed digits:
    both are compared when the lens is used. Raises :class:`InputError`.
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
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"'{path / 'config.json'}' cannot be read as JSON: {error}") from error
    return from_published(config, read_tensors(params)[0], path.name)


def _pickled(path: Path) -> InputError:
    return InputError(
        f"'{path}' is a pickle, which exitlens never opens: where you trust it, convert it once with "
        f"safetensors.torch.save_file(torch.load('{path.name}', weights_only=True), 'params.safetensors')"
    )

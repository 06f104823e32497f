"""What every layer said at every position of some texts: one frozen result with named axes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from exitlens.display import Shown
from exitlens.errors import InputError, LayerError, MissingExtra
from exitlens.parsing import cut, parse_json
from exitlens.storage.atomic import write_tensors
from exitlens.storage.tensors import read_tensors

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AXES", "Trace"]

AXES = ("text", "layer", "position")
FORMAT = "exitlens-trace-1"


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Shown):
    """Statistics with the axes text, layer, position (and a fourth: rank, target or choice).

    ``trace[name]`` is one array. Position i describes what the layers predict *after* token i; ``logprob`` and ``rank``
    are those of token i + 1.

    Attributes:
        values: Arrays by name, float32 or int64 ``[texts, layers, positions, …]``. Positions past a text's end hold NaN
            (−1, False). ``saturation`` has one entry, 0, on its layer axis. Units: :data:`exitlens.lenses.STATS`.
        layers: Layers read, as numbered in the model.
        lens: The lens's name.
        model: The model's name.
        token_ids: Token ids, one tuple for each text.
        tokens: The same as texts.
        notes: Lines for the reader.
        product: How logits were multiplied: ``float32``, ``bfloat16``, …
        extra: More facts that are saved with it.
        vocabulary: Texts of the ids in ``top_ids``.
    """

    values: Mapping[str, np.ndarray]
    layers: tuple[int, ...]
    lens: str
    model: str
    token_ids: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    product: str = "float32"
    extra: Mapping[str, str] = field(default_factory=dict)
    vocabulary: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, array in self.values.items():
            if array.ndim < 3 or len(array) != len(self.token_ids):
                raise InputError(f"trace value {name!r} has shape {array.shape}: expected (text, layer, position, …)")
            array.setflags(write=False)
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))
        object.__setattr__(self, "vocabulary", MappingProxyType(dict(self.vocabulary)))

    def __repr__(self) -> str:
        lengths = self.lengths
        tokens = f"{lengths[0]} tokens" if len(lengths) == 1 else f"{sum(lengths)} tokens in {len(lengths)} texts"
        return (
            f"Trace of {tokens}, {len(self.layers)} layers, lens {self.lens}, model {self.model}\n"
            f"  holds {cut(', '.join(self.values))}\n"
            "  .show() draws it, .to_pandas() is a table, trace[NAME] an array [text, layer, position, …]"
        )

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.values[name]
        except KeyError:
            raise InputError(f"this trace holds no {name!r}: it holds {', '.join(self.values)}") from None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each text."""
        return tuple(len(ids) for ids in self.token_ids)

    def at(self, layer: int) -> dict[str, np.ndarray]:
        """The values of one layer ``{name: [texts, positions, …]}``.

        Raises:
            LayerError: The layer was not read.
        """
        if layer not in self.layers:
            raise LayerError(f"layer {layer} was not recorded: this trace holds {', '.join(map(str, self.layers))}")
        k = self.layers.index(layer)
        return {name: array[:, k] for name, array in self.values.items() if array.shape[1] == len(self.layers)}

    def text(self, number: int) -> Trace:
        """The same trace of one of its texts alone, from 0.

        Raises:
            InputError: No such text.
        """
        if not 0 <= number < len(self):
            raise InputError(f"text {number} is not in this trace: it holds {len(self)} (0 to {len(self) - 1})")
        here, end = slice(number, number + 1), self.lengths[number]
        return replace(
            self,
            values={name: array[here, :, :end].copy() for name, array in self.values.items()},
            token_ids=self.token_ids[here],
            tokens=self.tokens[here],
        )

    def since(self, position: int) -> Trace:
        """The same trace without the positions before ``position``."""
        return replace(
            self,
            values={name: array[:, :, position:].copy() for name, array in self.values.items()},
            token_ids=tuple(ids[position:] for ids in self.token_ids),
            tokens=tuple(words[position:] for words in self.tokens),
        )

    def to_pandas(self) -> pd.DataFrame:
        """A row for each text, layer and position; a fourth axis becomes columns ``name_0``, ``name_1``, …"""
        import pandas as pd

        n = len(self.layers)
        lengths = np.asarray(self.lengths, dtype=np.int64)
        where = [(i, j, p) for i, t in enumerate(lengths) for j in range(n) for p in range(t)]
        index = np.asarray(where, dtype=np.int64).reshape(-1, 3)
        i, j, p = index.T
        ids = [self.token_ids[a][b] for a, b in zip(i, p, strict=True)]
        words = [self.tokens[a][b] for a, b in zip(i, p, strict=True)]
        columns: dict[str, Any] = {
            "text": i,
            "layer": np.asarray(self.layers, dtype=np.int64)[j],
            "position": p,
            "token_id": np.asarray(ids, dtype=np.int64),
            "token": words,
        }
        for name, array in self.values.items():
            picked = array[i, np.minimum(j, array.shape[1] - 1), p]
            if picked.ndim == 1:
                columns[name] = picked
            else:
                columns |= {f"{name}_{k}": picked[:, k] for k in range(picked.shape[1])}
        return pd.DataFrame(columns)

    def to_xarray(self) -> Any:
        """An ``xarray.Dataset`` with the same axes.

        Raises:
            MissingExtra: xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise MissingExtra("to_xarray needs xarray: pip install 'exitlens[xarray]'") from error
        data: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
        for name, array in self.values.items():
            if array.shape[1] != len(self.layers):
                data[name] = (("text", "position"), array[:, 0])
            else:
                data[name] = ((*AXES, f"{name}_item")[: array.ndim], array)
        attributes = {"model": self.model, "lens": self.lens}
        return xarray.Dataset(data, coords={"layer": list(self.layers)}, attrs=attributes)

    def save(self, path: str | Path) -> Path:
        """Save as one safetensors file; returns its path."""
        path = Path(path)
        write_tensors(path, *self.to_tensors())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """A trace that :meth:`save` wrote.

        Raises:
            InputError: Any other file, or a damaged one.
        """
        return cls.from_tensors(*read_tensors(Path(path)))

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and text metadata, as a safetensors file holds them."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in self.values.items()}
        head = {
            "format": FORMAT,
            "layers": json.dumps(self.layers),
            "lens": self.lens,
            "model": self.model,
            "product": self.product,
            "token_ids": json.dumps(self.token_ids),
            "tokens": json.dumps(self.tokens),
            "notes": json.dumps(self.notes),
            "extra": json.dumps(dict(self.extra)),
            "vocabulary": json.dumps({str(i): text for i, text in self.vocabulary.items()}),
        }
        return tensors, head

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Trace:
        """The inverse of :meth:`to_tensors`. Raises :class:`InputError` when it is no trace."""
        if metadata.get("format") != FORMAT:
            raise InputError(f"not a trace: its format is {cut(repr(metadata.get('format')))}, expected {FORMAT!r}")
        header = {name: parse_json(metadata.get(name, ""), f"a trace's {name}", error=InputError) for name in _LISTS}
        # Files of before there was a vocabulary have none.
        named = parse_json(metadata.get("vocabulary", "{}"), "a trace's vocabulary", error=InputError)
        layers, ids, words = header["layers"], header["token_ids"], header["tokens"]
        if not (
            _all(layers, int) and _lists(ids, int) and _lists(words, str) and _all(header["notes"], str)
            and [len(text) for text in ids] == [len(text) for text in words]
            and isinstance(header["extra"], dict) and _all([*header["extra"], *header["extra"].values()], str)
            and isinstance(named, dict) and _all(list(named.values()), str) and all(key.isdecimal() for key in named)
        ):  # fmt: skip
            raise InputError("this trace is damaged (its header does not fit together): write it again")
        longest = max((len(text) for text in ids), default=0)
        fitting: list[tuple[int, ...]] = [(len(ids), rows, longest) for rows in (1, len(layers))]
        for name, tensor in tensors.items():
            axes = tuple(tensor.shape[:3])
            if axes not in fitting or tensor.dtype not in _TYPES:
                raise InputError(
                    f"this trace is damaged: {cut(repr(name))} has shape {tuple(tensor.shape)} of {tensor.dtype}, with "
                    f"{len(ids)} texts, {len(layers)} layers and {longest} positions; write it again"
                )
        return cls(
            {name: tensor.numpy() for name, tensor in tensors.items()},
            tuple(layers),
            metadata.get("lens", ""),
            metadata.get("model", ""),
            tuple(tuple(text) for text in ids),
            tuple(tuple(text) for text in words),
            tuple(header["notes"]),
            metadata.get("product", ""),
            header["extra"],
            {int(key): text for key, text in named.items()},
        )


_LISTS = ("layers", "token_ids", "tokens", "notes", "extra")
_TYPES = (torch.float32, torch.float64, torch.int64, torch.bool)


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _lists(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(_all(value, kind) for value in values)

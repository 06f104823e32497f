"""Hidden states on disk: read one layer of all examples, or all layers of some, without touching the rest.

    STORE/store.json                   what the states are: model, layers, position, prompt, dtype
    STORE/plan.parquet                 which example goes to which row of which shard, fixed before any work
    STORE/shards/00007.safetensors     "layer.00" .. "layer.30", each [rows, d_model], in the model's dtype
    STORE/shards/00007.1.safetensors   layers that were asked for later (.2, .3, ...: later still)
    STORE/shards/00007.rows.parquet    position and token of each row, and what else was read there
    STORE/shards/00007.seal.json       the hashes of all, written last: a shard without it does not exist
    STORE/index.parquet                one row per example: id, label, topic, group, position, token, hash, shard, row
    STORE/index.json                   its hash, and those of the shards' tables that it was joined from

Shards are sealed units (:mod:`exitlens.storage.sealed`); their key hashes where the states come from and which
examples stand in which row. New examples are appended to the plan as new shards, new layers to each shard as a file of
their own.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from exitlens.errors import LayerError, ProbeError
from exitlens.parsing import cut
from exitlens.runs.planned_rows import COLUMNS, PlannedRows, read_places
from exitlens.storage.atomic import canonical, key_of, sha256_file, write_json, write_parquet, write_tensors
from exitlens.storage.lock import writing_folder
from exitlens.storage.mirror import local_folder, named
from exitlens.storage.sealed import Seal, Sealed
from exitlens.version import __version__

__all__ = ["SHARD_ROWS", "Origin", "ShardWriter", "StateStore"]

SHARD_ROWS = 256
# Layers may grow; a model is known by its fingerprint, not by what it was called.
_NO_MARKS = ("layers", "model")
_FILES_AT_ONCE = 1024  # small tables that are held as such before they are joined


@dataclass(frozen=True, slots=True)
class Origin:
    """Where states come from; a store never mixes two of these (``layers`` may grow)."""

    model: str
    fingerprint: str
    dtype: str
    d_model: int
    layers: tuple[int, ...]
    position: str
    setting: str
    prompt: str


class StateStore:
    """A folder of hidden states, one vector per example and layer."""

    def __init__(self, path: Path, origin: Origin, wanted: Sequence[int] | None = None) -> None:
        self.path = path
        self.origin = origin
        self.wanted = tuple(wanted if wanted is not None else origin.layers)
        self._plan = PlannedRows(path)
        self._shards = Sealed(path / "shards")
        self._looked: dict[int, _Looked] = {}  # at seals that nobody writes any more

    @classmethod
    def open(cls, path: str | Path, origin: Origin) -> StateStore:
        """Create a store, or open one of the same ``origin`` to extend it; ProbeError when it is of another.

        Layers that it does not hold yet are added: its shards then count as unfinished, for those layers only.
        """
        folder = writing_folder(path)
        known = _origin_of(folder)
        layers = origin.layers
        if known is not None:
            layers = tuple(sorted({*known.layers, *origin.layers}))
            before = asdict(known)
            for name, value in asdict(origin).items():
                if name not in _NO_MARKS and before[name] != value:
                    raise ProbeError(
                        f"'{named(folder)}' holds hidden states with {name} {cut(repr(before[name]))}, not "
                        f"{cut(repr(value))}: use another folder, or remove it to extract them again"
                    )
        whole = replace(origin, layers=layers)
        if known != whole:
            write_json(folder / "store.json", asdict(whole))
        return cls(folder, whole, origin.layers)

    @classmethod
    def read(cls, path: str | Path) -> StateStore:
        """An existing store; ProbeError when there is none."""
        folder = local_folder(path)
        known = _origin_of(folder)
        if known is None:
            raise ProbeError(f"no hidden states in '{named(folder)}': extract them first (exitlens probe --data ...)")
        return cls(folder, known)

    # writing

    def plan(self, rows: pd.DataFrame, shard_rows: int = SHARD_ROWS) -> None:
        """Reserve rows for examples not yet planned, in the order given.

        ``rows``: columns id, label, topic, group, hash (of the text), n_tokens. An example is known by id and hash, so
        a changed text under an old id is a new example.
        """
        self._plan.add(rows, shard_rows)

    def unfinished(self) -> list[int]:
        """Numbers of the planned shards that are missing, half-written, without a wanted layer, or not as hashed."""
        whole = self._shards.finished()
        found = []
        for shard in self._plan.shards:
            seal = whole(shard, self._key(shard))
            if seal is None or self._lacking(seal):
                found.append(shard)
            else:
                self._looked[shard] = _Looked.at(seal)
        return found

    def missing(self, shard: int) -> tuple[int, ...]:
        """The wanted layers that a shard does not hold: all of them when it is missing or damaged."""
        return self._lacking(self._shards.whole(shard, self._key(shard)))

    def _lacking(self, seal: Seal | None) -> tuple[int, ...]:
        held = {layer for layers in _parts(seal).values() for layer in layers}
        return tuple(layer for layer in self.wanted if layer not in held)

    def planned(self, shard: int) -> pd.DataFrame:
        """The plan's rows of one shard, in order."""
        return self._plan.of(shard)

    def rows(self, shard: int) -> int:
        """How many examples a shard holds."""
        first, end = self._plan.span(shard)
        return end - first

    def write(self, shard: int, states: Mapping[int, Tensor], rows: pd.DataFrame) -> None:
        """Store layers of one shard, see :meth:`ShardWriter.write`."""
        self.writer().write(shard, self._key(shard), self._plan.names(shard)[0], states, rows)

    def writer(self) -> ShardWriter:
        """What writes shards, without the plan: a few words, for whoever computes states elsewhere."""
        return ShardWriter(self._shards, canonical(self._identity))

    def key(self, rows: pd.DataFrame) -> str:
        """The key of the shard that holds the examples ``rows`` (columns id, hash) in this order."""
        return key_of(self._identity, rows["id"].tolist(), rows["hash"].tolist())

    def _key(self, shard: int) -> str:
        return key_of(self._identity, *self._plan.names(shard))

    def finish(self) -> pd.DataFrame:
        """Write ``index.parquet`` over all finished shards and return it.

        What an earlier index holds of a shard is not read again: of 10^5 small files that would take minutes.
        """
        self._shards.catch_up()
        looked = {shard: found.rows for shard in self._plan.shards if (found := self._look(shard)) is not None}
        before = _IndexMarks.of(self.path)
        old = read_places(self.path / "index.parquet") if before is not None else None
        kept = [] if before is None or old is None else [s for s, sha in looked.items() if before.rows.get(s) == sha]
        fresh = sorted(looked.keys() - set(kept))
        groups = (fresh[begin : begin + _FILES_AT_ONCE] for begin in range(0, len(fresh), _FILES_AT_ONCE))
        parts = [said for group in groups if (said := self._said(group, looked)) is not None]
        if old is not None and kept:
            parts.append(old[old["shard"].isin(kept)].drop(columns=[*COLUMNS, "row"]))
        index = self._plan.table
        if parts:
            said = pd.concat(parts, ignore_index=True).sort_values("shard", kind="stable", ignore_index=True)
            index = index[index["shard"].isin(said["shard"].unique())].reset_index(drop=True)
            index = pd.concat([index, said.drop(columns="shard")], axis=1)
        if fresh or not parts or before is None or before.rows != looked:
            sha = write_parquet(self.path / "index.parquet", index)
            write_json(self.path / "index.json", {"sha256": sha, "rows": looked})
        return index

    def _said(self, shards: Sequence[int], looked: dict[int, str]) -> pd.DataFrame | None:
        """What was read at the rows of some shards; those whose table is not as sealed are taken out of ``looked``."""
        found = []
        for shard in shards:
            file = self._shards.path(shard, self._key(shard), "rows.parquet")
            if not file.is_file() or sha256_file(file) != looked[shard]:
                del looked[shard]
                continue
            found.append(pd.read_parquet(file).assign(shard=shard))
        return pd.concat(found, ignore_index=True) if found else None

    def made_by(self) -> dict[str, int]:
        """Planned shards that there are, by the version of exitlens that made them; by several, ``A and B``."""
        made = (self._look(shard) for shard in self._plan.shards)
        return dict(sorted(Counter(found.versions for found in made if found is not None).items()))

    def _look(self, shard: int) -> _Looked | None:
        """What the seal of a shard says, if it has one; read once, after the shard was found whole."""
        if shard in self._looked:
            return self._looked[shard]
        seal = self._shards.claimed(shard, self._key(shard))
        return None if seal is None or not _parts(seal) else _Looked.at(seal)

    # reading

    def index(self) -> pd.DataFrame:
        """One row per stored example, in the order of shards and rows."""
        index = read_places(self.path / "index.parquet")
        return index if index is not None else self.finish()

    def layer(self, layer: int, ids: Sequence[str] | None = None) -> NDArray[np.float32]:
        """States of one layer ``[n, d_model]``, float32: of all examples, or of ``ids`` in their order."""
        found: NDArray[np.float32] = self.states((layer,), ids)[0]
        return found

    def states(self, layers: Sequence[int], ids: Sequence[str] | None = None) -> NDArray[np.float32]:
        """States ``[layers, n, d_model]``, float32; only the tensors (and rows) asked for are read.

        Raises LayerError for a layer that is not stored and ProbeError for an unknown example.
        """
        for layer in layers:
            if layer not in self.origin.layers:
                raise LayerError(f"layer {layer} is not in '{self.path}': it holds {_range(self.origin.layers)}")
        place = self._places(ids)
        out = np.empty((len(layers), len(place), self.origin.d_model), dtype=np.float32)
        shards = place["shard"].to_numpy()
        rows = place["row"].to_numpy()
        order = np.argsort(shards, kind="stable")
        for wanted in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1) if len(order) else ():
            shard = shards[wanted[0]]
            for file, held in self._files(int(shard)).items():
                mine = [(i, layer) for i, layer in enumerate(layers) if layer in held]
                if not mine:
                    continue
                try:
                    with safe_open(file, framework="pt") as tensors:
                        for i, layer in mine:
                            out[i, wanted] = _rows(tensors, _name(layer), rows[wanted])
                except (OSError, SafetensorError, ValueError, IndexError) as error:
                    raise ProbeError(
                        f"'{file}' is not as its seal says ({cut(error)}): extract the hidden states again"
                    ) from None
        return out

    def _files(self, shard: int) -> dict[Path, list[int]]:
        """The files of a shard and the layers in each; hashes are checked when a store is filled, not at each read."""
        key = self._key(shard)
        seal = self._shards.claimed(shard, key)
        if seal is None:
            raise ProbeError(f"shard {shard} of '{self.path}' is not finished: extract the hidden states again")
        parts = _parts(seal)
        lacking = set(self.wanted) - {layer for part in parts.values() for layer in part}
        if lacking:
            raise ProbeError(
                f"shard {shard} of '{self.path}' lacks layer {min(lacking)}: extract the hidden states again"
            )
        return {self._shards.path(shard, key, part): layers for part, layers in parts.items()}

    def _places(self, ids: Sequence[str] | None) -> pd.DataFrame:
        index = self.index()
        if ids is None:
            return index
        # The newest text under an id counts.
        lookup = index.drop_duplicates("id", keep="last").set_index("id")
        missing = next((i for i in ids if i not in lookup.index), None)
        if missing is not None:
            raise ProbeError(f"no hidden states of example '{missing}' in '{self.path}': extract them first")
        return lookup.loc[list(ids)]

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self.origin).items() if name not in _NO_MARKS}


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """Writes shards of a store; ``origin``: its identity as canonical JSON."""

    shards: Sealed
    origin: str

    def write(self, shard: int, key: str, ids: Sequence[str], states: Mapping[int, Tensor], rows: pd.DataFrame) -> None:
        """Store layers of one shard: ``states[layer] [rows, d_model]`` and a table of what was read at each row.

        A whole shard keeps what it has and gains those layers. Raises ProbeError, naming layer and example, when a
        state is not finite.
        """
        for layer in states:
            finite = torch.isfinite(states[layer]).all(dim=-1)
            if not bool(finite.all()):
                bad = ids[int((~finite).nonzero()[0, 0])]
                raise ProbeError(f"hidden state of example '{bad}' at layer {layer} is not finite: check the dtype")
        seal = self.shards.whole(shard, key)
        parts = _parts(seal)
        if parts and set(states) <= {layer for held in parts.values() for layer in held}:
            return  # somebody else was quicker: what is done twice counts once
        part = f"{len(parts)}.safetensors" if parts else "safetensors"
        tensors = {_name(layer): states[layer].detach().cpu() for layer in states}
        metadata = {"origin": self.origin}
        files: dict[str, Callable[[Path], str]] = {part: partial(write_tensors, tensors=tensors, metadata=metadata)}
        if not parts:
            files["rows.parquet"] = partial(write_parquet, frame=rows)
        beside = seal.files if seal is not None and parts else {}
        facts = {
            "layers": {**parts, part: sorted(states)},
            "versions": {**{held: _version(seal, held) for held in parts}, part: __version__},
        }
        self.shards.write(shard, key, files, facts, beside=beside)


class _IndexMarks(BaseModel):
    """What ``index.json`` says. ``rows``: the hash of each shard's table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    rows: dict[int, str]

    @classmethod
    def of(cls, folder: Path) -> _IndexMarks | None:
        """That of the index of a store, None where it is missing or the index is another."""
        try:
            found = cls.model_validate_json((folder / "index.json").read_bytes())
            return found if sha256_file(folder / "index.parquet") == found.sha256 else None
        except (OSError, ValidationError):
            return None


@dataclass(frozen=True, slots=True)
class _Looked:
    """What is kept of a seal: the hash of the shard's table, and the versions that made its files."""

    rows: str
    versions: str

    @classmethod
    def at(cls, seal: Seal) -> _Looked:
        versions = sorted({_version(seal, part) for part in _parts(seal)})
        return cls(str(seal.files.get("rows.parquet")), sys.intern(" and ".join(versions)))


def _parts(seal: Seal | None) -> dict[str, list[int]]:
    """The layers in each tensor file of a shard, as its seal says; none without a seal, or where it says otherwise."""
    parts = seal.facts.get("layers") if seal is not None else None
    if seal is None or not isinstance(parts, dict) or not all(isinstance(layers, list) for layers in parts.values()):
        return {}
    return {part: layers for part, layers in parts.items() if part in seal.files}


def _version(seal: Seal | None, part: str) -> str:
    """The version of exitlens that wrote a file of a shard: unknown where the seal does not say."""
    versions = seal.facts.get("versions") if seal is not None else None
    found = versions.get(part) if isinstance(versions, dict) else None
    return found if isinstance(found, str) else "unknown"


def _rows(file: Any, key: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    view = file.get_slice(key)
    total = int(view.get_shape()[0])
    if 4 * len(rows) >= total:
        picked = file.get_tensor(key)[torch.from_numpy(rows.copy())]
    else:
        picked = torch.cat([view[int(r) : int(r) + 1] for r in rows])
    return np.asarray(picked.float().numpy(), dtype=np.float32)


def _origin_of(folder: Path) -> Origin | None:
    """What a store says of itself; None where it says nothing, or nothing that makes sense."""
    try:
        return TypeAdapter(Origin).validate_json((folder / "store.json").read_bytes(), strict=True)
    except (OSError, ValidationError):
        return None


def _name(layer: int) -> str:
    return f"layer.{layer:02d}"


def _range(layers: Sequence[int]) -> str:
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return "layers " + ", ".join(str(layer) for layer in layers)

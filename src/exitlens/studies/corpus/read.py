"""Any amount of text read layer by layer into Parquet shards, in memory that does not grow with the text.

    DIR/manifest.json                who made this: model and text with their hashes, settings, versions, machine
    DIR/shards/00007.parquet         a row a text, position and layer (:mod:`.corpus_table`)
    DIR/seals/00007.json             its hash, where it begins and ends, its sums; written last
    DIR/tables/by_layer.parquet      means over all texts, a row a layer

A shard is a stretch of ``shard_tokens`` tokens, fixed by the text and the settings alone. One whose seal is missing,
or does not match the file, is made again; all others are never computed twice. A reading that was killed at any moment
therefore ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from exitlens.compute.precision import product_dtype
from exitlens.data.texts import Survey, TextFile
from exitlens.errors import InputError, RunError
from exitlens.lenses.lens import Lens, as_lens, lens_name
from exitlens.lenses.read_hidden import readout
from exitlens.lenses.read_texts import BATCH_TOKENS, Window, plan_windows, read_windows
from exitlens.lenses.statistics import known
from exitlens.models.protocol import LayeredModel
from exitlens.runs.directory import RunDirectory, now
from exitlens.storage.atomic import read_json, sha256_file, write_json, write_table
from exitlens.studies.corpus.table import ShardTable
from exitlens.studies.layers.stage import check_layers

__all__ = ["SHARD_TOKENS", "CorpusRead", "CorpusSettings", "check_stats", "read_corpus"]

SHARD_TOKENS = 2048
VERSION = 1


@dataclass(frozen=True)
class CorpusSettings:
    """What is read of each text. ``overlap``: tokens of context that the windows of a long text share (a quarter)."""

    layers: tuple[int, ...] | Literal["all"] = "all"
    stats: tuple[str, ...] = ("entropy",)
    lens: str | Lens = "logit"
    top_k: int = 5
    precision: str = "fast"
    long: Literal["refuse", "split"] = "refuse"
    overlap: int | None = None
    limit: int | None = None
    shard_tokens: int = SHARD_TOKENS
    batch_tokens: int = BATCH_TOKENS


@dataclass(frozen=True)
class CorpusRead:
    """What lies in ``path``: ``by_layer`` has the means; ``fresh_tokens`` were read by this call, the others before."""

    path: Path
    survey: Survey
    tokens: int
    fresh_tokens: int
    shards: int
    by_layer: pd.DataFrame
    saturation: float | None
    notes: tuple[str, ...]


def check_stats(names: tuple[str, ...]) -> tuple[str, ...]:
    """The statistics, each once. Raises InputError for none, an unknown one, and for choices, which need a question."""
    for name in names:
        if name == "choices":
            raise InputError("'choices' belongs to one question: use exitlens look --choices; here --stats entropy,kl")
    known(names, without=("choices",))
    return tuple(dict.fromkeys(names))


def read_corpus(
    lm: LayeredModel,
    source: TextFile,
    out: str | Path,
    settings: CorpusSettings,
    *,
    survey: Survey | None = None,
    command: str = "",
    fresh: bool = False,
    tick: Callable[[int], None] = lambda _characters: None,
) -> CorpusRead:
    """Read every text of ``source`` into ``out``, or go on with the reading that it holds.

    ``survey`` is the source's own, where it was made already; ``tick(n)`` counts its characters. Raises RunError for a
    folder of another reading (naming the first setting that differs) or that cannot be written, ContextError for a
    text over the context unless ``settings.long`` is split, InputError, LayerError and ModelError as the readout does.
    """
    survey = survey if survey is not None else source.survey(settings.limit)
    layers = tuple(check_layers(lm, settings.layers))
    _try(lm, layers, settings)
    folder = Path(out).expanduser()
    _refuse_other_task(folder)
    begun = any((folder / "seals").glob("*.json"))
    identity = _identity(lm, source, survey, layers, settings)
    with RunDirectory.open(folder, identity, command=command, fresh=fresh or not begun) as directory:
        directory.note(
            model={"name": lm.name, "fingerprint": lm.fingerprint, "dtype": identity["dtype"],
                   "device": str(lm.device), "n_layers": lm.n_layers, "d_model": lm.d_model},
            data={"source": str(source.path), "sha256": survey.sha256, "texts": survey.texts, "empty": survey.empty,
                  "characters": survey.characters},
            settings={**identity, "lens_name": lens_name(settings.lens)},
        )  # fmt: skip
        return _fill(lm, source, survey, directory, layers, settings, tick)


def _fill(
    lm: LayeredModel,
    source: TextFile,
    survey: Survey,
    directory: RunDirectory,
    layers: tuple[int, ...],
    settings: CorpusSettings,
    tick: Callable[[int], None],
) -> CorpusRead:
    directory.stage_state("read", "running")
    totals = _Totals(layers)
    stream: _Stream | None = None
    number, place, fresh = 0, (0, 0), 0
    while True:
        seal = _seal(directory.path, number, place)
        if seal is not None:
            tick(seal["characters"])
        else:
            if stream is None or stream.place != place:
                stream = _Stream(lm, source, settings, place)
            seal = _make(lm, directory.path, number, stream, layers, settings, tick)
            fresh += seal["tokens"]
        totals.add(seal)
        number, place = number + 1, (seal["end"][0], seal["end"][1])
        if seal["last"]:
            break
    by_layer = totals.table()
    directory.write_table("by_layer", by_layer)
    directory.stage_state("read", "done", shards=number, tokens=totals.tokens)
    directory.note(finished=now())
    return CorpusRead(
        directory.path, survey, totals.tokens, fresh, number, by_layer, totals.saturation, tuple(totals.notes)
    )


class _Stream:
    """Windows of the texts from a place on, with the tokens of the texts that they belong to."""

    def __init__(self, lm: LayeredModel, source: TextFile, settings: CorpusSettings, place: tuple[int, int]) -> None:
        self.lm, self.source, self.settings, self.place = lm, source, settings, place
        self.ids: dict[int, list[int]] = {}
        self._characters: dict[int, int] = {}
        self._windows = self._all(place)
        self._next = next(self._windows, None)

    def take(self) -> list[Window]:
        """The windows of the next shard."""
        taken: list[Window] = []
        tokens = 0
        while self._next is not None and tokens < self.settings.shard_tokens:
            taken.append(self._next)
            tokens += self._next.stop - self._next.keep
            self._next = next(self._windows, None)
        self.place = (taken[-1].text, taken[-1].stop) if taken else self.place
        return taken

    def forget(self) -> None:
        """Drop the texts that no window still needs."""
        last = self.place[0]
        for text in [text for text in self.ids if text < last]:
            del self.ids[text], self._characters[text]

    @property
    def ended(self) -> bool:
        """No window is left."""
        return self._next is None

    def characters(self, window: Window) -> int:
        """The window's share of its text's characters; the shares of a text add up to all of it."""
        n, tokens = self._characters[window.text], len(self.ids[window.text])
        return n * window.stop // tokens - n * window.keep // tokens

    def _all(self, place: tuple[int, int]) -> Iterator[Window]:
        lm, settings = self.lm, self.settings
        for number, text in self.source.texts(place[0], settings.limit):
            ids = list(lm.encode(text))
            self.ids[number], self._characters[number] = ids, len(text)
            for window in plan_windows([len(ids)], lm.context, settings.overlap, long=settings.long, first=number):
                if number > place[0] or window.keep >= place[1]:
                    yield window


def _make(
    lm: LayeredModel,
    folder: Path,
    number: int,
    stream: _Stream,
    layers: tuple[int, ...],
    settings: CorpusSettings,
    tick: Callable[[int], None],
) -> dict[str, Any]:
    """Read one shard and write it, its seal last."""
    begin = stream.place
    windows = stream.take()
    if not windows:
        raise InputError(f"'{stream.source.path}' gives no tokens with the tokenizer of {lm.name}: give other text")
    table = ShardTable(lm, stream.ids, windows, layers)
    notes: list[str] = []
    for batch, found in read_windows(
        lm, stream.ids, windows, layers, lens=settings.lens, stats=settings.stats, top_k=settings.top_k,
        precision=settings.precision, batch_tokens=settings.batch_tokens,
    ):  # fmt: skip
        table.put(batch, found)
        notes += [note for note in found.notes if note not in notes]
        tick(sum(stream.characters(window) for window in batch))
    seal: dict[str, Any] = {
        "version": VERSION,
        "sha256": write_table(folder / "shards" / f"{number:05d}.parquet", table.arrow()),
        "begin": list(begin),
        "end": list(stream.place),
        "last": stream.ended,
        "tokens": table.tokens,
        "characters": sum(stream.characters(window) for window in windows),
        "split": sum(window.keep > 0 for window in windows),
        "sums": table.sums(),
        "notes": notes,
    }
    write_json(folder / "seals" / f"{number:05d}.json", seal)
    stream.forget()
    return seal


def _seal(folder: Path, number: int, place: tuple[int, int]) -> dict[str, Any] | None:
    """The seal of a whole shard that begins at ``place``, else None."""
    seal = read_json(folder / "seals" / f"{number:05d}.json")
    if not isinstance(seal, dict) or seal.get("version") != VERSION or seal.get("begin") != list(place):
        return None
    return seal if sha256_file(folder / "shards" / f"{number:05d}.parquet") == seal.get("sha256") else None


class _Totals:
    """Sums of all shards so far."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self.tokens = self.split = 0
        self.notes: list[str] = []
        self._sums: dict[str, list[tuple[float, int]]] = {}

    def add(self, seal: Mapping[str, Any]) -> None:
        self.tokens += seal["tokens"]
        self.split += seal["split"]
        self.notes += [note for note in seal["notes"] if note not in self.notes]
        for name, pairs in seal["sums"].items():
            before = self._sums.get(name, [(0.0, 0)] * len(pairs))
            self._sums[name] = [(a + s, b + n) for (a, b), (s, n) in zip(before, pairs, strict=True)]

    def table(self) -> pd.DataFrame:
        if self.split:
            self.notes.append(f"{self.split} more windows: texts over the context were split")
        means = {
            name: [s / n if n else float("nan") for s, n in pairs]
            for name, pairs in self._sums.items()
            if len(pairs) == len(self.layers) and name != "saturation"
        }
        return pd.DataFrame({"layer": list(self.layers), "tokens": self.tokens, **means})

    @property
    def saturation(self) -> float | None:
        found = self._sums.get("saturation")
        return found[0][0] / found[0][1] if found else None


def _try(lm: LayeredModel, layers: tuple[int, ...], settings: CorpusSettings) -> None:
    """What the readout would refuse is refused before anything is written."""
    check_stats(settings.stats)
    as_lens(settings.lens, lm)
    if settings.shard_tokens < 1 or settings.batch_tokens < 1:
        raise InputError(
            f"shard_tokens {settings.shard_tokens} and batch_tokens {settings.batch_tokens} must both be at least 1"
        )
    none = {layer: torch.zeros(0, lm.d_model, dtype=lm.dtype, device=lm.device) for layer in layers}
    readout(
        lm, none, lens=settings.lens, stats=settings.stats, targets=torch.zeros(0, dtype=torch.long),
        top_k=settings.top_k, precision=settings.precision,
    )  # fmt: skip
    if settings.long == "split" and lm.context is not None:
        plan_windows([lm.context + 1], lm.context, settings.overlap, long="split")


def _identity(
    lm: LayeredModel, source: TextFile, survey: Survey, layers: tuple[int, ...], settings: CorpusSettings
) -> dict[str, Any]:
    """What decides the bytes of the shards."""
    product = product_dtype(settings.precision, lm.weight.device, lm.weight.dtype)
    found: dict[str, Any] = {
        "task": "read",
        "model_hash": lm.fingerprint,
        "text_hash": survey.sha256,
        "field": source.field if source.kind != "plain" else None,
        "split": source.split if source.kind == "plain" else None,
        "layers": list(layers),
        "stats": list(settings.stats),
        "lens": as_lens(settings.lens).identity,
        "top_k": settings.top_k if "top_k" in settings.stats else None,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "product": str(product).removeprefix("torch."),
        "limit": settings.limit,
        "shard_tokens": settings.shard_tokens,
        "batch_tokens": settings.batch_tokens,
    }
    if settings.long == "split":
        # A reading that refused long texts met none so far: it may go on splitting them, so refusing is no identity.
        found["overlap"] = settings.overlap
    return found


def _refuse_other_task(folder: Path) -> None:
    manifest = read_json(folder / "manifest.json")
    earlier = manifest.get("identity") if isinstance(manifest, dict) else None
    if isinstance(earlier, dict) and earlier.get("task") != "read":
        raise RunError(f"'{folder}' belongs to another run, not to exitlens read: choose another folder with --out")

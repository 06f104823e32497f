"""Any amount of text read layer by layer into Parquet shards, in memory that does not grow with the text.

    DIR/manifest.json                who made this: model and text with their hashes, settings, versions, machine
    DIR/shards/00007.parquet         a row a text, position and layer (:mod:`.corpus_table`)
    DIR/seals/00007.seal.json        its hash, where it begins and ends, its sums; written last
    DIR/tables/by_layer.parquet      means over all texts, a row a layer

A shard is a stretch of ``shard_tokens`` tokens, fixed by the text and the settings alone, and a sealed unit
(:mod:`exitlens.storage.sealed`) whose key hashes the settings and where the stretch begins. A reading that was killed
at any moment therefore ends with the same bytes, and computes nothing twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from exitlens.compute.hardware import product_dtype
from exitlens.data.texts import Survey, TextFile
from exitlens.errors import InputError, RunError
from exitlens.lenses.lens import Lens, as_lens, lens_name
from exitlens.lenses.read_hidden import readout
from exitlens.lenses.read_texts import BATCH_TOKENS, read_windows
from exitlens.models.forward import Window, plan_windows
from exitlens.models.protocol import LayeredModel
from exitlens.report.text import continued
from exitlens.runs.directory import RunDirectory, now
from exitlens.runs.engine import Clock, Engine
from exitlens.storage.atomic import canonical, key_of, read_json, write_table
from exitlens.storage.mirror import local_folder, named
from exitlens.storage.sealed import Seal, Sealed
from exitlens.studies.corpus.columns import check_stats
from exitlens.studies.corpus.table import ShardTable
from exitlens.studies.layers.stage import check_layers
from exitlens.version import __version__

__all__ = ["SHARD_TOKENS", "CorpusRead", "CorpusSettings", "read_corpus"]

SHARD_TOKENS = 2048
VERSION = 2


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


def read_corpus(
    engine: Engine,
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
    lm = engine.lm
    survey = survey if survey is not None else source.survey(settings.limit)
    layers = tuple(check_layers(lm, settings.layers))
    _try(lm, layers, settings)
    _refuse_other_task(out)
    identity = _identity(lm, source, survey, layers, settings)
    with RunDirectory.open(out, identity, command=command, fresh=fresh) as directory:
        directory.note(
            model={"name": lm.name, "fingerprint": lm.fingerprint, "dtype": identity["dtype"],
                   "device": str(lm.device), "n_layers": lm.n_layers, "d_model": lm.d_model},
            data={"source": named(source.path), "sha256": survey.sha256, "texts": survey.texts, "empty": survey.empty,
                  "characters": survey.characters},
            settings={**identity, "lens_name": lens_name(settings.lens)},
        )  # fmt: skip
        return _fill(engine, source, survey, directory, identity, layers, settings, tick)


class _Facts(BaseModel):
    """What the seal of a shard says about it: places are (text, token), ``sums`` are by statistic and layer."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    end: tuple[int, int]
    last: bool
    tokens: int
    characters: int
    split: int
    overlap: int | None  # of the windows of split texts
    sums: dict[str, list[tuple[float, int]]]
    notes: list[str]
    version: str = "unknown"  # of exitlens, that made it; earlier ones did not say


@dataclass(frozen=True, slots=True)
class _Job:
    """A shard that is not there: its windows, and the tokens of the texts that they belong to."""

    number: int
    key: str
    windows: list[Window]
    ids: dict[int, list[int]]
    end: tuple[int, int]
    last: bool
    characters: int

    @property
    def size(self) -> int:
        return self.characters

    @property
    def named(self) -> str:
        return f"shard {self.number}, texts {self.windows[0].text} to {self.windows[-1].text}"


@dataclass(frozen=True, slots=True)
class _ReadShard:
    """Writes a shard; what its seal says."""

    layers: tuple[int, ...]
    settings: CorpusSettings
    shards: Sealed

    def run(self, lm: LayeredModel, job: _Job, /) -> _Facts:
        how, notes = self.settings, list[str]()
        table = ShardTable(lm, job.ids, job.windows, self.layers)
        for batch, found in read_windows(
            lm, job.ids, job.windows, self.layers, lens=how.lens, stats=how.stats, top_k=how.top_k,
            precision=how.precision, batch_tokens=how.batch_tokens,
        ):  # fmt: skip
            table.put(batch, found)
            notes += [note for note in found.notes if note not in notes]
        split = sum(window.keep > 0 for window in job.windows)
        facts = _Facts(
            end=job.end, last=job.last, tokens=table.tokens, characters=job.characters, split=split,
            overlap=how.overlap if split else None, sums=table.sums(), notes=notes,
            version=__version__,
        )  # fmt: skip
        files = {"parquet": partial(write_table, table=table.arrow())}
        self.shards.write(job.number, job.key, files, facts.model_dump(mode="json"))
        return facts


def _fill(
    engine: Engine,
    source: TextFile,
    survey: Survey,
    directory: RunDirectory,
    identity: Mapping[str, Any],
    layers: tuple[int, ...],
    settings: CorpusSettings,
    tick: Callable[[int], None],
) -> CorpusRead:
    directory.stage_state("read", "running")
    shards = Sealed(directory.path / "shards", seals=directory.path / "seals")
    # A reading that refuses long texts may go on splitting them: the overlap is held against split shards alone.
    base = {name: value for name, value in identity.items() if name != "overlap"}
    keys: list[str] = []
    whole = shards.finished()
    totals = _Totals(layers)
    clock = Clock("reading, in characters", survey.characters, engine.report)
    begun = 0  # shards before the first that was missing: they are in the totals

    def missing() -> Iterator[_Job]:
        """The shards that are not there, in order; each is taken from the text only when it is asked for."""
        nonlocal begun
        stream: _Stream | None = None
        place, last = (0, 0), False
        while not last:
            number = len(keys)
            keys.append(key_of(VERSION, base, place))
            facts = _facts(whole(number, keys[-1]), len(layers), settings)
            if facts is not None:
                if stream is None:
                    totals.add(facts)
                    begun += 1
                tick(facts.characters)
                clock.skipped(facts.characters)
                place, last = facts.end, facts.last
                continue
            if stream is None or stream.place != place:
                stream = _Stream(engine.lm, source, settings, place)
            yield stream.job(number, keys[-1])
            place, last = stream.place, stream.ended

    fresh = 0
    for job, made in engine.stream(_ReadShard(layers, settings, shards), missing()):
        fresh += made.tokens
        tick(job.characters)
        clock.worked(job.characters)
    # Sums are added in the order of the text, whoever made which and when.
    shards.catch_up(files=False)
    for number, key in enumerate(keys[begun:], begun):
        facts = _facts(shards.claimed(number, key), len(layers), settings)
        if facts is None:
            raise RunError(f"'{named(directory.path)}' was changed while it was read: run the same command again")
        totals.add(facts)
    by_layer = totals.table()
    directory.write_table("by_layer", by_layer)
    made_by = dict(sorted(totals.made_by.items()))
    directory.stage_state("read", "done", shards=len(keys), tokens=totals.tokens, made_by=made_by)
    if note := continued("read", made_by, "shards"):
        totals.notes.append(note)
    directory.note(finished=now())
    return CorpusRead(
        directory.path, survey, totals.tokens, fresh, len(keys), by_layer, totals.saturation, tuple(totals.notes)
    )


def _facts(seal: Seal | None, layers: int, settings: CorpusSettings) -> _Facts | None:
    """What a seal says, None where there is none or it makes no sense."""
    if seal is None:
        return None
    try:
        facts = _Facts.model_validate_json(canonical(seal.facts))
    except ValidationError:
        return None
    fits = all(len(pairs) == (1 if name == "saturation" else layers) for name, pairs in facts.sums.items())
    return facts if fits and (not facts.split or facts.overlap == settings.overlap) else None


class _Stream:
    """Windows of the texts from a place on, with the tokens of the texts that they belong to."""

    def __init__(self, lm: LayeredModel, source: TextFile, settings: CorpusSettings, place: tuple[int, int]) -> None:
        self.lm, self.source, self.settings, self.place = lm, source, settings, place
        self.ids: dict[int, list[int]] = {}
        self._characters: dict[int, int] = {}
        self._windows = self._all(place)
        self._next = next(self._windows, None)

    def job(self, number: int, key: str) -> _Job:
        """The next shard. Raises InputError for a file without tokens."""
        windows: list[Window] = []
        tokens = 0
        while self._next is not None and tokens < self.settings.shard_tokens:
            windows.append(self._next)
            tokens += self._next.stop - self._next.keep
            self._next = next(self._windows, None)
        if not windows:
            raise InputError(
                f"'{self.source.path}' gives no tokens with the tokenizer of {self.lm.name}: give other text"
            )
        self.place = windows[-1].text, windows[-1].stop
        ids = {window.text: self.ids[window.text] for window in windows}
        characters = sum(self._share(window) for window in windows)
        for text in [text for text in self.ids if text < self.place[0]]:
            del self.ids[text], self._characters[text]  # no window needs them any more
        return _Job(number, key, windows, ids, self.place, self.ended, characters)

    @property
    def ended(self) -> bool:
        """No window is left."""
        return self._next is None

    def _share(self, window: Window) -> int:
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


class _Totals:
    """Sums of all shards so far."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self.tokens = self.split = 0
        self.notes: list[str] = []
        self.made_by: Counter[str] = Counter()  # shards by version
        self._sums: dict[str, list[tuple[float, int]]] = {}

    def add(self, facts: _Facts) -> None:
        self.tokens += facts.tokens
        self.split += facts.split
        self.made_by[facts.version] += 1
        self.notes += [note for note in facts.notes if note not in self.notes]
        for name, pairs in facts.sums.items():
            before = self._sums.get(name, [(0.0, 0)] * len(pairs))
            self._sums[name] = [(a + s, b + n) for (a, b), (s, n) in zip(before, pairs, strict=True)]

    def table(self) -> pd.DataFrame:
        if self.split:
            self.notes.append(f"{self.split} more windows: texts over the context were split")
        means = {
            name: [s / n if n else float("nan") for s, n in pairs]
            for name, pairs in self._sums.items()
            if name != "saturation"
        }
        return pd.DataFrame({"layer": list(self.layers), "tokens": self.tokens, **means})

    @property
    def saturation(self) -> float | None:
        found = self._sums.get("saturation")
        return found[0][0] / found[0][1] if found and found[0][1] else None


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


def _refuse_other_task(out: str | Path) -> None:
    manifest = read_json(local_folder(out, only=("manifest.json",)) / "manifest.json")
    earlier = manifest.get("identity") if isinstance(manifest, dict) else None
    if isinstance(earlier, dict) and earlier.get("task") != "read":
        raise RunError(f"'{named(out)}' belongs to another run, not to exitlens read: choose another folder with --out")

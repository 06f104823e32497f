"""A tuned lens from a file of text, or from text that the model writes itself: pieces of text in, a saved lens out."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from exitlens.data.texts import TextFile
from exitlens.errors import DataError, InputError
from exitlens.lenses import TrainingReport, TunedLens, train_tuned_lens
from exitlens.models.forward import cut_tokens
from exitlens.models.protocol import LayeredModel
from exitlens.storage.atomic import check_writable
from exitlens.studies.exits.files import own_texts

__all__ = ["PIECE", "pieces_of_file", "pieces_of_own", "train_and_save"]

PIECE = 256  # tokens: long texts are cut, so that there are many to train on and to keep apart
LEAST = 8  # pieces, of two tokens or more


def pieces_of_file(
    lm: LayeredModel, source: TextFile, tokens: int, tick: Callable[[int], None] = lambda _tokens: None
) -> tuple[list[list[int]], str]:
    """Pieces of the first ``tokens`` tokens of a file, and what the lens says of them.

    Raises DataError for a file that cannot be read or holds too little.
    """
    found = _pieces(lm, (lm.encode(text) for _, text in source.texts()), tokens, tick)
    if len(found) < LEAST:
        raise DataError(
            f"'{source.path}' gives {len(found)} pieces of two tokens or more, a tuned lens needs {LEAST}: give more "
            "text, or --self-text 200"
        )
    return found, f"{source.path.name} sha256:{source.survey().sha256[:16]}"


def pieces_of_own(
    lm: LayeredModel, count: int, tokens: int, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> tuple[list[list[int]], str]:
    """Pieces of ``count`` texts that the model writes itself (temperature 1). Raises InputError for too few."""
    written = own_texts(lm, count, seed=seed, progress=progress)
    found = _pieces(lm, written, tokens, lambda _tokens: None)
    if len(found) < LEAST:
        raise InputError(f"{count} texts of the model's own give {len(found)} pieces, {LEAST} are needed: ask for more")
    return found, f"{count} texts by the model itself, seed {seed}"


def train_and_save(
    lm: LayeredModel,
    pieces: Sequence[Sequence[int]],
    path: Path,
    *,
    name: str,
    source: str,
    steps: int = 300,
    minutes: float = 10.0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[TunedLens, TrainingReport]:
    """Train, add where it comes from, write the file. Raises RunError before the work when it cannot be written."""
    from exitlens.version import __version__

    check_writable(path)
    lens, report = train_tuned_lens(
        lm, pieces, name=name, steps=steps, time_limit=60.0 * minutes, source=source, seed=seed, progress=progress
    )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    notes = {**lens.provenance, "exitlens": __version__, "made": now}
    lens = dataclasses.replace(lens, provenance=notes)
    lens.save(path)
    return lens, report


def _pieces(
    lm: LayeredModel, texts: Iterable[Sequence[int]], tokens: int, tick: Callable[[int], None]
) -> list[list[int]]:
    length = min(PIECE, lm.context or PIECE)
    found: list[list[int]] = []
    total = 0
    for text in texts:
        for piece in cut_tokens(text, length, least=2):
            found.append(piece)
            total += len(piece)
            tick(len(piece))
            if total >= tokens:
                return found
    return found

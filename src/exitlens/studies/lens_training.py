"""A lens from a file of text, or from text that the model writes itself: pieces of text in, a saved lens out."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from exitlens.data.texts import TextFile
from exitlens.errors import DataError, InputError
from exitlens.lenses import (
    FitReport,
    JacobianLens,
    TrainingReport,
    TunedLens,
    fit_jacobian_lens,
    train_tuned_lens,
)
from exitlens.lenses.jacobian.fit import Elsewhere, Stream
from exitlens.models.forward import cut_tokens
from exitlens.models.protocol import LayeredModel
from exitlens.runs.status import BESIDE
from exitlens.storage.atomic import check_writable, write_json
from exitlens.studies.exits.files import own_texts
from exitlens.version import __version__

__all__ = ["PIECE", "Pieces", "fit_and_save", "pieces_of_file", "pieces_of_own", "train_and_save", "units_folder"]

PIECE = 256  # tokens: long texts are cut, so that there are many to train on and to keep apart
LEAST = 8  # pieces, of two tokens or more
_L = TypeVar("_L", TunedLens, JacobianLens)
HELD_OUT = 8  # pieces that a Jacobian lens's curve is measured on


@dataclass(frozen=True)
class Pieces:
    """Stretches of texts, in order: ``ids``, the text that each is of, where they come from, texts that gave none."""

    ids: list[list[int]]
    text: list[int]
    source: str
    short: int = 0

    @property
    def held_out(self) -> int:
        """The first pieces, :data:`HELD_OUT` or an eighth of all, up to the end of a text: none is in both parts."""
        count = min(HELD_OUT, len(self.ids) // 8)
        while 0 < count < len(self.ids) and self.text[count] == self.text[count - 1]:
            count += 1
        # One long text cannot be parted at an end of a text.
        return count if count < len(self.ids) else min(HELD_OUT, len(self.ids) // 8)


def pieces_of_file(
    lm: LayeredModel,
    source: TextFile,
    tokens: int,
    *,
    length: int = PIECE,
    least: int = 2,
    enough: int = LEAST,
) -> Pieces:
    """Pieces of ``least`` to ``length`` tokens of the first ``tokens`` tokens of a file.

    Raises DataError for a file that cannot be read or gives fewer than ``enough``.
    """
    name = f"{source.path.name} sha256:{source.survey().sha256[:16]}"
    found = _pieces(lm, (lm.encode(text) for _, text in source.texts()), tokens, length, least, name)
    if len(found.ids) < enough:
        raise DataError(
            f"'{source.path}' gives {len(found.ids)} pieces of {least} tokens or more{_too_short(found)}, the lens "
            f"needs {enough}: give more text, or --self-text 200"
        )
    return found


def pieces_of_own(
    lm: LayeredModel,
    count: int,
    tokens: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    length: int = PIECE,
    least: int = 2,
    enough: int = LEAST,
) -> Pieces:
    """Pieces of ``count`` texts that the model writes itself (temperature 1). Raises InputError for too few."""
    written = own_texts(lm, count, seed=seed, progress=progress)
    name = f"{count} texts by the model itself, seed {seed}"
    found = _pieces(lm, written, tokens, length, least, name)
    if len(found.ids) < enough:
        raise InputError(
            f"{count} texts of the model's own give {len(found.ids)} pieces of {least} tokens or more, {enough} are "
            "needed: ask for more"
        )
    return found


def train_and_save(
    lm: LayeredModel,
    pieces: Pieces,
    path: Path,
    *,
    name: str,
    steps: int = 300,
    minutes: float = 10.0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[TunedLens, TrainingReport]:
    """Train, add where it comes from, write the file. Raises RunError before the work when it cannot be written."""
    check_writable(path)
    lens, report = train_tuned_lens(
        lm, pieces.ids, name=name, steps=steps, time_limit=60.0 * minutes, source=pieces.source, seed=seed,
        progress=progress,
    )  # fmt: skip
    return _saved(lens, path), report


def fit_and_save(
    lm: LayeredModel,
    pieces: Pieces,
    path: Path,
    *,
    name: str,
    minutes: float | None = None,
    say: Callable[[str], None] = lambda _line: None,
    stream: Stream | None = None,
    **options: Any,
) -> tuple[JacobianLens, FitReport]:
    """Fit a Jacobian lens and write the file; ``options`` are those of :func:`.fit_jacobian_lens`.

    The sum so far lies beside it (``NAME.part``), so that the same call goes on where it was stopped; it is removed
    once every text is in. ``stream``: of an engine whose workers sum the texts, in :func:`units_folder`. Raises
    RunError before the work when the file cannot be written.
    """
    check_writable(path)
    part = path.with_name(f"{path.name}.part")
    if pieces.short:
        say(f"{pieces.short} of {pieces.short + len(set(pieces.text))} texts are too short and left out")
    units = units_folder(path)
    elsewhere = None if stream is None else Elsewhere(stream, units)
    if elsewhere is not None:
        write_json(units / "fit.json", {"lens": path.name, "model": lm.name})
    lens, report = fit_jacobian_lens(
        lm, pieces.ids, name=name, held_out=pieces.held_out, keep=part, source=pieces.source, say=say,
        elsewhere=elsewhere,
        time_limit=None if minutes is None else 60.0 * minutes, **options,
    )  # fmt: skip
    lens = _saved(lens, path)
    if report.texts + report.held_out == len(pieces.ids):
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        clear_units(path)
    else:
        say(f"the same command goes on with the other {len(pieces.ids) - report.held_out - report.texts} texts")
    return lens, report


def units_folder(path: Path) -> Path:
    """What lies beside a lens until it is whole: how far it is, workers' sums of texts and logs, and ``fit.json``.

    By that file workers know that they see the folder.
    """
    return path.with_name(f"{path.name}{BESIDE}").expanduser().absolute()


def clear_units(path: Path) -> None:
    """Remove :func:`units_folder`; harmless where there is none."""
    shutil.rmtree(units_folder(path), ignore_errors=True)


def _saved(lens: _L, path: Path) -> _L:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lens = dataclasses.replace(lens, provenance={**lens.provenance, "exitlens": __version__, "made": now})
    lens.save(path)
    return lens


def _pieces(
    lm: LayeredModel,
    texts: Iterable[Sequence[int]],
    tokens: int,
    length: int,
    least: int,
    source: str,
) -> Pieces:
    length = min(length, lm.context or length)
    ids: list[list[int]] = []
    of: list[int] = []
    total = short = 0
    for number, text in enumerate(texts):
        before = len(ids)
        for piece in cut_tokens(text, length, least):
            ids.append(piece)
            of.append(number)
            total += len(piece)
            if total >= tokens:
                return Pieces(ids, of, source, short)
        short += len(ids) == before
    return Pieces(ids, of, source, short)


def _too_short(pieces: Pieces) -> str:
    return f" ({pieces.short} texts are too short)" if pieces.short else ""

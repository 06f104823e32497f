"""Where a run keeps what it made: ``manifest.json``, finished units of work, tables, hidden states, figures, report.

    DIR/manifest.json                     who made this, from what, and how far each stage got
    DIR/work/<stage>/<index>-<key>.*      one finished batch: its tables as Parquet and, last, a seal with their hashes
    DIR/shards, DIR/seals                 what `exitlens read` made of a stretch of text
    DIR/tables/<name>.parquet             the results, assembled from the units in a fixed order
    DIR/states/, DIR/figures/, DIR/report.html
    DIR/status.json, DIR/logs/            how far it is (:mod:`exitlens.runs.status`); what workers of a cluster said

Batches are sealed units (:mod:`exitlens.storage.sealed`); their key hashes stage, version, settings and records, so
units of other settings are ignored. Nothing is ever written through a symbolic link inside the directory.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from exitlens.errors import RunError
from exitlens.parsing import cut
from exitlens.storage.atomic import canonical, guarded, read_json, sweep, write_json, write_parquet
from exitlens.storage.joined_tables import write_joined
from exitlens.storage.lock import DirectoryLock
from exitlens.storage.mirror import delete, is_mirrored, local_folder, named
from exitlens.storage.sealed import Sealed

__all__ = ["COMPARED", "FORMAT", "RunDirectory", "versions"]

FORMAT = 2
COMPARED = "compares"  # in an identity: the runs, where the folder holds a comparison
_OURS = (
    "work", "shards", "seals", "tables", "states", "figures", "logs", "report.html", "probe.safetensors",
    "status.json", "manifest.json",
)  # fmt: skip
_READ = ("tables/", "figures/", "report.html", "manifest.json", "status.json", "probe.safetensors")  # of an address
_PACKAGES = ("exitlens", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pyarrow")


class RunDirectory:
    """A run directory held by this process. Use as a context manager; reading a finished one needs no lock."""

    def __init__(self, path: Path, manifest: dict[str, Any], lock: DirectoryLock | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock

    @classmethod
    def open(
        cls, path: str | Path, identity: Mapping[str, Any], *, command: str = "", fresh: bool = False
    ) -> RunDirectory:
        """Create the directory, or go on with the run it holds when that run has the same ``identity``.

        ``identity``: the settings that decide the results. With ``fresh`` an earlier run there is removed first.
        Raises RunError when the directory holds another run or other files, is in use, or cannot be written.
        """
        folder = local_folder(path, write=True).absolute()
        guarded(lambda: folder.mkdir(parents=True, exist_ok=True), folder)
        if not is_mirrored(folder):
            _earlier(folder)  # refused before a lock file is left among somebody's own files
        lock = DirectoryLock(folder)
        lock.acquire()
        try:
            _earlier(folder)  # what an address holds is here once its lease is held
            if fresh:
                _clear(folder)
            _refuse_links(folder)
            sweep(folder, below=True, alone=True)
            manifest = None if fresh else _earlier(folder)
            if manifest is None or not _begun(folder):
                manifest = _new_manifest(identity, command)
            else:
                _refuse_other(folder, manifest, identity)
                manifest["command"] = command
                manifest["identity"] = {**manifest["identity"], **identity}
            directory = cls(folder, manifest, lock)
            directory.save()
        except BaseException:
            lock.release()
            raise
        return directory

    @classmethod
    def read(cls, path: str | Path) -> RunDirectory:
        """A finished or unfinished run, for reading only. Raises RunError when there is none."""
        folder = local_folder(path, only=_READ).absolute()
        manifest = _manifest_of(folder)
        if manifest is None:
            raise RunError(
                f"'{named(path)}' holds no run (no readable manifest.json): make one with exitlens run --out"
            )
        return cls(folder, manifest)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # the manifest

    def save(self) -> None:
        """Write ``manifest.json`` as it now stands."""
        write_json(self.path / "manifest.json", self.manifest)

    def note(self, **fields: Any) -> None:
        """Set fields of the manifest and write it."""
        self.manifest.update(fields)
        self.save()

    def stage_state(self, name: str, state: str, **fields: Any) -> None:
        """Record how far a stage got: ``running`` or ``done``, its seconds of work and number of batches."""
        stages = self.manifest.setdefault("stages", {})
        stages[name] = {**stages.get(name, {}), "state": state, **fields}
        self.save()

    # finished work and tables

    def units(self, stage: str) -> Sealed:
        """The finished batches of a stage."""
        return Sealed(self.path / "work" / stage, keyed=True)

    def write_table(self, name: str, frame: pd.DataFrame, order: Sequence[str] = ()) -> None:
        """Write a result table, its rows in the order of the columns ``order`` (stable; none: as they are)."""
        keys = [column for column in order if column in frame.columns]
        if keys and len(frame):
            frame = frame.sort_values(keys, kind="stable", ignore_index=True)
        write_parquet(self.path / "tables" / f"{name}.parquet", frame)

    def assemble(self, name: str, files: Sequence[Path]) -> None:
        """Write a result table from Parquet files of units, one after the other, in flat memory."""
        write_joined(self.path / "tables" / f"{name}.parquet", files)

    def table(self, name: str) -> pd.DataFrame | None:
        """A result table, or None when this run has not made it (yet), or it is damaged: its study makes it again."""
        try:
            return pd.read_parquet(self.path / "tables" / f"{name}.parquet")
        except (OSError, ValueError, pa.ArrowException):
            return None

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every result table that is there and whole, by name."""
        names = sorted(file.stem for file in (self.path / "tables").glob("*.parquet"))
        found = {name: self.table(name) for name in names}
        return {name: table for name, table in found.items() if table is not None}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")


def _new_manifest(identity: Mapping[str, Any], command: str) -> dict[str, Any]:
    from exitlens.compute.hardware import describe

    return {
        "version": FORMAT,
        "command": command,
        "config": {},
        "identity": dict(identity),
        "versions": versions(),
        "hardware": describe(),
        "stages": {},
        "started": now(),
        "finished": None,
    }


class _Manifest(BaseModel):
    """What a manifest may say; fields that are not named here are a study's own."""

    model_config = ConfigDict(strict=True, extra="allow")

    version: int
    identity: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    command: str = ""
    config: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    versions: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    started: str = ""
    finished: str | None = None
    model: dict[str, Any] = {}
    data: list[dict[str, Any]] | dict[str, Any] = []
    notes: list[str] = []
    made: list[str] = []
    exit_times: list[dict[str, Any]] = []
    lens_costs: list[dict[str, Any]] = []
    tokens_per_second: dict[str, float | None] = {}
    probe_verdict: str = ""
    probe_notes: list[str] = []


def _manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest; None where there is none, and where a value is of another kind than a run writes."""
    value = read_json(folder / "manifest.json")
    try:
        _Manifest.model_validate(value)
    except ValidationError:
        return None
    return value if isinstance(value, dict) else None


def _earlier(folder: Path) -> dict[str, Any] | None:
    """The manifest of the run that the folder holds, None for an empty one. Raises RunError for other files."""
    found = _manifest_of(folder)
    # Where the manifest is damaged or gone but there are units, they are ours: they are found again by their keys.
    if found is None and not _sealed(folder):
        names = guarded(lambda: sorted(p.name for p in folder.iterdir()), folder)
        others = [name for name in names if name not in (".lock", ".marks.json") and not name.endswith(".tmp")]
        if others:
            raise RunError(
                f"'{named(folder)}' is not a run directory and is not empty (it holds '{others[0]}'): choose a new or "
                "empty folder with --out"
            )
    return found


def _refuse_links(folder: Path) -> None:
    """Raise RunError for a folder of ours that is a link: what is written there would land somewhere else."""
    for name in _OURS:
        for place, folders, _ in os.walk(folder / name):
            for link in (Path(place), *(Path(place) / inner for inner in folders)):
                if link.is_symlink():
                    raise RunError(
                        f"'{link}' is a symbolic link, which a run never writes through: remove it (hidden states can "
                        "be kept elsewhere with --states), or choose another folder with --out"
                    )


def _sealed(folder: Path) -> bool:
    """Whether a unit of work was ever finished here."""
    places = ("work/*/*.seal.json", "seals/*.seal.json", "states/*/shards/*.seal.json")
    return any(any(folder.glob(place)) for place in places)


def _begun(folder: Path) -> bool:
    """Whether there is anything that another run could spoil: a run whose model could not be loaded left nothing."""
    return _sealed(folder) or any((folder / "tables").glob("*.parquet"))


def _refuse_other(folder: Path, earlier: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if earlier.get("version") != FORMAT:
        raise RunError(
            f"'{named(folder)}' holds a run of format {earlier.get('version')!r}, this version writes {FORMAT}: choose "
            "another folder with --out, or start over with --fresh"
        )
    before = earlier.get("identity", {})
    if COMPARED in before and COMPARED not in identity:
        raise RunError(f"'{named(folder)}' holds a comparison and no run: choose another folder with --out")
    # A setting that only one of them has (the data of a study the other did not ask for) makes no difference.
    for name in sorted(set(before) & set(identity)):
        if canonical(before.get(name)) != canonical(identity.get(name)):
            if name == COMPARED:
                raise RunError(
                    f"'{named(folder)}' holds a comparison of {_shown(before[name])}, not of {_shown(identity[name])}: "
                    "choose another folder with --out, or remove this one"
                )
            verb = "are" if isinstance(identity[name], list | tuple) else "is"
            earlier_one, this_one = _shown(before[name]), _shown(identity[name])
            raise RunError(
                f"'{named(folder)}' belongs to another run: its {name} {verb} {earlier_one}, this one's {verb} "
                f"{this_one}; choose another folder with --out, or start over with --fresh"
            )


def _shown(value: Any) -> str:
    if value in (None, [], ()):
        return "not set"
    return cut(", ".join(map(repr, value)) if isinstance(value, list | tuple) else repr(value))


def _clear(folder: Path) -> None:
    """Remove what a run makes, and nothing else; the manifest goes last, so that a kill in between leaves it ours."""
    for name in _OURS:
        target = folder / name
        guarded(partial(delete, target), target)

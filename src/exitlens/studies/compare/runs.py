"""Which runs are compared: read, checked, and named so that a table can tell them apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from exitlens.errors import InputError, RunError
from exitlens.parsing import cut
from exitlens.report.frames import Results
from exitlens.report.text import visible
from exitlens.report.words import join
from exitlens.runs.directory import COMPARED, FORMAT, RunDirectory
from exitlens.studies.registry import STUDIES
from exitlens.studies.tables import TableSpec

__all__ = ["Run", "read_runs"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is compared: its name in tables and figures, folder, results, studies, and what must be said."""

    name: str
    path: Path
    results: Results
    studies: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def depth(self) -> int | None:
        """Blocks of its model."""
        model = self.results.manifest.get("model")
        found = model.get("n_layers") if isinstance(model, Mapping) else None
        return found if isinstance(found, int) and found > 0 else None


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs in these folders, in their order.

    Args:
        paths: Two or more run directories.

    Returns:
        The runs. A run that is not finished comes with what is finished, and a note.

    Raises:
        InputError: Fewer than two, or one of them twice.
        RunError: A folder that holds no run, a run of another format, a damaged table, no study that all of them have.
    """
    if len(paths) < 2:
        given = f"'{cut(os.fspath(paths[0]))}' is one run" if paths else "no run is given"
        raise InputError(f"{given}: name two or more run directories to compare")
    places = [Path(path).expanduser().resolve() for path in paths]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise InputError(f"'{cut(os.fspath(paths[i]))}' is given twice: name another run to compare it with")
    specs = _specs()
    runs = [_read(path, name, specs) for path, name in zip(paths, _names(places), strict=True)]
    _require_common(runs)
    return runs


def _names(places: Sequence[Path]) -> list[str]:
    """The folders' own names; where two are alike, with as many folders above them as tell them apart."""
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _specs() -> dict[str, TableSpec]:
    return {spec.name: spec for study in STUDIES.values() for spec in study.tables}


def _read(path: str | os.PathLike[str], name: str, specs: Mapping[str, TableSpec]) -> Run:
    directory = RunDirectory.read(os.fspath(path))
    manifest = directory.manifest
    if COMPARED in manifest["identity"]:
        raise RunError(f"'{cut(os.fspath(path))}' holds a comparison and no run: name the runs that it compares")
    if manifest.get("version") != FORMAT:
        raise RunError(
            f"'{cut(os.fspath(path))}' holds a run of format {manifest.get('version')!r}, this version reads {FORMAT}: "
            "make the run again with this version"
        )
    tables: dict[str, pd.DataFrame] = {}
    notes = list(_unfinished(manifest))
    other: list[str] = []
    for file in sorted((directory.path / "tables").glob("*.parquet")):
        table = directory.table(file.stem)
        if table is None:
            raise RunError(
                f"tables/{file.name} of '{cut(os.fspath(path))}' is damaged: remove it and run the same command again, "
                "finished work is kept"
            )
        spec = specs.get(file.stem)
        if spec is None:
            continue  # of a study that is not registered here, which could not tell what it means
        if not spec.fits(table):
            other.append(file.stem)
            continue
        tables[file.stem] = table
    if other:
        made = visible((manifest.get("versions") or {}).get("exitlens", "another version"))
        told = f"table {other[0]} was" if len(other) == 1 else f"tables {join(other)} were"
        notes.append(
            f"{told} written by exitlens {made} with other columns than this version's and left out; make the run "
            f"again with this version to compare {'it' if len(other) == 1 else 'them'}"
        )
    results = Results(tables, manifest)
    studies = tuple(n for n, study in STUDIES.items() if any(table in results for table in study.chapter.own))
    return Run(name, directory.path, results, studies, tuple(notes))


def _unfinished(manifest: Mapping[str, Any]) -> list[str]:
    """What is not finished, in a line."""
    stages = manifest.get("stages") or {}
    open_stages = [name for name, stage in stages.items() if stage.get("state") != "done"]
    if manifest.get("finished") is not None and not open_stages:
        return []
    what = f" (stage {', '.join(map(visible, open_stages))})" if open_stages else ""
    return [f"the run is not finished{what}: only its finished tables are compared"]


def _require_common(runs: Sequence[Run]) -> None:
    common = set(runs[0].studies).intersection(*(run.studies for run in runs[1:]))
    if common:
        return
    have = "; ".join(f"{run.name} has {', '.join(run.studies) or 'no finished study'}" for run in runs)
    reasons = [note for run in runs for note in run.notes]
    more = f" ({cut(reasons[0], 200)})" if reasons else ""
    raise RunError(f"the runs have no study in common: {cut(have, 400)}{more}; run the same studies in each (--only)")

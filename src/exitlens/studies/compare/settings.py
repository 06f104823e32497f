"""What the runs were, and in what their settings differ, read from their manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from exitlens.report.text import visible
from exitlens.storage.atomic import canonical
from exitlens.studies.compare.columns import COMPARE_TABLES
from exitlens.studies.compare.runs import Run

__all__ = ["run_table", "setting_table"]

COLUMNS = {spec.name: [field.name for field in spec.fields] for spec in COMPARE_TABLES}
# Where results appear, not what they are.
_LEFT_OUT = frozenset({"out", "figures", "states", "only"})


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Table ``compare_runs``."""
    rows = [
        {
            "run": run.name,
            "path": str(run.path),
            "model": run.results.model,
            "layers": run.depth,
            "studies": ", ".join(run.studies),
            "command": visible(run.results.manifest.get("command")),
            "started": run.results.manifest.get("started"),
            "finished": run.results.manifest.get("finished"),
            "notes": "; ".join(run.notes),
        }
        for run in runs
    ]
    return pd.DataFrame(rows, columns=COLUMNS["compare_runs"]).astype({"layers": "Int64"})


def setting_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Table ``compare_settings``: every setting whose value is not the same in all runs."""
    found = [dict(_settings(run.results.manifest)) for run in runs]
    rows: list[dict[str, Any]] = []
    for group, name in dict.fromkeys(key for each in found for key in each):
        values = [each.get((group, name)) for each in found]
        if len({canonical(value) for value in values}) > 1:
            for run, value in zip(runs, values, strict=True):
                rows.append({"group": group, "setting": name, "run": run.name, "value": _text(value)})
    return pd.DataFrame(rows, columns=COLUMNS["compare_settings"])


def _settings(manifest: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Any]]:
    for name, value in _mapping(manifest.get("config")).items():
        if name not in _LEFT_OUT:
            yield ("settings", str(name)), value
    for name, value in _mapping(manifest.get("model")).items():
        if name != "parity":  # a measured rounding error
            yield ("model", str(name)), value
    data = manifest.get("data")
    read = [_mapping(item) for item in (data if isinstance(data, list) else [])]
    for kind in dict.fromkeys(str(item.get("kind")) for item in read):
        for name in ("name", "n", "sha256"):
            yield ("data", f"{kind}: {name}"), [item.get(name) for item in read if item.get("kind") == kind]
    for name, value in _mapping(manifest.get("versions")).items():
        yield ("versions", str(name)), value


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

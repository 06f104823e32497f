"""``exitlens run``: the studies of one configuration, in one run directory, resumed where an earlier call stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from exitlens.errors import RunError
from exitlens.models.protocol import LayeredModel
from exitlens.runs.directory import RunDirectory, now
from exitlens.runs.engine import LocalEngine, Report
from exitlens.studies.config import STUDIES, RunConfig
from exitlens.studies.context import Context
from exitlens.studies.inputs import Inputs, load_inputs

__all__ = ["Finished", "run"]

# Each module has check(ctx) and run(ctx); the cheapest answer for the reader first, the longest last.
_RUNNERS = {name: f"exitlens.studies.{name}.study" for name in STUDIES}


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run: its folder, tables by name, report, and the manifest."""

    path: Path
    report: Path
    tables: Mapping[str, pd.DataFrame]
    manifest: Mapping[str, Any]


def run(
    config: RunConfig,
    *,
    lm: LayeredModel | None = None,
    command: str = "",
    fresh: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Finished:
    """Run the studies that ``config.only`` names and write tables, figures and report into ``config.out``.

    Killed at any moment and called again, it goes on after the last finished batch and ends with the same tables.
    ``lm``: a model in memory instead of ``config.model``. Raises RunError when the folder holds another run or cannot
    be written, and whatever reading the data or the model raises; nothing finished is lost by any of them.
    """
    inputs = load_inputs(config)
    identity = {**config.identity(), **inputs.identity()}
    with RunDirectory.open(config.out, identity, command=command, fresh=fresh) as directory:
        for note in inputs.notes:
            say(note)
        if lm is None:
            from exitlens.models import load

            say(f"loading {config.model}")
            lm = load(
                config.model,
                device=config.device,
                dtype=config.dtype,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
            )
        _introduce(directory, config, inputs, lm)
        ctx = Context(config, LocalEngine(lm, directory, report), inputs, say)
        chosen = [import_module(_RUNNERS[name]) for name in STUDIES if name in config.only]
        # What cannot be done is said before the first long stage, not after it.
        for study in chosen:
            study.check(ctx)
        for study in chosen:
            study.run(ctx)
        directory.note(finished=now())
        say("drawing figures and writing the report" if config.figures else "writing the report")
        return publish(directory, figures=config.figures)


def publish(directory: RunDirectory, *, figures: bool = True) -> Finished:
    """Draw the figures and write the report of a run directory from its tables and manifest alone."""
    from exitlens.report.gallery import draw_all
    from exitlens.report.page import write_report

    tables = directory.tables()
    drawn = draw_all(directory.manifest, tables, directory.path / "figures") if figures else {}
    path = write_report(directory.manifest, tables, drawn, directory.path / "report.html")
    return Finished(directory.path, path, tables, directory.manifest)


def _introduce(directory: RunDirectory, config: RunConfig, inputs: Inputs, lm: LayeredModel) -> None:
    """Write into the manifest what runs on what; refuse to go on with the results of another model's weights."""
    earlier = directory.manifest.get("model") or {}
    if earlier.get("fingerprint") not in (None, lm.fingerprint):
        raise RunError(
            f"'{directory.path}' belongs to another run: the weights of '{lm.name}' are not those it began with "
            f"({earlier['fingerprint'][:12]}, now {lm.fingerprint[:12]}); choose another folder with --out, or start "
            "over with --fresh"
        )
    directory.note(
        config=config.model_dump(mode="json"),
        seed=config.seed,
        model={
            "name": lm.name,
            "fingerprint": lm.fingerprint,
            "dtype": str(lm.dtype).removeprefix("torch."),
            "device": str(lm.device),
            "n_layers": lm.n_layers,
            "d_model": lm.d_model,
            "vocab_size": lm.vocab_size,
            "parity": {"max_abs": lm.parity.max_abs, "tolerance": lm.parity.tolerance, "tokens": lm.parity.tokens},
        },
        data=_with_earlier(directory.manifest.get("data") or [], inputs.provenance()),
        notes=list(inputs.notes),
    )


def _with_earlier(earlier: list[dict[str, Any]], read: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Data of this call, and of earlier calls of the run that read another kind."""
    kinds = {data["kind"] for data in read}
    both = [data for data in earlier if data.get("kind") not in kinds] + read
    return sorted(both, key=lambda data: str(data["kind"]))

"""One study as a command of its own: the same stage as in `exitlens run`, in a folder that is kept only when asked."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from exitlens.cli.console import print_json, say
from exitlens.cli.run import print_headlines
from exitlens.progress import StageProgress

__all__ = ["run_one"]


def run_one(
    study: str,
    settings: Mapping[str, Any],
    out: str | None,
    as_json: bool,
    quiet: bool,
    *,
    keep: Mapping[str, Path] | None = None,
) -> None:
    """Run one study and print its tables; ``out`` keeps the run directory with figures and report.

    ``keep`` copies single files of the run directory elsewhere.
    """
    import shlex
    import sys

    from exitlens.storage.atomic import write_bytes
    from exitlens.studies.config import load_config
    from exitlens.studies.run import run

    with ExitStack() as stack:
        folder = out if out is not None else stack.enter_context(tempfile.TemporaryDirectory(prefix="exitlens-"))
        # Whoever asks for one study gets all of its data; the built-in job's limits are those of `exitlens run`.
        limits = {name: settings.get(name) or "none" for name in ("limit", "limit_statements")}
        config = load_config(None, {**settings, **limits, "only": study, "out": folder, "figures": out is not None})
        report = stack.enter_context(StageProgress(quiet))
        finished = run(
            config,
            command=shlex.join(["exitlens", *sys.argv[1:]]),
            report=report,
            say=lambda line: say(line, quiet),
        )
        for name, target in (keep or {}).items():
            write_bytes(target.expanduser(), (finished.path / name).read_bytes())
            say(f"saved {target}", quiet)
        if not as_json:
            print_headlines(finished, only=study, whole=True, report=out is not None)
            return
        found: dict[str, Any] = {"model": finished.manifest["model"]["name"]}
        found["findings"] = finished.findings().get(study, [])
        found |= finished.printed(study)
        if out is not None:
            found |= {"run": str(finished.path), "report": str(finished.report)}
        if keep:
            found["saved"] = [str(target) for target in keep.values()]
        print_json(found)

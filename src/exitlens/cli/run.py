"""`exitlens run`: all studies in one command, one folder, one report. Its options are the settings of a run."""

from __future__ import annotations

import inspect
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exitlens.cli._settings import Own, option_names, settings_command
from exitlens.cli.console import echo, print_findings, print_json, print_parts, say
from exitlens.cli.help import add_command
from exitlens.cli.options import BOTH, JsonOption, QuietOption
from exitlens.progress import StageProgress
from exitlens.storage.mirror import named
from exitlens.studies.config import RunConfig

if TYPE_CHECKING:
    import exitlens.studies.run

__all__ = ["print_headlines", "register"]

_COMMON = (
    "model", "data", "statements", "column", "only", "limit", "limit_statements", "out", "figures", "figure_width",
    "seed",
)  # fmt: skip
# Under a heading an option is only named: the study's own command has its help.
_HEADINGS = {
    "Answers (help: exitlens entropy, exitlens decoding)": (
        "decoders", "max_new_tokens", "repetition_penalty", "generation_config", "batch_size", "mc", "scoring",
        "judges", "bertscore_model",
        "bertscore_layer", "entropy_estimators",
    ),
    "Layers (help: exitlens layers, exitlens lens compare)": (
        "prompts", "lens", "layers", "rule", "look_limit", "picks", "top_k", "compared_lenses", "pass_at", "read_at",
    ),
    "Exits (help: exitlens exits)": (
        "exit_layers", "exit_heads", "exit_lens", "exit_delta", "exit_epsilon", "exit_test", "adapter",
    ),
    BOTH: ("device", "dtype", "revision", "trust_remote_code", "base", "engine", "workers", "deadline"),
}  # fmt: skip
_PROBES = "Probes (help: exitlens probe)"

_ABOUT = """All studies: layer by layer, entropy, truth, decoding, early exit.

Without options it runs on the built-in model and data. Killed and started again it continues where it stopped.
--json prints run, report, findings and tables (see docs/tables.md).
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(
        app, "run", settings_command(_settings(), _run, _ABOUT, _more()),
        "All studies, on the built-in model and data or on yours",
        "exitlens run",
        "exitlens run --model gpt2 --data my.csv --only layers,decoding --out run",
    )  # fmt: skip


def _settings() -> dict[str, Own]:
    """Every setting there is: what no heading names is one of the probes'."""
    headings = {name: heading for heading, names in _HEADINGS.items() for name in names}
    rest = [name for name in RunConfig.model_fields if name not in _COMMON and name not in headings]
    ordered = [*_COMMON, *headings, *rest]
    own = {name: Own(heading=None if name in _COMMON else headings.get(name, _PROBES)) for name in ordered}
    return {**own, "only": Own(default="all but lenses")}


def _more() -> list[inspect.Parameter]:
    config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file with the same settings.")]
    fresh = Annotated[bool, typer.Option("--fresh", help="Start over, also where the folder holds a run.")]
    status = Annotated[Path | None, typer.Option("--status", metavar="PLACE", help="Say how far a run is, and end.")]
    kinds = {
        "config": (config, None),
        "status": (status, None),
        "fresh": (fresh, False),
        "as_json": (JsonOption, False),
        "quiet": (QuietOption, False),
    }
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in kinds.items()
    ]


def _run(
    given: dict[str, Any], *, config: Path | None, status: Path | None, fresh: bool, as_json: bool, quiet: bool
) -> None:
    if status is not None:
        _tell_status(status, as_json)
        return
    from exitlens.studies.config import check_words, load_config

    settings = load_config(config, given, option_names(_settings()))
    check_words(settings)

    from exitlens.studies.run import run

    with StageProgress(quiet) as report:
        finished = run(
            settings,
            command=shlex.join(["exitlens", *sys.argv[1:]]),
            fresh=fresh,
            report=report,
            say=lambda line: say(line, quiet),
        )
    if as_json:
        print_json(_json(finished))
    else:
        print_headlines(finished)


def _tell_status(folder: Path, as_json: bool) -> None:
    from exitlens.runs.status import read_status

    found = read_status(folder)
    if as_json:
        print_json(found.model_dump())
        return
    for line in found.lines(time.time()):
        echo(line)


def _json(finished: exitlens.studies.run.Finished) -> dict[str, Any]:
    return {
        "run": named(finished.path),
        "report": named(finished.report),
        "findings": finished.findings(),
        "tables": finished.printed(),
    }


def print_headlines(
    finished: exitlens.studies.run.Finished, *, only: str | None = None, whole: bool = False, report: bool = True
) -> None:
    """The tables a reader wants first, the findings in sentences, and where the report is.

    ``only``: one study; ``whole``: every layer instead of a few.
    """
    from exitlens.studies.registry import chapters

    for study, chapter in chapters().items():
        parts = chapter.terminal(finished.results, whole)
        if not parts or only not in (None, study):
            continue
        print_parts(chapter.title, parts)
        print_findings(chapter.findings(finished.results))
        echo()
    if report:
        echo(f"report: {named(finished.report)}")

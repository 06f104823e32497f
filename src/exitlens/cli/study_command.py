"""One study as a command of its own: the same stage as in `exitlens run`, in a folder that is kept only when asked."""

from __future__ import annotations

import inspect
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from exitlens.cli._settings import Own, option_names, settings_command
from exitlens.cli.console import print_json, say
from exitlens.cli.options import BOTH, JsonOption, QuietOption
from exitlens.cli.run import print_headlines
from exitlens.progress import StageProgress

__all__ = ["ANSWERS", "LOADING", "OUT", "SPREAD", "keyword", "run_one", "study_command", "under"]

LOADING = {name: Own() for name in ("device", "dtype", "revision", "trust_remote_code", "base")}
SPREAD = {name: Own(heading=BOTH) for name in (*LOADING, "engine", "workers", "deadline")}
OUT = {
    "out": Own(help="Keep all, figures and report too, in this folder.", default=""),
    "figure_width": Own(help="Of figures: page or column."),
}


def under(heading: str, *names: str) -> dict[str, Own]:
    """Settings under a heading of ``--help``."""
    return {name: Own(heading=heading) for name in names}


ANSWERS = under("Answers", "max_new_tokens", "repetition_penalty", "batch_size", "bertscore_model", "bertscore_layer")


def keyword(name: str, kind: Any, default: Any = ...) -> inspect.Parameter:
    """A parameter of a command that is no setting of a run; ``...``: it has no default."""
    usual = inspect.Parameter.empty if default is ... else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=usual, annotation=kind)


def study_command(
    study: str,
    settings: Mapping[str, Own],
    about: str,
    *,
    usual: Mapping[str, Any] | None = None,
    adapt: Callable[[dict[str, Any], Path | None], dict[str, Any]] = lambda given, _save: given,
    more: Sequence[inspect.Parameter] = (),
) -> Callable[..., None]:
    """The command of a study: an option a setting, ``--json`` and ``-q``.

    Args:
        study: the study's name.
        settings: see :func:`settings_command`.
        about: the command's help.
        usual: settings whose default differs from the run's.
        adapt: makes settings of what was given, where an option means more than one.
        more: ``context`` where the command is a group (a command below it runs alone), ``save`` for a file to keep.
    """

    def act(
        given: dict[str, Any], *, as_json: bool, quiet: bool, context: Any = None, save: Path | None = None
    ) -> None:
        if context is not None and context.invoked_subcommand is not None:
            return
        given = adapt({**(usual or {}), **given}, save)
        keep = {} if save is None else {"probe.safetensors": save}
        run_one(study, given, given.pop("out", None), as_json, quiet, keep=keep, options=option_names(settings))

    rest = [*more, keyword("as_json", JsonOption, False), keyword("quiet", QuietOption, False)]
    return settings_command(settings, act, about, rest)


def run_one(
    study: str,
    settings: Mapping[str, Any],
    out: str | None,
    as_json: bool,
    quiet: bool,
    *,
    keep: Mapping[str, Path] | None = None,
    options: Mapping[str, str] | None = None,
) -> None:
    """Run one study and print its tables; ``out`` keeps the run directory with figures and report.

    ``keep`` copies single files of the run directory elsewhere; ``options``: what the user wrote for each setting.
    """
    from exitlens.storage.atomic import check_writable
    from exitlens.studies.config import check_words, load_config

    for target in (keep or {}).values():
        check_writable(target)
    with ExitStack() as stack:
        folder = out if out is not None else stack.enter_context(tempfile.TemporaryDirectory(prefix="exitlens-"))
        # Whoever asks for one study gets all of its data; the built-in job's limits are those of `exitlens run`.
        limits = {name: settings.get(name) or "none" for name in ("limit", "limit_statements")}
        given = {**settings, **limits, "only": study, "out": folder, "figures": out is not None}
        config = load_config(None, given, options)
        check_words(config)

        from exitlens.storage.atomic import write_bytes
        from exitlens.storage.mirror import named
        from exitlens.studies.run import run

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
            found |= {"run": named(finished.path), "report": named(finished.report)}
        if keep:
            found["saved"] = [str(target) for target in keep.values()]
        print_json(found)

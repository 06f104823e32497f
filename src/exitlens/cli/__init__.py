"""The command line: `exitlens COMMAND`. One file a group of commands, each with ``register(app)``.

Nothing heavy is imported here or at the top of a command's file, so that ``exitlens --help`` answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from exitlens.cli._streams import NARROW, Remarks
from exitlens.cli.console import in_lines, safe
from exitlens.cli.help import USAGE_ERRORS, Group, usage_error
from exitlens.errors import ExitlensError, UnitsFailed

__all__ = ["GROUPS", "build", "main"]

GROUPS = (
    "run",
    "look",
    "read",
    "lens",
    "studies",
    "generate",
    "compare",
    "score",
    "serve",
    "lm_eval",
    "plan",
    "models",
)
"""The files beside this one that add commands, in the order in which --help lists them."""

# Commands that continue in the folder of --out; those of `lens` and `run` have one without being told.
_GOES_ON = ("read", "layers", "entropy", "decoding", "probe", "exits", "lens")

# What a full or vanished standard output says; a file that cannot be written is named by its error.
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF}


def _version(wanted: bool) -> bool:
    if wanted:
        from exitlens.version import __version__

        typer.echo(f"exitlens {__version__}")
        raise typer.Exit
    return wanted


def build() -> typer.Typer:
    """The whole command line as a typer application."""
    app = typer.Typer(
        name="exitlens",
        cls=Group,
        # Plain help and plain one-line errors: the same in a terminal, a log and a pipe.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
        ] = False,
    ) -> None:
        """What every layer of a language model would have said, what that tells about truth, what acting on it saves.

        Start with `exitlens run`: all studies on the built-in model and data, one report at the end.
        """

    for group in GROUPS:
        import_module(f".{group}", __name__).register(app)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code.

    0: done. 1: the output could not be written. 2: the command, its input or its model cannot be used (one line on the
    error stream). 3: some records could not be done, the others are finished. 130: interrupted.
    """
    if argv is None:  # a process of its own: looking through a million imported objects again and again costs seconds
        gc.set_threshold(50_000)
        atexit.register(gc.freeze)  # and once more as it ends
    if sys.stderr is None:  # a closed stream is None in Python; nobody reads there
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
    if argv is None:
        sys.stderr = Remarks(sys.stderr)
    if sys.stdout is None:
        return _fail("standard output is closed: send it to a file or to /dev/null", 1)
    for stream in (sys.stdout, sys.stderr):
        # Model text holds any character; a terminal with a narrow encoding must not end the command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=NARROW)
    try:
        code = _run(argv)
        sys.stdout.flush()
    except UnitsFailed as error:
        return _fail(str(error), 3)
    except ExitlensError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        code = 130
        if argv is None:  # the process ends now: a second Ctrl-C has nothing more to interrupt
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except OSError as error:
        if error.errno == errno.EPIPE:
            _stop_writing()
            return 1
        if error.filename is None and error.errno in _CANNOT_WRITE:
            _stop_writing()
            return _fail(f"cannot write to standard output: {error.strerror}; send it to another file", 1)
        if error.filename is None:
            raise
        return _fail(f"cannot use '{error.filename}': {error.strerror}; check that it exists and that you may use it")
    except MemoryError:
        return _fail("out of memory; use a smaller --batch-size, --limit, or a smaller model")
    if code == 130:
        sys.stderr.write(f"\n{_interrupted(sys.argv[1:] if argv is None else argv)}\n")
    return code


def _run(argv: Sequence[str] | None) -> int:
    """Parse and run; what the option parser refuses is an InputError like any other."""
    try:
        with _plain_warnings():
            # Not standalone: the parser's errors are raised and not printed in a form of its own.
            code = build()(args=None if argv is None else list(argv), prog_name="exitlens", standalone_mode=False)
    except USAGE_ERRORS as error:
        raise usage_error(error) from None
    except SystemExit as end:  # how completion and a broken pipe end a command
        code = end.code if isinstance(end.code, int | None) else 1
    return code if isinstance(code, int) else 0


def _interrupted(words: Sequence[str]) -> str:
    """What is left of an interrupted command: one that writes a folder of units goes on from there."""
    kept = any(word in ("-o", "--out") or word.startswith("--out=") for word in words)
    if list(words[:1]) == ["run"] or list(words[:2]) == ["lens", "train"] or (kept and words[0] in _GOES_ON):
        return "interrupted; finished work is kept, the same command continues from there"
    return "interrupted"


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """What this package warns of is one line, without the place in the code where it was noticed."""
    usual = warnings.formatwarning

    def written(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
            return in_lines(f"warning: {safe(str(message))}", sys.stderr) + "\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = written
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _fail(message: str, code: int = 2) -> int:
    if os.environ.get("EXITLENS_DEBUG") and sys.exc_info()[0] is not None:
        _raise_again()
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(in_lines(f"error: {safe(message)}", sys.stderr) + "\n")
    return code


def _raise_again() -> NoReturn:
    raise  # noqa: PLE0704 - called from an except block, to show the whole traceback when someone asks for it


def _stop_writing() -> None:
    """The reader of our output went away (`| head`): send the rest nowhere, also what Python flushes as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)

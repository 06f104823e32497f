"""How is help laid out, and how is a usage error said? Plain text: common options first, the rest under headings.

A command's options come with a heading (``rich_help_panel``); those without one are the common ones. The option
parser's own errors become :class:`~exitlens.errors.InputError`, so that they look like all others.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from exitlens.errors import InputError
from exitlens.parsing import plainly

__all__ = ["ELSEWHERE", "USAGE_ERRORS", "Command", "Group", "add_command", "new_group", "usage_error"]

# typer shows only this class of its parser's errors by a public name; its bases are the parser's other errors.
USAGE_ERRORS: type[Exception] = next(
    base for base in reversed(typer.BadParameter.__mro__) if hasattr(base, "format_message") and hasattr(base, "show")
)

ELSEWHERE = "(help: "
"""In a heading: its options are only named, the command that it names has their help."""

_TOO_MANY = re.compile(r"Got unexpected extra arguments? ?(?:\(s\) )?\((.*)\)")
_SCREEN, _SCREEN_WIDE = 54, 44  # lines of a help at most, in 80 columns and in 100
_OPTIONS = "Options"
_HYPHEN = "\ue000"  # a hyphen while lines are broken: no option's name or value is cut in two


def usage_error(error: Any) -> InputError:
    """What the option parser refused, as one line that names the remedy."""
    message = " ".join(error.format_message().split()).rstrip(".").replace(": Value error, ", ": ")
    message = re.sub(
        r"issing argument '(\w+)", lambda found: found.group().replace(found[1], found[1].upper()), message
    )
    message = _TOO_MANY.sub(r"'\1' is one argument too many: put a text in quotes", plainly(message))
    reasons = getattr(error.__cause__ or error.__context__, "errors", None)
    if callable(reasons):  # typer reads values by pydantic, whose errors hold what was given
        given = str(reasons()[0].get("input"))[:80]
        message = message if given in message else f"{message} (given: '{given}')"
    context = getattr(error, "ctx", None)
    where = "" if context is None else f"; see {context.command_path} --help"
    return InputError(f"{message[:1].lower()}{message[1:]}{where}")


class Command(TyperCommand):
    """A command whose help has its options under headings."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Name arguments as the list below does."""
        return _usage(self, ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, common options, then each heading."""
        _write_sections(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the parser's signature
        """Write the examples."""
        _write_examples(self, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an option that is given nothing."""
        _check_given(self, ctx, args)
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A group of commands; without one it prints its help on the error stream and ends with exit code 2."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Name arguments as the list below does; a group that is a command too needs none below it."""
        below = "[COMMAND [ARGS]...]" if self.invoke_without_command else "COMMAND [ARGS]..."
        return [*_usage(self, ctx), below]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the parser's signature
        """Write the examples."""
        _write_examples(self, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options as a command does, then the commands."""
        _write_sections(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Nothing was asked for: say what there is. Refuse an option that is given nothing."""
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        _check_given(self, ctx, args)
        return super().parse_args(ctx, args)


def _check_given(command: Any, ctx: Any, args: list[str]) -> None:
    """Refuse an option that is given nothing (``--out ''``): an empty path would be the current folder."""
    filled = {name for param in command.get_params(ctx) if param.default != "" for name in param.opts}
    flags = {name for param in command.get_params(ctx) if getattr(param, "is_flag", False) for name in param.opts}
    for given, following in zip_longest(args, args[1:]):
        option = given.removesuffix("=")
        empty = given.endswith("=") or (following == "" and given not in flags)
        if option in filled and empty:
            raise InputError(f"{option} is given '': use a value, or leave it out; see {ctx.command_path} --help")


def add_command(
    app: typer.Typer,
    name: str,
    function: Callable[..., None],
    brief: str,
    *examples: str,
    cls: type[Command] = Command,
    **settings: Any,
) -> None:
    """Make ``function`` the command ``name``.

    ``brief``: what a list of commands says of it, in one line; ``examples``: command lines for its help.
    """
    app.command(name, cls=cls, short_help=brief, epilog="\n".join(examples) or None, **settings)(function)


def new_group(app: typer.Typer, name: str, brief: str, *examples: str, about: str | None = None) -> typer.Typer:
    """A group of commands below ``app``; ``about`` is its help unless it has a command of its own."""
    told: dict[str, Any] = {} if about is None else {"help": about}
    group = typer.Typer(cls=Group, rich_markup_mode=None, **told)
    app.add_typer(group, name=name, short_help=brief, epilog="\n".join(examples) or None)
    return group


def _usage(command: Any, ctx: Any) -> list[str]:
    arguments = [param for param in command.get_params(ctx) if param.param_type_name == "argument"]
    return [command.options_metavar, *map(_argument, arguments)]


def _write_examples(command: Any, formatter: Any) -> None:
    """As many of a command's examples as its screen has room for; the documentation has them all."""
    wide = formatter.width >= 90
    room = (_SCREEN_WIDE if wide else _SCREEN) - formatter.getvalue().count("\n") - 2  # a blank line, the heading
    examples = (command.epilog or "").split("\n")[: max(0, room)] if command.epilog else []
    if examples:
        with formatter.section("Examples"):
            for line in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def _write_sections(command: Any, ctx: Any, formatter: Any) -> None:
    annotations = _annotations(command.callback)
    sections: dict[str, list[Any]] = {"Arguments": [], _OPTIONS: []}
    for param in command.get_params(ctx):
        if getattr(param, "hidden", False):
            continue
        is_argument = param.param_type_name == "argument"
        panel = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or _OPTIONS
        sections.setdefault(panel, []).append(param)
    sections[_OPTIONS].sort(key=_last)
    for title, params in sections.items():
        if not params:
            continue
        with formatter.section(title):
            if ELSEWHERE in title and ctx.command_path not in title:
                formatter.write_text(_unbroken("  ".join(param.opts[0] for param in params)))
            else:
                rows = [_record(param, annotations) for param in params]
                formatter.write_dl([(names, _unbroken(told)) for names, told in rows], col_max=34)
    formatter.buffer[:] = [part.replace(_HYPHEN, "-") for part in formatter.buffer]


def _last(param: Any) -> int:
    """What every command has comes last: 1 to 3; else 0."""
    common = ("as_json", "quiet", "help")
    return common.index(param.name) + 1 if param.name in common else 0


def _unbroken(text: str) -> str:
    return text.replace("-", _HYPHEN)


def _record(param: Any, annotations: dict[str, str]) -> tuple[str, str]:
    """An option's names and its help, with the default in brackets."""
    kind = annotations.get(param.name, "")
    if param.param_type_name == "argument":
        return _argument(param), param.help or ""
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        names += " / " + ", ".join(param.secondary_opts)
    if not param.is_flag:
        names += f" {param.metavar or _metavar(kind)}"
    told = param.help or ""
    default = param.show_default if isinstance(param.show_default, str) else param.default
    if param.required:
        told += " [required]"
    elif param.show_default and default not in (None, "", (), []) and not isinstance(default, bool):
        told += f" [{default:g}]" if isinstance(default, float) else f" [{default}]"
    return names, told


def _argument(param: Any) -> str:
    name = param.metavar or str(param.name).upper().rstrip("_")
    name += "..." if param.nargs == -1 else ""
    return name if param.required else f"[{name}]"


def _metavar(kind: str) -> str:
    words = re.findall(r"'([^']+)'", kind)
    if "Literal" in kind and words:
        return "|".join(words)
    for word, shown in (("int", "N"), ("float", "X"), ("Path", "PATH")):
        if word in kind:
            return shown
    return "TEXT"


def _annotations(callback: Any) -> dict[str, str]:
    if callback is None:
        return {}
    parameters = inspect.signature(inspect.unwrap(callback), eval_str=True).parameters
    kinds = {name: each.annotation for name, each in parameters.items()}
    return {name: str(getattr(kind, "__origin__", kind)) for name, kind in kinds.items()}

"""How does a setting of a run become an option? Its name, type, bounds, default and help are the setting's own.

:func:`settings_command` makes the function that typer reads: one parameter a setting, each None where it is not given,
so that a TOML file may say it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from exitlens.cli.options import CHECKS, option
from exitlens.studies.config import RunConfig

__all__ = ["Own", "option_names", "settings_command"]

# A path or a column may hold a comma: these options are repeated instead.
_REPEATED = frozenset({"data", "statements", "test_data", "column"})
_LAYERS = frozenset({"layers", "probe_layers", "probed_layers", "exit_layers"})


@dataclass(frozen=True, slots=True)
class Own:
    """What one command says otherwise of a setting: names, help, default as shown, heading."""

    flags: tuple[str, ...] = ()
    help: str | None = None
    default: str | None = None
    heading: str | None = None


def option_names(settings: Mapping[str, Own]) -> dict[str, str]:
    """What a command's user writes for each setting: ``--delta`` for ``exit_delta``."""
    return {
        name: own.flags[0].partition("/")[0] if own.flags else f"--{name.replace('_', '-')}"
        for name, own in settings.items()
    }


def settings_command(
    settings: Mapping[str, Own],
    act: Callable[..., None],
    about: str,
    more: Sequence[inspect.Parameter] = (),
) -> Callable[..., None]:
    """A command with an option a setting.

    Args:
        settings: the settings by name, with what this command says otherwise.
        act: called with the settings that were given, and with the values of ``more`` by name.
        about: the command's help.
        more: the command's other parameters, as typer reads them.
    """

    def command(**given: Any) -> None:
        rest = {each.name: given.pop(each.name) for each in more}
        act({name: value for name, value in given.items() if value not in (None, [])}, **rest)

    parameters = [_parameter(name, own) for name, own in settings.items()]
    # typer reads a function's signature; this one is made from the settings.
    command.__dict__["__signature__"] = inspect.Signature([*parameters, *more])
    command.__doc__ = about
    return command


def _parameter(name: str, own: Own) -> inspect.Parameter:
    field = RunConfig.model_fields[name]
    kind = _kind(name, field.annotation)
    about: dict[str, Any] = {"help": own.help, "heading": own.heading}
    flags = own.flags
    if kind is bool and not flags:
        word = name.replace("_", "-")
        flags = (f"--{word}/--no-{word}",) if field.default else (f"--{word}",)
    check = CHECKS.get("layers" if name in _LAYERS else name)
    if check is not None:
        about |= check
    least = next((bound.ge for bound in field.metadata if hasattr(bound, "ge")), None)
    if least is not None:
        about["min"] = least
    about["show_default"] = (
        own.default if own.default is not None else _shown(field.get_default(call_default_factory=True))
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option(name, *flags, **about)],
    )


def _kind(name: str, annotation: Any) -> Any:
    """The type in which the parser reads a setting; lists are one comma-separated text."""
    parts = [part for part in (get_args(annotation) or (annotation,)) if part is not type(None)]
    if name in _REPEATED:
        return list[str]
    if get_origin(annotation) is Literal:
        return annotation
    if len(parts) == 1 and parts[0] in (bool, int, float):
        return parts[0]
    return str


def _shown(default: Any) -> str | bool:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or False
    if isinstance(default, float):
        return f"{default:g}"
    return False if default is None or isinstance(default, bool) else str(default)

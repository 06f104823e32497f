"""The run-time checker that conftest.py installs: beartype, with the rules that static checkers follow too."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# An int is a float to every type checker (PEP 484); beartype asks for the choice.
_CONFIGURED = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, checked on every call."""
    _open_protocols(function.__module__)
    return _CONFIGURED(function)


def _open_protocols(module: str) -> None:
    """Let ``isinstance`` see the protocols that ``module`` names so far; beartype asks for it, the product does not."""
    for value in list(vars(sys.modules[module]).values()):
        if (
            isinstance(value, type)
            and getattr(value, "_is_protocol", False)
            and value.__module__.startswith("exitlens")
        ):
            typing.runtime_checkable(value)

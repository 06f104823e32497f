"""The run-time checker that conftest.py installs: beartype, with the rules that static checkers follow too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# An int is a float to every type checker (PEP 484); beartype asks for the choice.
_CONFIGURED = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, checked on every call."""
    return _CONFIGURED(function)

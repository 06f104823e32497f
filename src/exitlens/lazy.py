"""How does a room offer its names without importing what stands behind them? Each loads on first use.

A command that only checks the name of a decoder must not wait for torch: see :func:`lazy_names`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose names live in the modules below it.

    Type checkers read the package's imports under ``TYPE_CHECKING`` instead; a test compares the two.

    Args:
        package: the package's ``__name__``.
        homes: each public name, and the module below the package that defines it.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load

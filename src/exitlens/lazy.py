"""How does a room offer its names without importing what stands behind them? Each loads on first use.

A command that only checks the name of a decoder must not wait for torch: see :func:`lazy_names`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["LazyMethod", "lazy_names", "many_objects"]


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose names live in the modules below it, and of these modules themselves.

    Type checkers read the package's imports under ``TYPE_CHECKING`` instead; a test compares the two.

    Args:
        package: the package's ``__name__``.
        homes: each public name, and the module below the package that defines it.
    """

    def load(name: str) -> Any:
        if name not in homes:
            # Its modules can be reached without an import of their own, whatever was asked for before.
            if name.startswith("_") or find_spec(f"{package}.{name}") is None:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            return import_module(f"{package}.{name}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load


class LazyMethod:
    """A function of another module as a method, imported when it is first asked for."""

    def __init__(self, home: str) -> None:
        """``home``: the module; the function bears the method's name."""
        self._home, self._name = home, ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, held: object | None, owner: type) -> Any:
        function = getattr(import_module(self._home), self._name)
        return function if held is None else function.__get__(held, owner)


@contextmanager
def many_objects() -> Iterator[None]:
    """While open, the collector of cyclic garbage rests: imports and models make a million objects that stay.

    Without it, the collector looks through all of them again and again (0.5 s of transformers' import).
    """
    rests = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if rests:
            gc.enable()

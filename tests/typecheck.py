"""The annotations of every function and dataclass of the package, checked when it runs (``EXITLENS_TYPECHECK=1``).

beartype checks, with the rules that static checkers follow too. Its own import hook is not used for three reasons:
names that are imported for type checkers only would stop a function; tests that pass wrong types on purpose need it
off; and it writes and compiles a checker whenever a function is made, which for functions inside of others is at every
call and took most of the tests' time. Here one is made when a function is first called, once a place in the source.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, FunctionType, ModuleType
from typing import Any

from beartype import BeartypeConf, beartype

__all__ = ["checked", "install", "unchecked"]

# An int is a float to every type checker (PEP 484); beartype asks for the choice.
_CONFIGURED = beartype(conf=BeartypeConf(is_pep484_tower=True))
_NAME = "__checked__"  # of the decorator, in the modules that are checked
_FUNCTION = "__beartype_func"  # the default by which a checker of beartype knows the function that it calls

_checkers: dict[tuple[str, str, CodeType], FunctionType] = {}
_off: list[object] = []  # one for each test in progress that passes wrong types


@contextmanager
def unchecked() -> Iterator[None]:
    """Nothing is checked meanwhile: wrong types are handed over on purpose."""
    _off.append(None)
    try:
        yield
    finally:
        _off.pop()


def install(package: str) -> None:
    """Check every module of ``package`` that is imported from now on."""
    sys.meta_path.insert(0, _Finder(package))


def checked(thing: Any) -> Any:
    """A function, or a dataclass by its ``__init__``, checked on every call."""
    if inspect.isclass(thing):
        made = vars(thing).get("__init__")
        if dataclasses.is_dataclass(thing) and isinstance(made, FunctionType):
            thing.__init__ = checked(made)  # type: ignore[misc]
        return thing
    if not isinstance(thing, FunctionType) or not thing.__annotations__:
        return thing
    if inspect.iscoroutinefunction(thing) or inspect.isasyncgenfunction(thing):
        return thing  # what looks at a function to see whether it must be awaited would see another
    checker: Callable[..., Any] | None = None

    @functools.wraps(thing)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checker
        __tracebackhide__ = True
        if _off:
            return thing(*args, **kwargs)
        if checker is None:
            checker = _checker(thing)
        return checker(*args, **kwargs)

    return call


def _checker(function: FunctionType) -> FunctionType:
    """What checks the arguments, calls ``function``, and checks what comes back."""
    key = (function.__module__, function.__qualname__, function.__code__)
    made = _checkers.get(key)
    if made is None:
        made = _checkers[key] = _CONFIGURED(_resolved(function))
    own = made.__kwdefaults__
    if not own or _FUNCTION not in own:
        return typing.cast(FunctionType, _CONFIGURED(_resolved(function)))
    return _like(made, made.__annotations__, {**own, _FUNCTION: function})


def _like(function: FunctionType, annotations: dict[str, Any], defaults: dict[str, Any] | None) -> FunctionType:
    """The same code with other annotations and keyword defaults."""
    code, names, name = function.__code__, function.__globals__, function.__name__
    copy = FunctionType(code, names, name, function.__defaults__, function.__closure__)
    copy.__kwdefaults__, copy.__annotations__ = defaults, annotations  # type: ignore[assignment]
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    return copy


def _resolved(function: FunctionType) -> FunctionType:
    """The function with annotations for strings; what only type checkers import says nothing here."""
    names = {**function.__globals__, **_protocols(function.__module__)}
    hints: dict[str, Any] = {}
    for name, hint in function.__annotations__.items():
        try:
            hints[name] = typing.get_type_hints(_Annotated(hint), names, include_extras=True)["value"]
        except Exception:  # noqa: BLE001 - a name that is not there, in whatever expression
            hints[name] = Any
    return _like(function, hints, function.__kwdefaults__)


class _Annotated:
    """What ``get_type_hints`` looks at."""

    def __init__(self, hint: Any) -> None:
        self.__annotations__ = {"value": hint}


@functools.cache
def _seen(protocol: type) -> type:
    """Stands for a protocol: ``isinstance`` asks for each attribute, so each type is looked at once."""
    typing.runtime_checkable(protocol)
    known: set[type] = set()

    class Seen(type):
        def __instancecheck__(cls, instance: object) -> bool:
            if type(instance) not in known and isinstance(instance, protocol):
                known.add(type(instance))
            return type(instance) in known

    return Seen(protocol.__name__, (), {"__module__": protocol.__module__})


def _protocols(module: str) -> dict[str, type]:
    """The package's protocols that ``module`` names, each with what stands for it."""
    return {
        name: _seen(value)
        for name, value in list(vars(sys.modules[module]).items())
        if isinstance(value, type) and getattr(value, "_is_protocol", False) and value.__module__.startswith("exitlens")
    }


class _Finder(MetaPathFinder):
    """Finds the modules of one package as Python does, and has them loaded by :class:`_Loader`."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            source = spec.loader.get_data(spec.loader.path)
            if b"\nfrom numba import" in source or b"\n@kernel\n" in source:
                return spec  # numba compiles the functions themselves
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Compiles a module with :func:`checked` around its functions and classes."""

    def get_code(self, fullname: str) -> CodeType:
        tree = _Decorate().visit(ast.parse(self.get_data(self.path), self.path))
        return typing.cast(CodeType, compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True))

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_NAME] = checked
        super().exec_module(module)


class _Decorate(ast.NodeTransformer):
    """Around a function before its other decorators, which may take annotations away; around a class after them."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list.append(ast.copy_location(ast.Name(_NAME, ast.Load()), node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list.insert(0, ast.copy_location(ast.Name(_NAME, ast.Load()), node))
        return node

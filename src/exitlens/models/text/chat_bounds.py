"""How much a chat template may make: no step of it makes a text, list or number beyond a stated size.

A clock between the steps of a template does not see into one: ``'x' * 10**9`` is a single step. So a template is
compiled in transformers' own environment with Jinja's hooks set: sizes are looked at before a step that multiplies
and after every other, which at most adds what is there; and what all steps of a rendering make is added up.
"""

from __future__ import annotations

import operator
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment, Template

__all__ = ["MOST", "TooMuch", "bounded_size"]

MOST = 50_000_000  # characters that one rendering may make in all: a million tokens are four million characters
_PER_CHARACTER = 100  # or so many for each of the messages, where that is more
_PIECES = 100_000  # of a collection with all that is in it
_BITS = 100_000  # of a number: 30,000 digits
_WIDE = re.compile(r"\d{7}")  # a width in a format, of a million or more
# Filters that make a piece of the size of one argument for each piece of another.
_MULTIPLY = frozenset({"batch", "center", "indent", "join", "slice", "tojson", "wordwrap"})

_here = threading.local()  # of the rendering in this thread: .most, what is .left of it, and .pieces


class TooMuch(BaseException):
    """Not an Exception, so that no template's own handling of errors takes it for one."""


@contextmanager
def bounded_size(messages: object) -> Iterator[int]:
    """While open, what this thread renders ends in :class:`TooMuch` once it makes more than the bound given."""
    _install()
    before = [getattr(_here, name, None) for name in ("left", "most", "pieces")]
    _here.left = _here.most = _here.pieces = float("inf")
    size = _weight(messages)
    most = max(MOST, _PER_CHARACTER * size)
    _here.left, _here.most, _here.pieces = most, most, _PIECES + size
    try:
        yield most
    finally:
        _here.left, _here.most, _here.pieces = before


def _install() -> None:
    """transformers compiles templates in one place; elsewhere than in :func:`bounded_size` it does as before.

    Whoever has a tokenizer of transformers has imported that place; other tokenizers render in ways of their own.
    """
    place: Any = sys.modules.get("transformers.utils.chat_template_utils")
    if place is None or getattr(place._compile_jinja_template, "bounded", False):
        return
    original = place._compile_jinja_template

    @lru_cache(maxsize=32)
    def compiled(source: str) -> Template:
        return _compiled(original("").environment, source)

    def either(source: str) -> Any:
        return original(source) if getattr(_here, "left", None) is None else compiled(source)

    either.bounded = True  # type: ignore[attr-defined]
    place._compile_jinja_template = either


def _compiled(plain: Any, source: str) -> Template:
    """The template in an environment like ``plain`` that looks at sizes."""
    from jinja2.compiler import CodeGenerator

    class Codes(CodeGenerator):
        """Writes what makes a list, a dictionary or a slice inside of a look at its size."""

        def _looked_at(self, visit: Callable[..., None], node: Any, frame: Any) -> None:
            self.write("environment.made(")
            visit(node, frame)
            self.write(")")

        def visit_List(self, node: Any, frame: Any) -> None:
            self._looked_at(super().visit_List, node, frame)

        def visit_Dict(self, node: Any, frame: Any) -> None:
            self._looked_at(super().visit_Dict, node, frame)

        def visit_Tuple(self, node: Any, frame: Any) -> None:
            if node.ctx == "load":  # others are names that are set
                self._looked_at(super().visit_Tuple, node, frame)
            else:
                super().visit_Tuple(node, frame)

        def visit_Getitem(self, node: Any, frame: Any) -> None:
            self._looked_at(super().visit_Getitem, node, frame)

    env: Any = plain.overlay(finalize=_shown)
    env.code_generator_class = Codes
    env.made, env.concat = _made, _concat
    env.intercepted_binops = frozenset({"*", "**", "+", "%"})
    env.binop_table = {**plain.binop_table, "*": _product, "**": _power, "+": _sum, "%": _modulo}
    env.filters = {name: _filter(name, function) for name, function in plain.filters.items()}
    env.call = _calling(env)
    template: Template = env.from_string(source)
    # What ``~`` is compiled to; there is no hook for it.
    template.root_render_func.__globals__.update(str_join=_join, markup_join=_join)
    return template


def _weight(value: object) -> int:
    """Characters of a text, digits of a number, pieces of a collection with all that is in it, up to the bounds.

    Nested lists that hold the same one twice at each depth are short to make and endless to write.
    """
    from jinja2.utils import Namespace

    total, pieces, waiting = 0, 0, [iter((value,))]
    while waiting:
        each = next(waiting[-1], waiting)
        if each is waiting:
            waiting.pop()
            continue
        pieces += 1
        if isinstance(each, str | bytes):
            total += len(each)
        elif isinstance(each, int):
            total += each.bit_length() // 3
        elif isinstance(each, Namespace):
            waiting.append(iter(vars(each).values()))
        elif isinstance(each, Mapping):
            waiting += [iter(each.keys()), iter(each.values())]
        elif isinstance(each, Collection):
            waiting.append(iter(each))
        if total > _here.most or pieces > _here.pieces:
            raise TooMuch
        if len(waiting) > 500:
            raise RecursionError("maximum recursion depth exceeded: a value that holds itself")
    return total + pieces


def _spend(amount: int) -> None:
    _here.left -= amount
    if _here.left < 0:
        raise TooMuch


def _fits(amount: float) -> None:
    """``amount`` is about to be made, and counted then."""
    if amount > _here.left:
        raise TooMuch


def _made(value: Any) -> Any:
    """A value that a step made, counted."""
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise TooMuch
    if isinstance(value, str | bytes):
        _spend(len(value))
    elif isinstance(value, Collection):
        _weight(value)
        _spend(len(value))
    return value


def _shown(value: Any) -> Any:
    """A value that is about to be written."""
    if not isinstance(value, str):
        _fits(_weight(value))
    return value


def _concat(pieces: Iterable[str]) -> str:
    found: list[str] = []
    for piece in pieces:
        _spend(len(piece))
        found.append(piece)
    return "".join(found)


def _join(pieces: Iterable[Any]) -> str:
    return _concat([str(_shown(piece)) for piece in pieces])


def _product(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _number(left.bit_length() + right.bit_length())
    else:
        for many, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(many, str | bytes | list | tuple):
                _fits(_weight(many) * max(times, 0))
    return _made(left * right)


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        _number(left.bit_length() * right)
    return _made(left**right)


def _number(bits: int) -> None:
    if bits > _BITS:
        raise TooMuch


def _sum(left: Any, right: Any) -> Any:
    return _made(operator.add(left, right))


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _form(left, "%", right)
    return _made(left % right)


def _form(text: str, mark: str, values: object) -> None:
    """A format writes each value once for each of its marks, and as wide as it, or a value, says."""
    wide = [int(width) for width in _WIDE.findall(text)] + [n for n in _numbers(values) if n > 1_000_000]
    if wide and ("*" in text or ":" in text or _WIDE.search(text)):
        raise TooMuch
    _fits(len(text) + text.count(mark) * _weight(values))


def _numbers(values: object) -> list[int]:
    inner = values if isinstance(values, tuple | list) else (values,)
    return [value for value in inner if isinstance(value, int)]


def _amount(value: object) -> int:
    """How often, how wide or how long an argument asks for."""
    return abs(value) if isinstance(value, int) else _weight(value)


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = int(getattr(function, "jinja_pass_arg", None) is not None)  # the environment or context comes first

    @wraps(function)
    def bounded(*all_: Any, **named: Any) -> Any:
        value, *others = all_[passed:] or (None,)
        others += named.values()
        if name in _MULTIPLY:
            for other in others:
                _fits(_weight(value) * _amount(other))
        elif name == "format":
            _form(str(value), "%", others)
        elif name == "replace" and len(others) >= 2:
            _replacement(str(_shown(value)), str(others[0]), str(others[1]))
        elif not isinstance(value, str) and not isinstance(value, list | tuple | dict):
            _weight(value)
        return _made(function(*all_, **named))

    return bounded


def _replacement(text: str, old: str, new: str) -> None:
    _fits(len(text) + text.count(old) * len(new))


def _calling(env: Environment) -> Callable[..., Any]:
    plain = type(env).call  # type: ignore[attr-defined]

    def call(context: Any, obj: Any, /, *values: Any, **named: Any) -> Any:
        # A text's own format comes wrapped, so that it is safe.
        method = getattr(obj, "__wrapped__", obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes | int) and callable(method):
            given = [*values, *named.values()]
            if name in ("format", "format_map"):
                _form(str(owner), "{", given)
            elif name == "replace" and len(given) >= 2:
                _replacement(str(owner), str(given[0]), str(given[1]))
            elif name in ("expandtabs", "join", "translate"):
                for each in given:
                    _fits(_weight(owner) * _amount(each))
                    _weight(each)
            else:
                for number in _numbers(given):
                    _fits(number)
        return _made(plain(env, context, obj, *values, **named))

    return call

"""The checker of types that the tests run under finds what is wrong, and checks what it should."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from beartype.roar import BeartypeCallHintViolation
from tests import typecheck
from tests.typecheck import checked


@checked
def plain(number: float, names: list[str] | None = None) -> int:
    return len(names or ()) if number else "none"  # type: ignore[return-value]


def test_arguments_and_what_comes_back() -> None:
    assert plain(1, ["a"]) == 1
    for wrong in (("1",), (1.0, [2])):
        with pytest.raises(BeartypeCallHintViolation):
            plain(*wrong)
    with pytest.raises(BeartypeCallHintViolation):
        plain(0.0)
    with typecheck.unchecked():
        assert plain(0.0) == "none"


def test_each_function_that_a_call_makes_is_checked_and_is_its_own() -> None:
    def made(add: int) -> Callable[[int], int]:
        @checked
        def inner(number: int, *, times: int = add) -> int:
            return number * times + add

        return inner

    first, second = made(1), made(10)
    assert (first(2), second(2), first(2, times=3)) == (3, 30, 7)
    for one in (first, second, made(5)):
        with pytest.raises(BeartypeCallHintViolation):
            one("2")


def test_functions_of_one_code_in_two_modules_have_their_own_types() -> None:
    @checked
    @dataclasses.dataclass
    class Words:
        value: str

    @checked
    @dataclasses.dataclass
    class Numbers:
        value: int

    assert (Words("a").value, Numbers(1).value) == ("a", 1)
    for kind, wrong in ((Words, 1), (Numbers, "a")):
        with pytest.raises(BeartypeCallHintViolation):
            kind(wrong)


def test_names_for_type_checkers_only_say_nothing_about_the_others() -> None:
    @checked
    def partly(thing: NowhereDefined, number: int) -> None:  # type: ignore[name-defined]  # noqa: F821
        del thing, number

    partly(object(), 1)
    with pytest.raises(BeartypeCallHintViolation):
        partly(object(), "1")


def test_generators_and_contexts_stay_what_they_are() -> None:
    @checked
    def numbers(n: int) -> Iterator[int]:
        yield from range(n)

    @contextmanager
    @checked
    def inside(n: int) -> Iterator[int]:
        yield n

    assert list(numbers(2)) == [0, 1]
    with inside(3) as n:
        assert n == 3
    with pytest.raises(BeartypeCallHintViolation):
        next(numbers("2"))


def test_a_package_is_checked_as_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "odd_package"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from __future__ import annotations\nclass One:\n    def other(self, one: One) -> One:\n        return one\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    typecheck.install("odd_package")
    import odd_package

    one = odd_package.One()
    assert one.other(one) is one
    with pytest.raises(BeartypeCallHintViolation):
        one.other(1)
    del sys.modules["odd_package"]


class Sized(Protocol):
    """Has attributes, which are looked at once a type."""

    @property
    def size(self) -> int: ...


def test_protocols_are_asked_once_a_type() -> None:
    looked = []

    class Box:
        @property
        def size(self) -> int:
            looked.append(1)
            return 1

    stand_in = typecheck._seen(Sized)
    assert isinstance(Box(), stand_in)
    assert isinstance(Box(), stand_in)
    assert len(looked) == 1
    assert not isinstance("a", stand_in)

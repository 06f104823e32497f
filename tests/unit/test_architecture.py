"""The arrows between rooms, read from the source: run as a script, it lists what breaks them, a line each."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "exitlens"

# A room imports only from rooms before it. The two on one line do not know each other.
ORDER: tuple[tuple[str, ...], ...] = (
    ("errors", "version"),
    ("display", "lazy", "parsing", "progress"),
    ("arguments",),
    ("layer_range",),
    ("storage",),
    ("compute",),
    ("stats",),
    ("models",),
    ("data",),
    ("lenses",),
    ("probes",),
    ("decoding",),
    ("exits",),
    ("scoring",),
    ("report",),
    ("runs",),
    ("studies",),
    ("server", "integrations"),
    ("api",),
    ("cli",),
    ("__main__",),
    ("",),  # the package itself: its public names
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


@dataclass(frozen=True)
class Import:
    """``where`` (a module) imports ``what`` (a module of the package) at ``line``; ``name``: taken out of it."""

    where: str
    line: int
    what: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.where}:{self.line} imports {self.what}{f' ({self.name})' if self.name else ''}"


def read_package(source: Path) -> dict[str, ast.Module]:
    """Every module of the package in ``source`` by its dotted name."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = [source.name, *path.relative_to(source).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(modules: Mapping[str, ast.Module]) -> Iterator[Import]:
    """Imports of the package's own modules, those inside functions and for type checkers only included."""
    root = next(iter(modules)).partition(".")[0]
    for where, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (Import(where, node.lineno, a.name) for a in node.names if a.name.split(".")[0] == root)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    raise AssertionError(f"{where}:{node.lineno} imports relatively: write exitlens.room.module")
                if base.split(".")[0] != root:
                    continue
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield Import(where, node.lineno, *((inner, "") if inner in modules else (base, alias.name)))


def room(module: str) -> str:
    """The room of a module: ``exitlens.models.hub.wheel`` is in ``models``."""
    return [*module.split("."), ""][1]


def against_the_order(found: list[Import]) -> list[str]:
    """Imports of a room that does not come before one's own."""
    wrong = []
    for one in found:
        here, there = room(one.where), room(one.what)
        if here != there and RANK[there] >= RANK[here]:
            wrong.append(f"{one}: {here or 'exitlens'} comes before {there or 'exitlens'}")
    return wrong


def private(found: list[Import], modules: Mapping[str, ast.Module]) -> list[str]:
    """Another room's private module or name, imported or reached through a module that was imported."""

    def hidden(text: str) -> bool:
        return any(part.startswith("_") and not part.startswith("__") for part in text.split("."))

    across = [one for one in found if room(one.where) != room(one.what)]
    wrong = [str(one) for one in across if hidden(f"{one.what}.{one.name}")]
    whole: dict[str, set[str]] = {}  # modules of other rooms that a module imported as such, by their last name
    for one in across:
        if not one.name:
            whole.setdefault(one.where, set()).add(one.what.rpartition(".")[2])
    for where, names in whole.items():
        for node in ast.walk(modules[where]):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            if node.value.id in names and hidden(node.attr):
                wrong.append(f"{where}:{node.lineno} reaches {node.value.id}.{node.attr}")
    return wrong


def circles(found: list[Import]) -> list[str]:
    """Modules that import each other, however far round: each circle once, as the modules in it."""
    after: dict[str, set[str]] = {}
    for one in found:
        after.setdefault(one.where, set()).add(one.what)
    order: list[str] = []
    state: dict[str, int] = {}

    def visit(module: str, trail: list[str]) -> None:
        state[module] = 1
        for other in sorted(after.get(module, ())):
            if state.get(other) == 1:
                order.append(" -> ".join([*trail[trail.index(other) :], other]))
            elif other not in state:
                visit(other, [*trail, other])
        state[module] = 2

    for module in sorted(after):
        if module not in state:
            visit(module, [module])
    return [f"circle: {one}" for one in order]


def transformers_importers(modules: Mapping[str, ast.Module]) -> set[str]:
    """The modules that import transformers anywhere."""
    found = set()
    for where, tree in modules.items():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "transformers" for name in names):
                found.add(where)
    return found


def violations(modules: Mapping[str, ast.Module]) -> list[str]:
    """Everything that breaks the contract between rooms, a line each."""
    found = list(imports(modules))
    unknown = sorted({room(name) for name in modules} - set(RANK))
    wrong = [f"room {name!r} has no place in the order: add it to ORDER" for name in unknown]
    known = [one for one in found if {room(one.where), room(one.what)} <= set(RANK)]
    return wrong + against_the_order(known) + private(found, modules) + circles(found)


def test_rooms_import_in_one_direction_without_circles_and_without_private_names() -> None:
    assert violations(read_package(SOURCE)) == []


def test_transformers_is_imported_by_two_files_at_most_and_by_no_other_room() -> None:
    found = transformers_importers(read_package(SOURCE))
    assert 1 <= len(found) <= 2
    assert {room(module) for module in found} == {"models"}


def package(**files: str) -> dict[str, ast.Module]:
    """A package made of sources: ``models__layered="..."`` is ``exitlens.models.layered``."""
    return {f"exitlens.{name.replace('__', '.')}": ast.parse(text) for name, text in files.items()}


def test_an_arrow_upwards_is_seen_wherever_it_stands() -> None:
    for text in (
        "from exitlens.cli.console import say",
        "import exitlens.cli.console",
        "def f():\n    from exitlens.cli import console",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from exitlens.cli.console import say",
    ):
        found = violations(package(models__layered=text, cli__console=""))
        assert "models comes before cli" in "".join(found), text
    assert not violations(package(models__layered="", cli__console="from exitlens.models.layered import Layered"))


def test_rooms_side_by_side_do_not_import_each_other() -> None:
    assert violations(package(server__app="", integrations__x="from exitlens.server.app import create_app"))


def test_a_circle_inside_a_room_is_seen_through_several_modules() -> None:
    found = violations(
        package(
            models__a="from exitlens.models.b import x",
            models__b="def f():\n    from exitlens.models import c",
            models__c="import exitlens.models.a",
        )
    )
    assert found == ["circle: exitlens.models.a -> exitlens.models.b -> exitlens.models.c -> exitlens.models.a"]


def test_private_modules_and_names_of_another_room_are_seen() -> None:
    assert violations(package(lenses___fused="", decoding__loop="from exitlens.lenses._fused import x"))
    assert violations(package(lenses__lens="", decoding__loop="from exitlens.lenses.lens import _rows"))
    assert violations(package(lenses__lens="", decoding__loop="from exitlens.lenses import lens\nlens._rows()"))
    assert not violations(package(lenses___fused="", lenses__lens="from exitlens.lenses._fused import x"))
    assert not violations(package(errors="", decoding__loop="from exitlens.errors import __doc__"))


def test_a_new_room_needs_a_place() -> None:
    assert violations(package(attic__box="")) == ["room 'attic' has no place in the order: add it to ORDER"]


if __name__ == "__main__":
    print("\n".join(sorted(violations(read_package(SOURCE)))) or "no arrow is broken")
    print("transformers is imported by", sorted(transformers_importers(read_package(SOURCE))))

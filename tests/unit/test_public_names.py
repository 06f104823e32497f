"""The package from outside: its names, that they load on first use, and that type checkers see the same ones."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import exitlens
from exitlens.data.records import Dataset, Statement

PACKAGE = Path(exitlens.__file__)
ROOMS = sorted(path.parent.name for path in PACKAGE.parent.glob("*/__init__.py"))


def _for_type_checkers() -> dict[str, str]:
    """Name to module, as the block under ``if TYPE_CHECKING`` imports them."""
    tree = ast.parse(PACKAGE.read_text(encoding="utf-8"))
    [block] = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "a type checker takes only `as` imports for public"
            found[alias.name] = str(node.module)
    return found


def test_names_are_sorted_and_every_one_loads() -> None:
    assert exitlens.__all__ == sorted(set(exitlens.__all__))
    for name in exitlens.__all__:
        assert getattr(exitlens, name) is not None


def test_type_checkers_see_the_names_that_exist_and_no_others() -> None:
    seen = _for_type_checkers()
    rooms = {name for name, module in seen.items() if module == "exitlens"}
    homes = {name: module for name, module in seen.items() if module != "exitlens"}
    assert homes == {name: f"exitlens.{home}" for name, home in exitlens._HOME.items()}
    assert rooms == {*ROOMS, "errors"}


def test_what_the_docs_promise_is_public() -> None:
    promised = {
        "load", "wrap", "read", "generate", "look", "score", "run", "TunedLens", "Trace", "Dataset", "Sampling",
        "register_decoder", "mc_scores", "ExitlensError", "LM", "RunConfig", "layers_study", "entropy_study",
        "probes_study", "decoding_study", "exits_study",
    }  # fmt: skip
    assert promised <= set(exitlens.__all__)


def test_every_name_is_in_the_reference() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"auto(?:function|class|data|exception):: exitlens\.(?:\w+\.)*(\w+)", page))
    assert "automodule:: exitlens.errors" in page
    assert set(exitlens.__all__) - documented == {"__version__", "ExitlensError"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lenz'"):
        _ = exitlens.lenz  # type: ignore[attr-defined]


def test_importing_the_package_is_fast_and_loads_no_library() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import exitlens; took = time.perf_counter() - start\n"
        "heavy = {'torch', 'numpy', 'pandas', 'transformers', 'scipy', 'pydantic', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert took < 0.2, took\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_there_without_importing_it(room: str) -> None:
    assert getattr(exitlens, room).__name__ == f"exitlens.{room}"


def test_rooms_load_in_a_fresh_interpreter() -> None:
    code = "import exitlens; exitlens.lenses.read; exitlens.stats.auroc; exitlens.errors.ExitlensError"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", ["read", "generate", "look", "score"])
def test_a_method_of_the_model_is_the_function_of_that_name(name: str) -> None:
    method, function = getattr(exitlens.LM, name), getattr(exitlens, name)
    assert inspect.signature(method) == inspect.signature(function)
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds, "a misspelt option would be taken"


def test_a_data_set_is_counted_iterated_and_indexed() -> None:
    records = tuple(Statement(str(i), f"s{i}", i % 2, "topic") for i in range(3))
    data = Dataset("d", "here", "0", "statements", statements=records)
    assert (len(data), list(data), data[1], data[-1], data[:2]) == (3, [*records], records[1], records[2], records[:2])
    with pytest.raises(IndexError):
        data[3]


def test_modules_of_a_room_are_reached_through_it() -> None:
    """In a fresh process, where nothing else has imported them."""
    code = "import exitlens; exitlens.data.prompts.qa_prompt; exitlens.stats.paired; exitlens.data.no_such_module"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "AttributeError: module 'exitlens.data' has no attribute 'no_such_module'"

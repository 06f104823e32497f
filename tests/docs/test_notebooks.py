"""The notebooks run from an empty folder to their end, and what is stored in them belongs to their code.

What stands in their findings is looked up in their outputs.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MOST_BYTES = 1_500_000

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def execute() -> ModuleType:
    """The script that executes them."""
    spec = importlib.util.spec_from_file_location("execute", EXAMPLES / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _kinds(cell: Any) -> list[Any]:
    """What kinds of output a cell has."""
    return [sorted(output.get("data", [output.output_type])) for output in cell.outputs]


def _said(notebook: Any) -> str:
    """The text of all outputs."""
    outputs = [output for cell in _code(notebook) for output in cell.outputs]
    data = [output.get("data", {}) for output in outputs]
    texts = [made.get("text/markdown") or made.get("text/plain", "") for made in data]
    return "\n".join(str(output.get("text") or text) for output, text in zip(outputs, texts, strict=True))


def test_there_are_seven() -> None:
    assert len(NOTEBOOKS) == 7, [path.name for path in NOTEBOOKS]


@pytest.fixture(scope="module")
def loaded_before(builtin_path: Path) -> None:
    """The model's first load on a machine unpacks it and shows a bar, an output more than is stored."""
    import exitlens

    exitlens.load("smollm2-135m")


@each
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("loaded_before")
def test_it_runs(path: Path, tmp_path: Path) -> None:
    """In a process of its own, as its reader runs it; outputs are of the kinds that are stored."""
    command = [sys.executable, str(EXAMPLES / "execute.py"), path.name, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made, stored = (nbformat.read(file, as_version=4) for file in (tmp_path / path.name, path))
    assert [_kinds(cell) for cell in _code(made)] == [_kinds(cell) for cell in _code(stored)]


@each
def test_outputs_belong_to_the_code(path: Path, execute: ModuleType) -> None:
    notebook = nbformat.read(path, as_version=4)
    again = f"run python examples/execute.py {path.name}"
    assert notebook.metadata["exitlens"]["sources"] == execute.sources_mark(notebook), again
    assert [cell.execution_count for cell in _code(notebook)] == list(range(1, len(_code(notebook)) + 1)), again
    assert not [o for cell in _code(notebook) for o in cell.outputs if o.output_type == "error"]
    changed = notebook.copy()
    changed.cells = [nbformat.v4.new_code_cell("another = 1"), *notebook.cells]
    assert execute.sources_mark(changed) != notebook.metadata["exitlens"]["sources"]


@each
def test_it_is_small_and_names_no_machine(path: Path, execute: ModuleType) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) <= MOST_BYTES
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|work|Users|var|private)/[\w.-]+", text)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert nbformat.writes(execute.cleaned(notebook)) == nbformat.writes(nbformat.read(path, as_version=4))


@each
def test_interactive_outputs_have_a_table_beside_them(path: Path) -> None:
    """Viewers that take frames out show the table; each notebook has at least one frame."""
    notebook = nbformat.read(path, as_version=4)
    htmls = [str(o.get("data", {}).get("text/html", "")) for cell in _code(notebook) for o in cell.outputs]
    framed = [html for html in htmls if "<iframe" in html]
    assert framed
    assert all("<table" in html.partition("<iframe")[0] for html in framed)


@each
def test_findings_say_what_the_outputs_show(path: Path) -> None:
    """Each number with decimals, and each interval in percent, of the last text stands in an output."""
    notebook = nbformat.read(path, as_version=4)
    last = notebook.cells[-1]
    assert last.cell_type == "markdown", "the finding comes last"
    said = _said(notebook).replace("−", "-")
    told = last.source.replace("−", "-")
    numbers = re.findall(r"-?\d+\.\d+|\d+% \[\d+, \d+\]", told)
    assert numbers, "a finding has numbers"
    missing = [number for number in numbers if number not in said]
    assert not missing, f"not in any output: {missing}"

"""One loader for all kernels: where their machine code goes, and what is said where they cannot be used."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from exitlens.compute import compiled
from exitlens.lenses.kernels import compiled as of_lenses
from exitlens.models.native import compiled_blocks
from exitlens.probes.kinds import _mlp_compiled as networks

SEES = "import numba\nFOLDER = numba.config.CACHE_DIR\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EXITLENS_COMPILED", raising=False)


@pytest.mark.parametrize(
    "listed",
    [of_lenses.KERNELS, compiled_blocks.KERNELS, networks.KERNELS],
    ids=["lenses", "compiled blocks", "networks"],
)
def test_every_module_that_kernels_are_made_of_is_listed(listed: tuple[str, ...]) -> None:
    """Else machine code of an older source would be taken."""
    imported = set(listed[:1])
    for name in listed:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Import) or all(not a.name.startswith("exitlens") for a in node.names)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("exitlens"):
                imported.add(str(node.module))
    assert imported == set(listed)
    assert len(listed) == len(imported)


def test_sources_decide_where_machine_code_is_kept(tmp_path: Path) -> None:
    import numba

    before = numba.config.CACHE_DIR
    for name in ("kernels_a", "kernels_b"):
        (tmp_path / f"{name}.py").write_text(SEES)
    part = tmp_path / "kernels_part.py"
    part.write_text("x = 1\n")
    first = Path(compiled.kernels("kernels_a", "kernels_part").FOLDER)
    assert first.parent == tmp_path / "cache" / "kernels"
    assert first.is_dir()
    assert not compiled.compiled_before("kernels_a", "kernels_part")
    (first / "some.nbi").touch()
    assert compiled.compiled_before("kernels_a", "kernels_part")
    assert Path(compiled.kernels("kernels_b", "kernels_part").FOLDER) == first  # the same sources
    part.write_text("x = 2\n")
    assert not compiled.compiled_before("kernels_a", "kernels_part")
    assert before == numba.config.CACHE_DIR


def test_without_a_folder_to_write_in_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "file"))
    (tmp_path / "kernels_c.py").write_text(SEES)
    assert compiled.problem("kernels_c") is None
    assert compiled.kernels("kernels_c").FOLDER == ""
    assert not compiled.compiled_before("kernels_c")


def test_what_is_said_where_kernels_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    before = numba.config.CACHE_DIR
    for number, error in enumerate(("AttributeError", "ImportError", "SystemError", "ValueError")):
        (tmp_path / f"broken_{number}.py").write_text(f"raise {error}('of no use' + 'x' * 100 + chr(10) + 'and more')")
        assert compiled.problem(f"broken_{number}") == f"numba does not load (of no use{'x' * 71})"
        assert before == numba.config.CACHE_DIR
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "numba", None)
        assert compiled.problem("not looked for") == compiled.MISSING
    monkeypatch.setenv("EXITLENS_COMPILED", "0")
    assert compiled.problem("not wanted") == ""

"""What can be refused without a model is refused without torch: nothing large is imported for it, nor for help."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from exitlens.decoding.contrast import decoder_names, parse_decoder
from exitlens.errors import ProbeError
from exitlens.probes import KINDS, make_data, make_split
from exitlens.probes.names import PROTOCOLS as PROBE_PROTOCOLS
from exitlens.scoring import PROTOCOLS
from exitlens.scoring.names import JUDGES, ScoringProtocol, parse_judge

SOURCE = Path(__file__).parents[2] / "src" / "exitlens"
HEAVY = ("torch", "sklearn", "transformers", "matplotlib", "pandas", "pyarrow", "scipy")

REFUSED = [
    ("generate", "x", "--decoder", "bad"),
    ("generate", "x", "--decoder", "sled:k=0"),
    ("generate", "x", "--exit", "bad"),
    ("generate", "x", "--speculate", "bad"),
    ("generate", "x", "--top-p", "7", "--temperature", "1"),
    ("generate", "x", "--qa", "--chat"),
    ("generate", "--prompts", "/nosuch"),
    ("run", "--decoders", "vanilla,bad"),
    ("run", "--judges", "bad"),
    ("run", "--judges", "margin:bad"),
    ("run", "--kinds", "bad"),
    ("run", "--protocol", "bad"),
    ("run", "--lens", "bad"),
    ("run", "--layers", "bad"),
    ("run", "--only", "bad"),
    ("run", "--data", "/nosuch"),
    ("run", "--statements", "/nosuch"),
    ("run", "--prompts", "/nosuch"),
    ("entropy", "--judges", "bad"),
    ("decoding", "--decoders", "dola:choice=bad"),
    ("probe", "--kinds", "bad"),
    ("probe", "--kinds", "lda", "--protocol", "bad"),
    ("layers", "--lens", "bad"),
    ("exits", "--layers", "bad"),
    ("exits", "--delta", "7"),
    ("exits", "--heads", "/nosuch"),
    ("look", "x", "--choices", "a,a"),
    ("look", "x", "--lens", "bad"),
    ("look", "x", "--layers", "9-1"),
    ("look", "--prompts", "/nosuch"),
    ("read", "--text", __file__, "--out", "OUT", "--stats", "bad"),
    ("read", "--text", __file__, "--out", "OUT", "--lens", "bad"),
    ("read", "--text", __file__, "--out", "OUT", "--layers", "bad"),
    ("lens", "show", "bad"),
    ("exits", "train", "--out", "OUT/heads.safetensors", "--text", "/nosuch"),
    ("exits", "adapt", "--out", "OUT", "--text", "/nosuch"),
    ("lens", "train", "--out", "OUT/lens.safetensors", "--text", "/nosuch"),
    ("serve", "--decoder", "bad"),
    ("score", __file__, "--protocol", "bad"),
    ("score", __file__, "--judges", "bad"),
    ("score", "/nosuch"),
    ("plan", "--tokens", "bad"),
    ("plan", "--tokens", "5", "--stats", "bad"),
    ("plan", "--tokens", "5", "--layers", "bad"),
    ("plan", "--tokens", "5", "--card", "bad"),
    ("plan", "--tokens", "5", "--params", "33B"),
    ("plan", "--tokens", "5", "--model", "bad"),
    ("score", __file__, "--data", "/nosuch"),
]
HELP = [
    (*command, "--help")
    for command in [
        (), ("run",), ("look",), ("read",), ("lens",), ("lens", "train"), ("layers",), ("entropy",), ("decoding",),
        ("probe",), ("probe", "predict"), ("exits",), ("exits", "train"), ("exits", "adapt"), ("generate",),
        ("score",), ("serve",), ("models",), ("models", "check"), ("plan",),
    ]
]  # fmt: skip

SCRIPT = f"""
import contextlib, io, json, sys
from exitlens.cli import main
found = []
for args in json.loads(sys.stdin.read()):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        code = main(args)
    found.append([code, said.getvalue(), [name for name in {HEAVY!r} if name in sys.modules]])
print(json.dumps(found))
"""


@pytest.mark.parametrize(("cases", "code"), [(REFUSED, 2), (HELP, 0)], ids=["refused", "help"])
def test_nothing_large_is_imported(cases: list[tuple[str, ...]], code: int, tmp_path: Path) -> None:
    """In one process, so that what a case imports is seen at it and at every later one: the first is to blame."""
    given = [[arg.replace("OUT", str(tmp_path / "out")) for arg in case] for case in cases]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(given), capture_output=True, text=True, check=True, timeout=120
    )
    for case, (ended, said, heavy) in zip(cases, json.loads(done.stdout), strict=True):
        assert ended == code, (case, said)
        assert not heavy, (case, said)


def test_every_name_of_a_registry_is_the_name_of_what_it_loads() -> None:
    assert [kind.name for kind in KINDS.values()] == list(KINDS)
    given = {"static": "static:1"}
    assert [parse_decoder(given.get(name, name)).name.partition(":")[0] for name in decoder_names()] == [
        *decoder_names()
    ]
    assert list(PROTOCOLS) == list(get_args(ScoringProtocol))
    for name in JUDGES:
        assert parse_judge(name.partition("[")[0])[0] == name.partition(":")[0].partition("[")[0]


@pytest.mark.parametrize("name", [name for name in PROBE_PROTOCOLS if name != "transfer"])
def test_every_protocol_that_is_named_is_known_where_rows_are_split(name: str) -> None:
    """These rows are too few for any of them; what is refused is never the name."""
    data = make_data(np.zeros((1, 4, 2), dtype=np.float32), np.array([0, 1, 0, 1]))
    with pytest.raises(ProbeError) as refused:
        make_split(data, name)
    assert "unknown protocol" not in str(refused.value)


LAZY = sorted(path.parent for path in SOURCE.rglob("__init__.py") if "lazy_names(" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", LAZY, ids=lambda path: path.name)
def test_a_lazy_room_shows_type_checkers_the_names_that_it_loads(folder: Path) -> None:
    name = ".".join(["exitlens", *folder.relative_to(SOURCE).parts])
    package = import_module(name)
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {public: f"{name}.{home}" for public, home in package._HOME.items()}
    for public in package.__all__:
        assert getattr(package, public) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_rooms_are_lazy() -> None:
    assert {folder.name for folder in LAZY} == {
        "contrast",
        "data",
        "decoding",
        "exits",
        "lenses",
        "models",
        "probes",
        "scoring",
    }

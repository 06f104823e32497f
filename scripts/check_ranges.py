"""Do the ranges in pyproject.toml hold at both ends? ``python scripts/check_ranges.py [--python 3.11]``.

Resolves (installs nothing) the required dependencies with each at its floor exactly, and at the newest versions, by
``uv`` (``pip install uv``). A floor that cannot be installed beside the others misleads whoever reads it. To run the
tests there too, ``--write FOLDER`` leaves ``floors.txt`` and ``newest.txt``, each for ``pip install -r``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def requirements() -> list[str]:
    """The required dependencies, as they are written in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def at_floor(requirement: str) -> str:
    """``name>=1.2`` as ``name==1.2``; raises ValueError for a requirement without a floor."""
    found = re.fullmatch(r"([A-Za-z0-9_.\-\[\]]+)\s*>=\s*([0-9][0-9a-z.]*)(?:\s*,.*)?", requirement.strip())
    if found is None:
        raise ValueError(f"'{requirement}' has no floor: write it as name>=version")
    return f"{found[1]}=={found[2]}"


def resolve(wanted: list[str], python: str) -> str:
    """What uv would install for ``wanted``; raises CalledProcessError with its explanation."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--python-version", python, "--no-annotate", "-q"]
    done = subprocess.run(command, input="\n".join(wanted), text=True, capture_output=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"error: these cannot be installed together:\n{done.stderr.strip()}")
    return done.stdout


def main() -> None:
    """Resolve both ends, and say how many packages each takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.11", help="version of Python to resolve for")
    parser.add_argument("--write", type=Path, help="folder for floors.txt and newest.txt")
    given = parser.parse_args()
    ends = {"floors": [at_floor(one) for one in requirements()], "newest": requirements()}
    for name, wanted in ends.items():
        found = resolve(wanted, given.python)
        count = sum(1 for line in found.splitlines() if "==" in line)
        print(f"{name}: resolved for Python {given.python}, {count} packages")
        if given.write is not None:
            given.write.mkdir(parents=True, exist_ok=True)
            (given.write / f"{name}.txt").write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()

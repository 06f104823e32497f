"""Do the ranges in pyproject.toml hold at both ends? ``python scripts/check_ranges.py [--python 3.11]``.

Resolves (installs nothing) the required dependencies with each at its floor exactly, and at the newest versions, by
``uv`` (``pip install uv``); then the same with the requirements of each extra. A floor that cannot be installed beside
the others misleads whoever reads it. To run the tests there too, ``--write FOLDER`` leaves ``floors.txt`` and
``newest.txt`` (and ``floors-ray.txt``, ...), each for ``pip install -r``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def requirements() -> dict[str, list[str]]:
    """What pyproject.toml asks for: the required dependencies under ``""``, and with each extra under its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = list(project["dependencies"])
    return {"": needed} | {name: needed + more for name, more in project["optional-dependencies"].items()}


def at_floor(requirement: str) -> str:
    """``name>=1.2`` as ``name==1.2``; raises ValueError for a requirement without a floor."""
    found = re.fullmatch(r"([A-Za-z0-9_.\-\[\]]+)\s*>=\s*([0-9][0-9a-z.]*)(?:\s*,.*)?", requirement.strip())
    if found is None:
        raise ValueError(f"'{requirement}' has no floor: write it as name>=version")
    return f"{found[1]}=={found[2]}"


def resolve(wanted: list[str], python: str) -> str | None:
    """What uv would install for ``wanted``; None, and its explanation printed, where that cannot be."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--python-version", python, "--no-annotate", "-q"]
    done = subprocess.run(command, input="\n".join(wanted), text=True, capture_output=True, check=False, cwd=ROOT)
    if done.returncode:
        print(f"error: these cannot be installed together: {', '.join(wanted)}\n{done.stderr.strip()}", flush=True)
        return None
    return done.stdout


def main() -> None:
    """Resolve both ends, and say how many packages each takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.11", help="version of Python to resolve for")
    parser.add_argument("--write", type=Path, help="folder for floors.txt and newest.txt")
    given = parser.parse_args()
    failed = False
    for extra, wanted in requirements().items():
        for end, asked in (("floors", [at_floor(one) for one in wanted]), ("newest", wanted)):
            name = f"{end}-{extra}" if extra else end
            found = resolve(asked, given.python)
            if found is None:
                failed = True
                continue
            count = sum(1 for line in found.splitlines() if "==" in line)
            print(f"{name}: resolved for Python {given.python}, {count} packages", flush=True)
            if given.write is not None:
                given.write.mkdir(parents=True, exist_ok=True)
                (given.write / f"{name}.txt").write_text(found, encoding="utf-8")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()

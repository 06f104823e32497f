"""Are the built packages whole? `python scripts/package_files.py dist` ends with 1 and a line where they are not.

The wheel must hold every file of src/exitlens (the component, templates, built-in data, py.typed), and the source
archive every file that git knows, so that its tests run as those of a checkout.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def missing(dist: Path) -> list[str]:
    """Files that should be in a package of the folder ``dist`` and are not, each with the package's name.

    Args:
        dist: Where `python -m build` put one wheel and one source archive.

    Returns:
        Lines, none if both are whole.
    """
    [wheel], [source] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    # Whoever owns the checkout: git refuses another user's.
    listing = ["git", "-c", f"safe.directory={ROOT}", "ls-files"]
    known = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    with tarfile.open(source) as archive:
        sent = {name.partition("/")[2] for name in archive.getnames()}
    package = [name.removeprefix("src/") for name in known if name.startswith("src/exitlens/")]
    return [
        *(f"{wheel.name}: {name}" for name in package if name not in packed),
        *(f"{source.name}: {name}" for name in known if name not in sent),
    ]


if __name__ == "__main__":
    found = missing(Path(sys.argv[1]))
    if found:
        sys.exit("not in the packages:\n" + "\n".join(found))

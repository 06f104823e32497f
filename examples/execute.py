"""Execute notebooks and keep their outputs: ``python examples/execute.py [NAME.ipynb …] [--out FOLDER]``.

Each runs in an empty folder, in its order, with one thread. What is kept: sources, outputs, and a hash of the code
cells, by which a test sees that the outputs belong to them. Without ``--out`` the notebooks are written in place.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def notebooks() -> list[Path]:
    """All of them, in the order in which they are read."""
    return sorted(HERE.glob("*.ipynb"))


def sources_mark(notebook: Any) -> str:
    """A hash of the code cells' sources."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode("utf-8")).hexdigest()


def executed(path: Path) -> Any:
    """The notebook at ``path`` with fresh outputs and without times, machine or editor in its metadata.

    Raises:
        CellExecutionError: A cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    # Figures are shown in the notebook whatever backend the caller's environment names.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # the last bits of a sum depend on the number of threads
        os.environ[name] = "1"
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=600, startup_timeout=300, kernel_name="python3", resources=place, coalesce_streams=True
        )
        client.execute()
    return cleaned(notebook)


def cleaned(notebook: Any) -> Any:
    """The notebook with metadata that say what it is and nothing of where it was executed."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "exitlens": {"sources": sources_mark(notebook)},
    }
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = {}
    return notebook


def main() -> None:
    """See the module."""
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks; none: all")
    parser.add_argument("--out", type=Path, default=HERE, help="where they are written")
    asked = parser.parse_args()
    known = {path.name: path for path in notebooks()}
    unknown = [name for name in asked.names if name not in known]
    if unknown:
        parser.error(f"no notebook '{unknown[0]}': there are {', '.join(known)}")
    for name in asked.names or known:
        nbformat.write(executed(known[name]), asked.out / name)


if __name__ == "__main__":
    main()

"""The documentation site: ``make docs`` builds it into build/site, and any warning is an error.

Its pages ask no other host for anything: no web fonts, no CDN; they open from a folder without a network.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import exitlens

# Imported as any program imports it, before autodoc does so with typing.TYPE_CHECKING set, which pydantic cannot take.
for name in exitlens.__all__:
    getattr(exitlens, name)

# Notebooks stand beside the code that they show. Sphinx reads only below this folder, so it gets copies.
_HERE = Path(__file__).parent
_COPIES = _HERE / "notebooks"
_COPIES.mkdir(exist_ok=True)
_sources = {path.name: path.read_bytes() for path in sorted((_HERE.parent / "examples").glob("*.ipynb"))}
for copy in _COPIES.glob("*.ipynb"):
    if copy.name not in _sources:
        copy.unlink()
for file, content in _sources.items():
    copy = _COPIES / file
    if not copy.exists() or copy.read_bytes() != content:  # a page that did not change is not built again
        copy.write_bytes(content)

project = "exitlens"
author = "the exitlens authors"
version = release = importlib.metadata.version("exitlens")
html_title = f"exitlens {version}"

extensions = [
    "myst_nb",  # Markdown pages, and notebooks as pages
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # Google-style docstrings
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["notebooks.css"]

myst_enable_extensions = ["colon_fence"]
highlight_language = "none"
myst_heading_anchors = 4
# Notebooks are executed by the tests, never while the pages are built: what stands in them is what was seen.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

"""Notebooks in a real browser: exports of nbconvert and marimo without a kernel; JupyterLab and marimo live."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELL = """
from tests.browser.test_map import a_map
from exitlens.report.notebook import Drawing, Shape
from exitlens.report.widget import ViewWidget
drawing = Drawing(Shape([a_map(title="in a notebook")], "<table><tr><td>static</td></tr></table>"), "a map")
"""

CHOICES = """
from tests.browser.run_tables import run_tables
from exitlens.report.frames import Results
from exitlens.studies.layers.views import run_views
ViewWidget.of(run_views(Results(run_tables()))[0])
"""


def needs(*names: str) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        pytest.skip(f"pip install {' '.join(missing)}")


def notebook(path: Path, *cells: str) -> Path:
    made = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
        for i, text in enumerate(cells)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": made}))
    return path


def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', root / 'src')}"}


def drawn_in(page: Any) -> None:
    """A frame of the page holds a map that is drawn: its canvas has cells, and its panel says where."""
    for _ in range(100):
        for frame in page.frames:
            where = frame.locator(".where")
            if where.count() and "After" in (where.first.text_content() or ""):
                assert frame.locator("canvas.cells").first.bounding_box() is not None
                return
        page.wait_for_timeout(200)
    raise AssertionError("no frame of the page shows the map")


def test_an_executed_notebook_stands_as_html_without_a_kernel(visit: Callable[..., Any], tmp_path: Path) -> None:
    needs("nbconvert", "ipykernel")
    source = notebook(tmp_path / "n.ipynb", CELL + "drawing", CELL + "ViewWidget.of(a_map(title='a widget'))")
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--execute", str(source)]
    subprocess.run(command, check=True, env=environment(), cwd=tmp_path, capture_output=True, timeout=240)
    made = visit(tmp_path / "n.html")
    drawn_in(made.page)
    # The widget's frame too: without a kernel it is what there is.
    framed = made.page.locator("iframe")
    assert framed.count() == 2
    framed.last.scroll_into_view_if_needed()
    framed.last.content_frame.locator(".where").wait_for(timeout=20_000)


def marimo_notebook(path: Path) -> Path:
    body = "\n".join(f"    {line}" for line in (CELL + "drawing").strip().splitlines())
    path.write_text(f"import marimo\n\napp = marimo.App()\n\n\n@app.cell\ndef _():\n{body}\n    return\n")
    return path


def test_marimo_exports_the_map(tmp_path: Path) -> None:
    needs("marimo")
    marimo_notebook(tmp_path / "m.py")
    command = [sys.executable, "-m", "marimo", "export", "html", "m.py", "-o", "m.html"]
    subprocess.run(command, check=True, env=environment(), cwd=tmp_path, capture_output=True, timeout=240)
    # marimo's own page comes from its CDN; what we hand it is in the file whole.
    assert "in a notebook" in (tmp_path / "m.html").read_text(encoding="utf-8")
    assert "srcdoc" in (tmp_path / "m.html").read_text(encoding="utf-8")


@contextmanager
def serving(folder: Path, path: str, *arguments: str) -> Iterator[str]:
    """The address of a notebook server that answers at ``path``; ``{port}`` in an argument is its port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    command = [sys.executable, "-m", *(each.replace("{port}", port) for each in arguments)]
    with subprocess.Popen(
        command, env=environment(), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


def test_marimo_shows_the_map_live(chromium: Any, tmp_path: Path) -> None:
    needs("marimo")
    marimo_notebook(tmp_path / "m.py")
    options = ("--headless", "--no-token", "--host", "127.0.0.1", "--port", "{port}")
    with serving(tmp_path, "/health", "marimo", "run", "m.py", *options) as address:
        page = chromium.new_context(viewport={"width": 1400, "height": 1000}).new_page()
        page.goto(address)
        page.locator("iframe").first.wait_for(timeout=60_000)
        drawn_in(page)
        page.context.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    needs("jupyterlab", "ipykernel")
    options = ("--port={port}", "--no-browser", "--IdentityProvider.token=", "--ServerApp.password=", "--allow-root")
    with serving(tmp_path, "/api", "jupyterlab", *options, f"--ServerApp.root_dir={tmp_path}") as address:
        yield address


def test_jupyterlab_shows_frame_and_widget_live(chromium: Any, lab: str, tmp_path: Path) -> None:
    notebook(tmp_path / "n.ipynb", CELL + "drawing", "w = ViewWidget.of(a_map(title='a widget'))\nw", CHOICES)
    page = chromium.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto(f"{lab}/lab/tree/n.ipynb")
    page.locator(".jp-Notebook").wait_for(timeout=60_000)
    page.wait_for_timeout(3000)
    page.keyboard.press("Escape")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    drawn_in(page)
    widget = page.locator(".jp-OutputArea .where")
    widget.first.wait_for(timeout=60_000)
    assert "layer 4" in widget.first.text_content()
    # What a reader types into a view is no command of the notebook (d d: the cell is gone, a: one more).
    search = page.locator(".jp-OutputArea input[type=search]")
    search.click()
    page.keyboard.type("add b")
    assert search.input_value() == "add b"
    assert page.locator(".jp-Notebook .jp-Cell").count() == 3
    # Where the widgets live, the frames beside them are not shown.
    framed = page.locator(".jp-OutputArea iframe")
    assert [framed.nth(i).bounding_box() is None for i in range(framed.count())] == [False, True, True]
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    page.locator(".jp-OutputArea .view[data-theme=dark]").last.wait_for(timeout=10_000)
    page.context.close()

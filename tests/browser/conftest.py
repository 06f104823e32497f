"""A real browser: Debian's Chromium, driven by Playwright, offline. Without one the tests say how to install it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.run_tables import comparison_report, run_directory

ROOT = Path(__file__).parents[2]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
INSTALL = "no browser was found: apt-get install chromium (Debian), or put chromium or google-chrome on the PATH"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip(INSTALL)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, and everything that went wrong in it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.faults: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", lambda line: self.faults.append(line.text) if line.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def all_drawn(self) -> None:
        """Draws every view of the page, also those out of sight."""
        self.page.evaluate("exitlens.start(); Promise.all([...exitlens.handles.values()].map((h) => h.ready))")
        self.page.wait_for_timeout(250)

    def axe(self) -> list[str]:
        """What axe-core finds, a line each."""
        if not AXE.exists():
            pytest.skip("axe-core is not installed: (cd web && npm ci)")
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document)")["violations"]
        return [f"{each['id']}: {node['target']} {node['failureSummary']}" for each in found for node in each["nodes"]]


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def go(path: Path | str, *, dark: bool = False, width: int = 1200, scripts: bool = True, **more: Any) -> Visit:
        context = chromium.new_context(
            offline=True,
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": 800},
            java_script_enabled=scripts,
            **more,
        )
        contexts.append(context)
        made = Visit(context.new_page())
        made.page.goto(path if isinstance(path, str) else path.as_uri())
        return made

    yield go
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a made-up run with every study, hostile texts in every place."""
    return run_directory(tmp_path_factory.mktemp("run")) / "report.html"


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two made-up runs side by side."""
    return comparison_report(tmp_path_factory.mktemp("comparison"))

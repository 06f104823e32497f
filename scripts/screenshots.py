"""The pictures of docs/figures/views, made again: each view, light and dark, on a desktop and on a phone.

    exitlens run --out RUN; exitlens lens compare --out LENSES; exitlens compare RUN OTHER --out COMPARED
    exitlens serve --port 8765 &
    python scripts/screenshots.py RUN LENSES COMPARED --live http://127.0.0.1:8765

Whatever is left out keeps its pictures. Needs a Chromium, as the tests in tests/browser do.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).parents[1] / "docs" / "figures" / "views"
TEXT = "The capital of France is Paris, and the capital of Germany is"
MODES = [(scheme, phone) for phone in (False, True) for scheme in ("light", "dark")]
MOST = {False: 1250, True: 1500}  # pixels of height: a screen or two
COLOURS = 96  # a picture of a page has few, and half of the bytes with a palette


def keep(picture: bytes, name: str, scheme: str, phone: bool) -> None:
    """Write a picture, as small as it can be read."""
    found = Image.open(io.BytesIO(picture)).convert("RGB")
    found = found.crop((0, 0, found.width, min(found.height, MOST[phone])))
    made = found.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    made.save(HERE / f"{name}-{scheme}{'-phone' if phone else ''}.png", optimize=True)


def tab(browser: Any, scheme: str, phone: bool, **more: Any) -> Any:
    """A page of the size and scheme."""
    size = {"width": 390, "height": 844} if phone else {"width": 1200, "height": 900}
    return browser.new_context(viewport=size, color_scheme=scheme, **more).new_page()


def views(browser: Any, path: Path) -> None:
    """Every view of a file, named after its kind; of several of a kind the first."""
    for scheme, phone in MODES:
        page = tab(browser, scheme, phone, offline=True)
        page.goto(path.resolve().as_uri())
        page.evaluate("exitlens.start(); Promise.all([...exitlens.handles.values()].map((h) => h.ready))")
        page.wait_for_timeout(600)
        seen: set[str] = set()
        for element in page.query_selector_all(".exitlens-view"):
            source = page.evaluate(
                "(id) => document.getElementById(id).textContent", element.get_attribute("data-view")
            )
            kind = json.loads(source)["kind"]
            if kind not in seen:
                seen.add(kind)
                keep(element.screenshot(), kind, scheme, phone)
        page.context.close()


def live(browser: Any, address: str) -> None:
    """Two decoders answering one question on a live page."""
    for scheme, phone in MODES:
        page = tab(browser, scheme, phone, bypass_csp=True)  # its policy evaluates no text, ours here neither
        page.goto(address)
        page.wait_for_function("document.querySelector('#model').textContent")
        page.fill("#prompt", "How many legs does a spider have?")
        page.fill("#tokens", "12")
        page.fill("#other", "dola:low")
        page.click("#send")
        states = "[...document.querySelectorAll('#compared td:last-child')].map((cell) => cell.textContent)"
        ended = f"(told => told.length === 2 && !told.some((one) => /written|turn/.test(one)))({states})"
        page.wait_for_function(ended, timeout=300_000)
        page.wait_for_timeout(1_000)
        keep(page.screenshot(full_page=True), "live", scheme, phone)
        page.context.close()


def main() -> None:
    """See the module."""
    from playwright.sync_api import sync_playwright

    import exitlens

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run directories, with their report.html")
    parser.add_argument("--live", metavar="URL", help="of a running exitlens serve")
    asked = parser.parse_args()
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        parser.error("no browser was found: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        seen = exitlens.load("smollm2-135m").look(TEXT).show().save(Path(folder) / "map.html")
        for path in (seen, *(run / "report.html" for run in asked.runs)):
            views(browser, path)
        if asked.live:
            live(browser, asked.live)
        browser.close()


if __name__ == "__main__":
    main()

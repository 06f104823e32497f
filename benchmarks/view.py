"""How fast the views are in a real browser, and how large: prints the table of docs/views.md.

    python benchmarks/view.py

Headless Chromium (`apt-get install chromium`), offline, on made-up data of the sizes that are promised. First paint
runs from the call of `mount` to the end of the first frame; a pointer's response from the event to the end of the
frame that shows it, without the wait for that frame; scrolling is the work in each frame while the map moves.
"""

from __future__ import annotations

import gzip
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from exitlens.lenses.trace import Trace
from exitlens.report.view_data import View
from exitlens.report.view_page import component, page
from exitlens.report.view_trace import trace_view

REPEATS = 7
PAINT = """async () => {
  const view = JSON.parse(document.getElementById('view-1').textContent);
  const element = document.createElement('div');
  document.querySelector('main').prepend(element);
  const start = performance.now();
  const handle = exitlens.mount(element, view);
  await handle.ready;
  const end = performance.now();
  await new Promise(requestAnimationFrame);
  handle.destroy(); element.remove();
  return end - start;
}"""
# The component asks for its frame before we ask for ours, so ours begins when its work is done.
POINTER = """async () => {
  exitlens.start();
  const root = document.querySelector('.exitlens-view').shadowRoot;
  const grid = root.querySelector('.grid');
  const box = grid.getBoundingClientRect();
  const out = [];
  for (let i = 0; i < 60; i++) {
    const clientX = box.left + 60 + (i * 37) % (box.width - 80);
    const clientY = box.top + 40 + (i * 53) % (box.height - 60);
    const start = performance.now();
    grid.dispatchEvent(new PointerEvent('pointermove', { clientX, clientY, pointerType: 'mouse', bubbles: true }));
    const handled = performance.now() - start;
    const drawn = await new Promise((done) => requestAnimationFrame((frame) => done(performance.now() - frame)));
    out.push(handled + drawn);
  }
  return out;
}"""
SCROLL = """async () => {
  exitlens.start();
  const grid = document.querySelector('.exitlens-view').shadowRoot.querySelector('.grid');
  const out = [];
  for (let i = 0; i < 90; i++) {
    grid.scrollLeft = i * 160;
    await new Promise((done) => requestAnimationFrame(() => done()));
    out.push(await new Promise((done) => requestAnimationFrame((frame) => done(performance.now() - frame))));
  }
  return out;
}"""


def a_map(positions: int, layers: int = 41) -> View:
    """A text of so many tokens with top-5, entropy, KL and rank; tokens repeat as those of texts do."""
    rng = np.random.default_rng(0)
    shape = (1, layers, positions)
    ids = np.minimum(rng.zipf(1.35, size=(*shape, 5)), 19_999)
    logits = np.sort(rng.gumbel(size=(*shape, 5)) * 2)[..., ::-1]
    values: dict[str, np.ndarray] = {
        "top_ids": ids.astype(np.int64),
        "top_logprobs": (logits - np.log(np.exp(logits).sum(-1, keepdims=True)) - 0.1).astype(np.float32),
        "entropy": rng.gamma(2, 1.5, size=shape).astype(np.float32),
        "kl": rng.gamma(1, 2, size=shape).astype(np.float32),
        "rank": np.minimum(rng.zipf(1.3, size=shape), 50_000).astype(np.int64),
    }
    words = {int(i): f" w{int(i):x}" for i in np.unique(ids)}
    text = tuple(int(i) for i in ids[0, 0, :, 0])
    tokens = (tuple(words[i] for i in text),)
    return trace_view(Trace(values, tuple(range(layers)), "logit", "made up", (text,), tokens, vocabulary=words))


def spread(values: list[float]) -> str:
    """Median and the 95th of a hundred."""
    return f"{statistics.median(values):.1f} ms (95%: {np.percentile(values, 95):.1f} ms)"


def main() -> None:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("no browser was found: apt-get install chromium")
    script = component().encode()
    rows = [("bundle", "60 kB, 20 kB gzip", f"{len(script):,} bytes, {len(gzip.compress(script, 9)):,} gzip")]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])

        def visit(positions: int) -> tuple[Any, int]:
            path = Path(folder) / f"{positions}.html"
            path.write_text(page([a_map(positions)]), encoding="utf-8")
            tab = browser.new_context(offline=True, viewport={"width": 1400, "height": 1000}).new_page()
            tab.goto(path.as_uri())
            tab.wait_for_timeout(500)
            return tab, path.stat().st_size

        tab, size = visit(200)
        rows.append(("file, 200 tokens × 40 layers", "300 kB", f"{size:,} bytes"))
        paints = [tab.evaluate(PAINT) for _ in range(REPEATS)]
        rows.append(("first paint, 40 × 200", "100 ms", spread(paints)))
        rows.append(("pointer, 40 × 200, six linked views", "16 ms", spread(tab.evaluate(POINTER))))
        tab, size = visit(4096)
        rows.append(("file, 4,096 tokens × 40 layers", "–", f"{size:,} bytes"))
        rows.append(("frame while scrolling, 40 × 4,096", "16 ms", spread(tab.evaluate(SCROLL))))
        browser.close()
    print("| what | promised | measured |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()

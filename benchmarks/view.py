"""How fast the views are in a real browser, and how large: prints the table of docs/views.md.

    python benchmarks/view.py
    python benchmarks/view.py --report exitlens-run/report.html   # of a run with the layer study

Headless Chromium (`apt-get install chromium`), offline, on made-up data of the sizes that are promised. A frame ends
when the browser has laid it out and painted it, not when our code returns. First paint runs from the call of `mount` to
the end of its frame; opening, from the request for the file to the end of the frame that shows its map. A pointer's
response runs from the event to the end of the frame in which cell, panel and four curves show it, without the wait for
that frame to begin; while scrolling, the time from one frame to the next is measured: at 60 frames a second
none is longer than 16.7 ms.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from exitlens.lenses.trace import Trace
from exitlens.report.view_data import View
from exitlens.report.view_page import component, page
from exitlens.report.view_trace import trace_view

REPEATS = 7
# The work of a frame: from its first callback to the message that is read once it is painted. What `work` makes the
# component ask for comes between the two, and so do style, layout and painting.
FRAME = """
const frameOf = (work) => new Promise((done) => {
  let begun = 0;
  requestAnimationFrame(() => { begun = performance.now(); });
  const start = performance.now();
  work();
  const handled = performance.now() - start;
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => done(handled + performance.now() - begun);
    channel.port2.postMessage(0);
  });
});
"""
OPENED = f"""
{FRAME}
(async () => {{
  const there = () => globalThis.exitlens?.handles?.get('view-1')?.sheets().length;
  while (!there()) await new Promise(requestAnimationFrame);
  await frameOf(() => {{}});
  globalThis.opened = performance.now();
}})();
"""
PAINT = f"""async () => {{
  {FRAME}
  const view = JSON.parse(document.getElementById('view-1').textContent);
  const element = document.createElement('div');
  document.querySelector('main').prepend(element);
  await frameOf(() => {{}});
  const start = performance.now();
  const handle = exitlens.mount(element, view);
  await handle.ready;
  await frameOf(() => {{}});
  const end = performance.now();
  handle.destroy(); element.remove();
  return end - start;
}}"""
POINTER = f"""async () => {{
  {FRAME}
  exitlens.start();
  const root = document.querySelector('.exitlens-view').shadowRoot;
  const grid = root.querySelector('.grid');
  const box = grid.getBoundingClientRect();
  const where = root.querySelector('.where');
  const out = [];
  for (let i = 0; i < 60; i++) {{
    const before = where.textContent;
    const clientX = box.left + 60 + (i * 37) % (box.width - 80);
    const clientY = box.top + 40 + (i * 53) % (box.height - 60);
    const move = new PointerEvent('pointermove', {{ clientX, clientY, pointerType: 'mouse', bubbles: true }});
    out.push(await frameOf(() => grid.dispatchEvent(move)));
    if (where.textContent === before) throw new Error('the pointer moved and nothing followed');
  }}
  return out;
}}"""
SCROLL = """async () => {
  exitlens.start();
  const grid = document.querySelector('.exitlens-view').shadowRoot.querySelector('.grid');
  const out = [];
  let before = await new Promise(requestAnimationFrame);
  for (let i = 1; i <= 120; i++) {
    grid.scrollLeft = i * 160;
    const frame = await new Promise(requestAnimationFrame);
    out.push(frame - before);
    before = frame;
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


def report_rows(browser: Any, path: Path) -> list[tuple[str, str, str]]:
    """A report opened until its first question is shown, its questions searched and filtered, in a new window each."""
    times: dict[str, list[float]] = {"opened": [], "searched": [], "filtered": []}
    listed = 0
    for _ in range(REPEATS):
        tab = browser.new_context(offline=True, viewport={"width": 1200, "height": 800}).new_page()
        view = tab.locator("[data-view=layers-1]")
        start = time.perf_counter()
        tab.goto(path.resolve().as_uri(), wait_until="commit")
        view.locator(".big").wait_for()
        times["opened"].append(1000 * (time.perf_counter() - start))
        said = view.get_by_role("status").filter(has_text=" of ")
        listed = int(str(said.text_content()).split(" of ")[1].split()[0])
        for name, act in (
            ("searched", lambda view=view: view.get_by_role("searchbox").fill("qqq")),
            ("filtered", lambda view=view: view.get_by_role("button", name="Incorrect", exact=True).click()),
        ):
            start = time.perf_counter()
            act()
            said.filter(has_text=f"{listed} questions").wait_for()
            times[name].append(1000 * (time.perf_counter() - start))
            view.get_by_role("searchbox").fill("")
        tab.context.close()
    return [
        (f"report of {listed} questions", "5 MB", f"{path.stat().st_size:,} bytes"),
        ("opened until the first question is shown", "2 s", spread(times["opened"])),
        ("questions searched", "–", spread(times["searched"])),
        ("questions filtered", "–", spread(times["filtered"])),
    ]


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, help="measure this report of a run only")
    report = parser.parse_args().report
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("no browser was found: apt-get install chromium")
    script = component().encode()
    rows = [("bundle", "60 kB, 20 kB gzip", f"{len(script):,} bytes, {len(gzip.compress(script, 9)):,} gzip")]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        if report is not None:
            told(report_rows(browser, report))
            return

        def visit(positions: int) -> tuple[Any, int]:
            path = Path(folder) / f"{positions}.html"
            path.write_text(page([a_map(positions)]), encoding="utf-8")
            tab = browser.new_context(offline=True, viewport={"width": 1400, "height": 1000}).new_page()
            tab.add_init_script(OPENED)
            tab.goto(path.as_uri())
            while not tab.evaluate("globalThis.opened ?? 0"):
                tab.wait_for_timeout(100)
            tab.wait_for_timeout(500)
            return tab, path.stat().st_size

        tab, size = visit(200)
        rows.append(("file, 200 tokens × 40 layers", "300 kB", f"{size:,} bytes"))
        paints = [tab.evaluate(PAINT) for _ in range(REPEATS)]
        rows.append(("first paint, 40 × 200", "100 ms", spread(paints)))
        opened = [visit(200)[0].evaluate("globalThis.opened") for _ in range(REPEATS)]
        rows.append(("file opened until its map is painted, 40 × 200", "–", spread(opened)))
        rows.append(("pointer, 40 × 200, six linked views", "16 ms", spread(tab.evaluate(POINTER))))
        tab, size = visit(4096)
        rows.append(("file, 4,096 tokens × 40 layers", "–", f"{size:,} bytes"))
        rows.append(
            ("from frame to frame while scrolling, 40 × 4,096", "16.7 ms: 60 a second", spread(tab.evaluate(SCROLL)))
        )
        browser.close()
    told(rows)


def told(rows: list[tuple[str, str, str]]) -> None:
    """The rows as a table."""
    print("| what | promised | measured |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()

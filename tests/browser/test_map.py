"""The map in a real browser: keys, cells that keep to themselves, state in the address, bad views."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exitlens.report.view_data import View, quantised, view
from exitlens.report.view_page import frame, page
from tests.browser.run_tables import HOSTILE
from tests.damaged_views import DAMAGES, TITLE, damaged

pytestmark = pytest.mark.browser


def words(values: np.ndarray) -> np.ndarray:
    return values.astype(object)


def a_map(layers: int = 5, positions: int = 8, odd: str | None = None, title: str = "a map", **more: Any) -> View:
    rng = np.random.default_rng(0)
    top = np.full((1, layers, positions, 3), " a", dtype=object)
    top[..., 1], top[..., 2] = HOSTILE[0], HOSTILE[4]
    if odd is not None:
        top[0, 2, 3, 0] = odd
    p = np.sort(rng.dirichlet(np.ones(3), size=(1, layers, positions)), axis=-1)[..., ::-1]
    arrays = {
        "lenses": words(np.array(["logit"])),
        "layers": np.arange(layers),
        "tokens": words(np.array([f"t{i}" for i in range(positions)])),
        "top": top,
        "top_p": quantised(p),
        "entropy": quantised(rng.random((1, layers, positions))),
        **more,
    }
    return view("map", arrays, title=title)


def write(path: Path, made: View, static: str = "") -> Path:
    path.write_text(page([made], static=static), encoding="utf-8", errors="replace")
    return path


def test_keys_go_from_cell_to_cell_and_enter_keeps_one(visit: Callable[..., Any], tmp_path: Path) -> None:
    made = visit(write(tmp_path / "a.html", a_map()))
    made.all_drawn()
    grid = made.page.locator(".grid")
    where = made.page.locator(".where")
    grid.focus()
    for key, wanted in (("Home", "t0 (0), layer 4"), ("PageDown", "t0 (0), layer 0"), ("ArrowRight", "t1 (1), layer 0"),
                        ("ArrowUp", "t1 (1), layer 1"), ("End", "t7 (7), layer 1"), ("PageUp", "t7 (7), layer 4"),
                        ("ArrowLeft", "t6 (6), layer 4"), ("ArrowDown", "t6 (6), layer 3")):  # fmt: skip
        grid.press(key)
        made.page.wait_for_timeout(60)
        assert wanted in where.text_content(), key
    grid.press("Enter")
    assert made.page.evaluate("exitlens.handles.get('view-1').state().at") == [3, 6]
    assert "layer 3" in made.page.locator("[role=status]").first.text_content().lower()
    assert made.faults == []


@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 1200), (False, 360)])
def test_axe_finds_nothing(visit: Callable[..., Any], tmp_path: Path, dark: bool, width: int) -> None:
    made = visit(write(tmp_path / "a.html", a_map(title=HOSTILE[0])), dark=dark, width=width)
    made.all_drawn()
    made.page.locator(".menu summary").click()
    made.page.locator("details.tables > summary").click()
    assert made.axe() == []
    assert made.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("odd", [*HOSTILE, "\ud800", "שלום עולם ארוך", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L", "﷽" * 4])
def test_a_token_keeps_to_its_cell(visit: Callable[..., Any], tmp_path: Path, odd: str) -> None:
    """Two maps that differ in one token differ in the pixels of its cell alone, across."""
    pixels = []
    for i, token in enumerate((" a", odd)):
        made = visit(write(tmp_path / f"{i}.html", a_map(odd=token)))
        made.all_drawn()
        script = """() => { const c = document.querySelector('.exitlens-view').shadowRoot.querySelector('canvas');
            return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]] }"""
        width, height, data = made.page.evaluate(script)
        pixels.append(np.array(data, dtype=np.uint8).reshape(height, width, 4))
    changed = np.argwhere((pixels[0] != pixels[1]).any(axis=-1))
    assert len(changed)
    cell = (pixels[0].shape[1] - 34) / 8
    left, right = 34 + 3 * cell, 34 + 4 * cell
    assert changed[:, 1].min() >= np.floor(left)
    assert changed[:, 1].max() < np.ceil(right)


@pytest.mark.parametrize("dark", [False, True])
def test_a_frame_is_as_dark_as_the_notebook_around_it(visit: Callable[..., Any], tmp_path: Path, dark: bool) -> None:
    """Whatever the system prefers, and also when the notebook's theme is switched; elsewhere the system decides."""
    body = f'<body data-jp-theme-light="{str(dark).lower()}">{frame([a_map()])}</body>'
    (tmp_path / "n.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{body}", encoding="utf-8")
    made = visit(tmp_path / "n.html", dark=dark)
    for said, theme in ((str(dark).lower(), not dark), (str(not dark).lower(), dark), ("", dark)):
        made.page.evaluate(f"document.body.dataset.jpThemeLight = '{said}'")
        view = made.page.frames[1].locator(f".view[data-theme={'dark' if theme else 'light'}]")
        view.locator("canvas").wait_for(timeout=10_000)
        paper = made.page.frames[1].evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(21, 25, 30)" if theme else "rgb(255, 255, 255)")
    assert made.faults == []


def test_a_frame_says_that_there_is_more_below(visit: Callable[..., Any], tmp_path: Path) -> None:
    for height, wanted in ((300, "1"), (3000, "0")):
        path = tmp_path / f"{height}.html"
        path.write_text(f"<!DOCTYPE html><meta charset=utf-8>{frame([a_map()], height=height)}", encoding="utf-8")
        made = visit(path)
        made.page.frames[1].locator("canvas").wait_for(timeout=10_000)
        made.page.wait_for_timeout(300)
        hint = "getComputedStyle(document.body, '::after').opacity"
        assert made.page.frames[1].evaluate(hint) == wanted
        made.page.frames[1].evaluate("scrollTo(0, 1e6)")
        made.page.wait_for_timeout(300)
        assert made.page.frames[1].evaluate(hint) == "0"


def test_a_frame_is_as_high_as_its_view(visit: Callable[..., Any], tmp_path: Path) -> None:
    """No scroll bar inside of a page that scrolls, and no empty space: wide, narrow, with its tables open, dark."""
    (tmp_path / "n.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{frame([a_map()])}", encoding="utf-8")
    made = visit(tmp_path / "n.html")
    inside = made.page.frames[1]
    inside.locator("canvas").first.wait_for(timeout=10_000)
    heights = []

    def measured() -> None:
        made.page.wait_for_timeout(400)
        window, whole, body = inside.evaluate(
            "[innerHeight, document.documentElement.scrollHeight, document.body.offsetHeight]"
        )
        assert body <= whole == window < body + 24
        heights.append(window)

    measured()
    made.page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    measured()
    assert inside.evaluate("document.documentElement.dataset.theme") == "dark"
    made.page.set_viewport_size({"width": 420, "height": 700})
    measured()
    inside.locator("summary", has_text="Data as tables").click()
    measured()
    assert heights == sorted(heights)
    made.page.set_viewport_size({"width": 1200, "height": 700})
    measured()
    assert heights[-1] < heights[-2]
    assert made.faults == []


def test_pinned_tokens_and_metric_are_in_the_address(visit: Callable[..., Any], tmp_path: Path) -> None:
    made = visit(write(tmp_path / "a.html", a_map()))
    made.all_drawn()
    made.page.get_by_role("button", name="Entropy").click()
    made.page.locator(".top button").nth(1).click()
    made.page.wait_for_timeout(400)
    again = visit(made.page.url)
    again.all_drawn()
    assert again.page.get_by_role("button", name="Entropy").get_attribute("aria-pressed") == "true"
    assert again.page.evaluate("exitlens.handles.get('view-1').state().pins") == [HOSTILE[0]]


def test_a_view_of_a_newer_form_says_so(visit: Callable[..., Any], tmp_path: Path) -> None:
    text = page([a_map()], static="<table><tr><td>what is there</td></tr></table>")
    path = tmp_path / "a.html"
    path.write_text(text.replace('"version":1', '"version":99'), encoding="utf-8", errors="replace")
    made = visit(path)
    made.all_drawn()
    assert "newer exitlens (form 99" in made.page.locator(".fault").text_content()
    assert made.page.get_by_text("what is there").is_visible()
    assert made.page.locator(".view h2").text_content() == "a map"


def test_damage_is_a_line_whatever_is_damaged(visit: Callable[..., Any], tmp_path: Path) -> None:
    """The views that Python refuses; heading and whatever is not damaged stay."""
    made = visit(write(tmp_path / "a.html", a_map()))
    made.all_drawn()
    shown = made.page.evaluate(
        """async (views) => {
          const found = [];
          for (const view of views) {
            const element = document.body.appendChild(document.createElement("div"));
            await exitlens.mount(element, view).ready;
            const root = element.shadowRoot;
            found.push([root.querySelector(".fault, .note")?.textContent ?? "", root.querySelector("h2")?.textContent]);
            element.remove();
          }
          return found;
        }""",
        [damaged(what) for what in DAMAGES],
    )
    for (what, (_, _, said)), (fault, heading) in zip(DAMAGES.items(), shown, strict=True):
        assert re.search(said, fault), (what, fault)
        assert heading == TITLE, what
    assert made.faults == []


def test_without_scripts_the_table_is_shown(visit: Callable[..., Any], tmp_path: Path) -> None:
    path = write(tmp_path / "a.html", a_map(), static="<table><tr><td>what is there</td></tr></table>")
    made = visit(path, scripts=False)
    assert made.page.get_by_text("what is there").is_visible()


def test_only_columns_in_sight_are_drawn(visit: Callable[..., Any], tmp_path: Path) -> None:
    made = visit(write(tmp_path / "a.html", a_map(layers=40, positions=4096)))
    made.all_drawn()
    script = """() => { const g = document.querySelector('.exitlens-view').shadowRoot.querySelector('.grid');
        const c = g.querySelector('canvas'); return [c.width, g.scrollWidth] }"""
    drawn, whole = made.page.evaluate(script)
    assert drawn <= 1200
    assert whole > 4096 * 50
    made.page.evaluate("document.querySelector('.exitlens-view').shadowRoot.querySelector('.grid').scrollLeft = 1e6")
    made.page.wait_for_timeout(100)
    made.page.locator(".grid").press("End")
    made.page.wait_for_timeout(100)
    assert "t4095 (4095)" in made.page.locator(".where").text_content()


def test_the_data_as_json_are_the_numbers_of_the_view(visit: Callable[..., Any], tmp_path: Path) -> None:
    made = visit(write(tmp_path / "a.html", a_map()))
    made.all_drawn()
    assert json.loads(made.page.evaluate("exitlens.handles.get('view-1').json()"))["kind"] == "map"
    sheet = made.page.evaluate("exitlens.handles.get('view-1').sheets()[0]")
    assert sheet["columns"][:6] == ["lens", "layer", "position", "context", "token", "probability"]
    assert len(sheet["rows"]) == 40

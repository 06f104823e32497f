"""The report in a real browser, from a file, without a network: it is whole, reachable, and nothing hostile runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.run_tables import run_directory

pytestmark = pytest.mark.browser
KINDS = {
    "layers": "choices",
    "decoding": "decoders",
    "entropy": "entropy",
    "probes": "probes",
    "exits": "exits",
    "lenses": "lenses",
}


def test_every_view_is_drawn_and_nothing_is_fetched(visit: Callable[..., Any], report: Path) -> None:
    made = visit(report)
    made.all_drawn()
    wanted = sorted([*(f"{name}-1" for name in KINDS), "layers-2"])
    assert made.page.evaluate("[...exitlens.handles.keys()].sort()") == wanted
    assert made.page.locator(".fault").count() == 0
    for name in KINDS:
        assert made.page.locator(f"[data-view={name}-1] svg.chart").count() > 0, name
    assert made.requests == [report.as_uri()]
    assert made.faults == []


@pytest.mark.parametrize("which", ["report", "comparison"])
@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 1200), (False, 360)])
def test_axe_finds_nothing(
    visit: Callable[..., Any], which: str, dark: bool, width: int, request: pytest.FixtureRequest
) -> None:
    made = visit(request.getfixturevalue(which), dark=dark, width=width)
    made.all_drawn()
    for summary in made.page.locator("details.tables > summary").all():
        summary.click()
    assert made.axe() == []


def test_runs_side_by_side_are_drawn_with_the_axes_of_their_tables(visit: Callable[..., Any], comparison: Path) -> None:
    made = visit(comparison)
    made.all_drawn()
    assert made.page.locator("[data-view=numbers-1] svg.chart").count() == 2
    words = made.page.locator("[data-view=curves-1] svg.chart text").all_text_contents()
    assert {"layer", "share of questions"} <= set(words)
    assert made.faults == []


@pytest.mark.parametrize("width", [1152, 800])
def test_figures_leave_no_gap_between_them(visit: Callable[..., Any], report: Path, width: int) -> None:
    made = visit(report, width=width)
    made.all_drawn()
    seen = made.page.evaluate(
        """() => [...exitlens.handles.keys()].map((id) => {
            const place = document.querySelector(`[data-view="${id}"]`).shadowRoot.querySelector(".columns");
            const tops = [...place.children].map((each) => Math.round(each.getBoundingClientRect().top));
            return [id, [...new Set(tops)].map((top) => tops.filter((each) => each === top).length)];
        })"""
    )
    rows = dict(seen)
    assert rows["layers-2"] == [2, 2]  # attribution: two curves above two matrices
    for name, counts in rows.items():
        assert len(set(counts[:-1])) <= 1, (name, counts)
        assert counts[-1] == counts[0] or sum(counts) % 2, (name, counts)


@pytest.mark.parametrize("which", ["report", "comparison"])
@pytest.mark.parametrize("width", [1200, 390, 360])
def test_hostile_texts_run_nothing_and_break_no_layout(
    visit: Callable[..., Any], which: str, width: int, request: pytest.FixtureRequest
) -> None:
    made = visit(request.getfixturevalue(which), width=width)
    made.all_drawn()
    for summary in made.page.locator("details:not([open]) > summary").all():
        if summary.is_visible():
            summary.click()
    made.page.wait_for_timeout(100)
    assert made.page.evaluate("window.pwned") is None
    assert made.page.evaluate("document.querySelectorAll('img, a[href^=javascript]').length") == 0
    roots = "[...document.querySelectorAll('.exitlens-view')].map((e) => e.shadowRoot)"
    assert set(made.page.evaluate(f"{roots}.map((root) => root.querySelectorAll('img, a, script').length)")) == {0}
    assert made.page.evaluate("document.documentElement.scrollWidth") <= width
    assert made.faults == []


def test_forced_colours_and_reduced_motion_are_followed(visit: Callable[..., Any], report: Path) -> None:
    made = visit(report, forced_colors="active", reduced_motion="reduce")
    made.all_drawn()
    assert not made.faults
    found = made.page.evaluate(
        """() => [...exitlens.handles.keys()].flatMap((id) => {
            const root = document.querySelector(`[data-view="${id}"]`).shadowRoot;
            const view = root.querySelector(".view");
            const [ink, paper] = [getComputedStyle(view).color, getComputedStyle(view).backgroundColor];
            const moving = document.getAnimations().length + root.getAnimations().length;
            return [[ink !== paper, moving]];
        })"""
    )
    assert len(found) >= 5
    assert all(legible and not moving for legible, moving in found)


def test_a_question_on_a_later_page_is_found_and_the_address_shows_it_again(
    visit: Callable[..., Any], report: Path
) -> None:
    made = visit(report)
    made.all_drawn()
    view = made.page.locator("[data-view=layers-1]")
    view.locator("input[type=search]").fill("question 43")
    view.locator(".list button").first.click()
    made.page.wait_for_timeout(500)
    assert "question 43" in view.locator(".big").text_content()
    again = visit(made.page.url)
    again.all_drawn()
    assert "question 43" in again.page.locator("[data-view=layers-1] .big").text_content()


def test_who_works_with_keys_stays_where_they_were(visit: Callable[..., Any], report: Path) -> None:
    made = visit(report)
    made.all_drawn()

    def pressed(view: str, place: str, key: str) -> Any:
        made.page.locator(f"[data-view={view}] {place}").focus()
        made.page.keyboard.press(key)
        return made.page.evaluate(f"document.querySelector('[data-view={view}]').shadowRoot.activeElement?.textContent")

    assert pressed("probes-1", ".tools button >> nth=1", "Enter") == "AUROC"
    assert "question 3" in pressed("layers-1", ".list button >> nth=3", "Enter")
    assert pressed("entropy-1", ".plot >> nth=0", "End") is not None
    made.page.keyboard.press("Enter")
    assert made.page.evaluate("document.querySelector('[data-view=entropy-1]').shadowRoot.activeElement !== null")
    # A slider goes on with every press.
    pressed("exits-1", "input[type=range]", "Home")
    steps = [made.page.evaluate("exitlens.handles.get('exits-1').state().step")]
    for _ in range(2):
        made.page.keyboard.press("ArrowRight")
        steps.append(made.page.evaluate("exitlens.handles.get('exits-1').state().step"))
    assert steps == [0, 1, 2]


def test_a_point_of_the_entropy_curve_lists_its_answers(visit: Callable[..., Any], report: Path) -> None:
    made = visit(report)
    made.all_drawn()
    plot = made.page.locator("[data-view=entropy-1] .plot").first
    plot.focus()
    for key in ("End", "Enter"):
        plot.press(key)
    rows = made.page.locator("[data-view=entropy-1] .scroll tbody tr")
    assert rows.count() == 40
    values = [
        float(each) for each in made.page.locator("[data-view=entropy-1] tbody td:first-child").all_text_contents()
    ]
    assert values == sorted(values, reverse=True)


def test_on_paper_the_static_figures_stand_and_closed_parts_are_open(visit: Callable[..., Any], report: Path) -> None:
    made = visit(report)
    made.all_drawn()
    figure = made.page.locator("#exits figure svg").first
    assert not figure.is_visible()
    made.page.emulate_media(media="print")
    assert figure.is_visible()
    assert not made.page.locator("[data-view=exits-1]").is_visible()


def test_without_scripts_figures_and_tables_are_complete(visit: Callable[..., Any], report: Path) -> None:
    made = visit(report, scripts=False)
    assert made.page.locator("#exits figure svg").first.is_visible()
    assert "Scripts are off" in made.page.locator("noscript").first.inner_text()


def test_a_run_over_817_questions_opens_in_two_seconds_and_is_at_most_5_mb(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    path = run_directory(tmp_path, questions=817) / "report.html"
    assert path.stat().st_size <= 5_000_000
    start = time.perf_counter()
    made = visit(path)
    made.page.locator("[data-view=layers-1] .big").wait_for()
    assert time.perf_counter() - start < 2.0

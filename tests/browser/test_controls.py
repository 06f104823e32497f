"""What a reader can change in the views: filters, metric, lens, pinned tokens, thresholds, what stands side by side."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from exitlens.report.frames import Results
from exitlens.report.view_data import unpack
from exitlens.report.view_page import page
from exitlens.report.view_trace import trace_view
from exitlens.studies.layers.views import run_views
from tests.browser.conftest import Visit
from tests.browser.run_tables import DECODERS, run_tables
from tests.browser.test_map import a_map, words, write

pytestmark = pytest.mark.browser


def test_questions_are_filtered_by_what_became_of_them(visit: Callable[..., Visit], tmp_path: Path) -> None:
    """Correct, incorrect, changed by a decoder, high early entropy: as many as the tables say, and these."""
    tables = run_tables()
    # The second decoder's answers are the first one's, but for nine.
    answers = tables["answers"].copy()
    answers["answer"] = answers["question_id"]
    answers.loc[
        (answers["decoder"] == DECODERS[1]) & answers["question_id"].isin(f"q{i}" for i in range(9)), "answer"
    ] = "x"
    asked = tables["layers"].assign(question="question " + tables["layers"]["question_id"].str[1:])
    results = Results({**tables, "answers": answers, "layers": asked}, {"model": {"name": "m"}})
    [made_view] = run_views(results)
    arrays = unpack(made_view.block)
    entropy = arrays["questions.entropy"].astype(float)
    outcome = arrays["questions.outcome"]
    high = np.sort(entropy)[int(len(entropy) * 0.75)]
    wanted = {
        "Correct": {i for i, each in enumerate(outcome) if each == "correct"},
        "Incorrect": {i for i, each in enumerate(outcome) if each == "incorrect"},
        "Changed by a decoder": set(range(9)),
        "High early entropy": {i for i, each in enumerate(entropy) if each >= high},
    }
    (tmp_path / "a.html").write_text(page([made_view]), encoding="utf-8", errors="replace")
    made = visit(tmp_path / "a.html")
    made.all_drawn()
    view = made.page.locator("[data-view=view-1]")
    for name, questions in wanted.items():
        assert 0 < len(questions) < 45, name
        view.get_by_role("button", name=name, exact=True).click()
        shown = view.locator(".list button").all_text_contents()
        assert {int(re.search(r"question (\d+)", text)[1]) for text in shown} == questions, name  # type: ignore[index]
        assert f"{len(questions)} of 45 questions" in view.locator("[role=status]").first.text_content()
    view.get_by_role("button", name="Correct", exact=True).click()
    view.locator("input[type=search]").fill("QUESTION 4")
    found = view.locator(".list button").all_text_contents()
    numbers = {int(re.search(r"question (\d+)", text)[1]) for text in found}  # type: ignore[index]
    assert numbers == {i for i in wanted["Correct"] if str(i).startswith("4")}
    assert made.faults == []


def two_lenses() -> Any:
    """A map of two lenses with every metric and a pinned token, its ranks known everywhere."""
    rng = np.random.default_rng(1)
    shape = (2, 5, 8)
    top = np.full((*shape, 3), " a", dtype=object)
    top[1] = " z"
    p = np.sort(rng.dirichlet(np.ones(3), size=shape), axis=-1)[..., ::-1]
    ranks = rng.integers(0, 900, size=(*shape, 1))
    return a_map(
        lenses=words(np.array(["logit", "tuned"])), top=top, top_p=p, entropy=rng.random(shape), kl=rng.random(shape),
        margin=p[..., 0] - p[..., 1], next=words(np.array([*[f"t{i}" for i in range(1, 8)], None])),
        next_rank=rng.integers(0, 50, size=shape), pins=words(np.array([" pin"])), pin_rank=ranks,
        pin_p=rng.random((*shape, 1)),
    ), ranks  # fmt: skip


def test_metric_lens_and_pinned_tokens(visit: Callable[..., Visit], tmp_path: Path) -> None:
    packed, ranks = two_lenses()
    made = visit(write(tmp_path / "a.html", packed))
    made.all_drawn()
    pixels = """() => { const c = document.querySelector('.exitlens-view').shadowRoot.querySelector('canvas');
        return c.toDataURL() }"""
    drawn = set()
    for name in ("Probability", "Entropy", "KL", "Margin", "Rank"):
        made.page.get_by_role("button", name=name, exact=True).click()
        made.page.wait_for_timeout(60)
        drawn.add(made.page.evaluate(pixels))
    assert len(drawn) == 5, "each metric colours the cells in its own way"
    assert "rank of “·pin”" in made.page.locator(".scale").first.text_content()
    # The curves of the pinned token over layers (at the last position) and over positions (at the last layer).
    for title, wanted in (("Rank by layer", ranks[0, :, 7, 0]), ("Rank by position", ranks[0, 4, :, 0])):
        plot = made.page.locator("figure", has_text=title).locator(".plot")
        plot.focus()
        plot.press("Home")
        for i, rank in enumerate(wanted):
            if i:
                plot.press("ArrowRight")
            assert plot.locator(".tip").text_content().endswith(f"·pin: {rank}"), (title, i)
    made.page.get_by_role("button", name="tuned", exact=True).click()
    made.page.wait_for_timeout(60)
    assert "·z" in made.page.locator(".top").text_content()
    # The last layer is the first row, and is there in every lens.
    assert "layer 4" in made.page.locator(".where").text_content()
    # A cell that is pressed opens its distribution, and another token can be followed.
    made.page.locator(".grid").click(position={"x": 60, "y": 40})
    assert "After t0 (0), layer 4" in made.page.locator(".where").text_content()
    made.page.locator(".top button").first.click()
    assert "·z" in made.page.locator(".scale").last.text_content()
    assert made.faults == []


def test_the_slider_goes_through_the_thresholds_and_bounds_are_marked(
    visit: Callable[..., Visit], report: Path
) -> None:
    made = visit(report)
    made.all_drawn()
    view = made.page.locator("[data-view=exits-1]")
    slider = view.locator("input[type=range]")
    marks = " ".join(view.locator("svg.chart").first.locator("text").all_text_contents())
    assert "full depth" in marks
    assert "oracle" in marks
    shares = pd.read_parquet(report.parent / "tables" / "exits_layers.parquet").query("policy == 'probability'")
    seen = []
    for step, threshold in enumerate((0.25, 0.5, 0.75)):
        slider.fill(str(step))
        seen.append(slider.get_attribute("aria-valuetext"))
        assert f"probability {threshold:g}" in seen[-1].rstrip("0")
        bars = view.locator("svg.chart").nth(1).locator("text").all_text_contents()
        for share in shares.loc[shares["threshold"] == threshold, "share"]:
            assert f"{100 * share:.1f}".removesuffix(".0") + "%" in bars
    assert len(set(seen)) == 3
    assert made.faults == []


def test_where_decoders_part_every_candidate_layer_is_told(visit: Callable[..., Visit], report: Path) -> None:
    made = visit(report)
    made.all_drawn()
    told = made.page.locator("[data-view=decoding-1] .list").text_content()
    table = pd.read_parquet(report.parent / "tables" / "decoding_partings.parquet")
    one = table[table["question_id"] == table["question_id"].iloc[0]]
    listed = ", ".join(f"{row.layer}: {row.divergence:.6f}".rstrip("0") for row in one.itertuples())
    assert f"layer chosen: {one.loc[one['chosen'], 'layer'].iloc[0]}" in told
    for part in listed.split(", "):
        assert part in told, (part, told[:600])
    assert made.faults == []


def test_a_trace_of_several_lenses_is_one_map(visit: Callable[..., Visit], tmp_path: Path) -> None:
    from dataclasses import replace

    from exitlens import read
    from exitlens.models import wrap
    from exitlens.report.view_trace import MAP_STATS
    from tests import tiny

    lm = wrap(tiny.model("llama", spread=0.2), tiny.tokenizer(), name="tiny")
    trace = read(lm, ["a"], stats=MAP_STATS)
    (tmp_path / "a.html").write_text(page([trace_view([trace, replace(trace, lens="other")])]), encoding="utf-8")
    made = visit(tmp_path / "a.html")
    made.all_drawn()
    assert made.page.get_by_role("button", name="other", exact=True).count() == 1
    assert made.page.locator(".fault").count() == 0
    assert made.faults == []

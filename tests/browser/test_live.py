"""The live page in a real browser, against a running server with a tiny model: from question to stop and fork."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from exitlens.decoding import generate
from exitlens.models import wrap
from exitlens.probes.probe import LinearProbe, Provenance, SavedProbe
from exitlens.runs.directory import RunDirectory
from exitlens.server import Limits, create_app, live
from tests import tiny
from tests.browser.conftest import Visit
from tests.browser.run_tables import run_directory
from tests.serving import running, until

pytestmark = pytest.mark.browser
QUESTION = "What is true?"
HOSTILE = "<script>document.title='run'</script></script><img src=x onerror=document.title='run'> \u202e javascript:x"


@pytest.fixture(scope="module")
def lm() -> Any:
    made = wrap(tiny.model("llama", spread=0.2), tiny.tokenizer(), name="tiny <b>model</b>")
    made.model.generation_config.eos_token_id = 10**9  # no answer ends by itself
    return made


@pytest.fixture(scope="module")
def app(lm: Any) -> Any:
    torch.manual_seed(0)
    where = Provenance(model=lm.fingerprint, layer=2, position="last")
    probe = LinearProbe("logistic", torch.randn(lm.d_model), 0.1, where)
    saved = SavedProbe(probe, {"setting": "zero-shot"}, Path("probe"))
    return create_app(lm, limits=Limits(new_tokens=200, requests=4), probe=saved)


@pytest.fixture(scope="module")
def address(app: Any) -> Iterator[str]:
    with running(app) as found:
        yield found


def comes(visit: Visit, true: str) -> None:
    """Waits for what an expression says: asked from outside, since the page's policy evaluates no text."""
    until(lambda: visit.page.evaluate(true), 30)


def opened(chromium: Any, address: str, width: int = 1200, **more: Any) -> Visit:
    made = Visit(chromium.new_context(viewport={"width": width, "height": 900}, **more).new_page())
    made.page.goto(address)
    comes(made, "document.querySelector('#model').textContent")
    return made


def ask(visit: Visit, prompt: str = QUESTION, tokens: int = 6, decoder: str = "", other: str = "") -> None:
    page = visit.page
    page.select_option("#form", "text")
    page.fill("#prompt", prompt)
    page.fill("#tokens", str(tokens))
    if decoder:
        page.fill("#decoder", decoder)
    page.fill("#other", other)
    page.click("#send")


def texts(visit: Visit, answer: int) -> list[str]:
    """The tokens that an answer shows, the prompt's last left out."""
    found = visit.page.locator("article").nth(answer).locator(".line li .token").all_text_contents()
    return [one.replace("·", " ").replace("↵", "\n") for one in found[1:]]


def test_from_a_question_to_layers_probe_comparison_and_fork(chromium: Any, address: str, lm: Any) -> None:
    visit = opened(chromium, address)
    page = visit.page
    ask(visit, other="dola:0/2")
    comes(visit, "document.querySelectorAll('#compared tbody tr').length === 2")
    comes(
        visit, "[...document.querySelectorAll('#compared td:last-child')].every((c) => /as many/.test(c.textContent))"
    )
    want = [generate(lm, [QUESTION], decoder=name, max_new_tokens=6)[0] for name in ("vanilla", "dola:0/2")]
    shown = page.locator("#compared td:nth-child(2)").all_text_contents()
    assert [one.strip() for one in shown] == [answer.text.strip() for answer in want]
    first = page.locator("article").first
    until(lambda: "…" not in first.locator(".line").inner_text(), 10)
    probes = [float(one) for one in first.locator(".line .probe").all_text_contents() if one]
    assert len(probes) == 6
    assert all(0 <= one <= 1 for one in probes)
    # The scrubber goes through the layers, by keys too: the last says what was written, the first something else.
    marks = first.locator(".line .guess.same")
    assert marks.count() == 6
    first.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    assert "0, the embeddings" in first.locator(".live-bar output").inner_text()
    assert marks.count() < 6
    # A fork goes on after a token, with another decoder.
    first.locator(".line li").nth(2).click()
    first.get_by_label("Decoder of the fork").select_option("sled")
    first.get_by_role("button", name="Fork").click()
    comes(visit, "document.querySelectorAll('#compared tbody tr').length === 3")
    third = page.locator("#compared tbody tr").nth(2)
    until(lambda: "as many" in third.inner_text(), 10)
    kept = list(want[0].token_ids[:2])
    forked = generate(lm, [[*want[0].prompt_ids, *kept]], decoder="sled", max_new_tokens=4)[0]
    assert (
        third.locator("td").first.text_content().strip() == (want[0].text[: len(lm.decode(kept))] + forked.text).strip()
    )
    assert visit.faults == []
    assert all(one.startswith((address, "data:", "blob:")) for one in visit.requests)
    assert page.context.cookies() == []


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model that takes its time, so that one can stop it in the middle."""
    whole = live.steps

    def slowly(*given: Any, **named: Any) -> Iterator[Any]:
        for one in whole(*given, **named):
            time.sleep(0.05)
            yield one

    monkeypatch.setattr(live, "steps", slowly)


@pytest.mark.usefixtures("unhurried")
def test_stop_ends_the_answer_and_keeps_what_is_there(chromium: Any, address: str, app: Any) -> None:
    visit = opened(chromium, address)
    ask(visit, tokens=180)
    stop = visit.page.get_by_role("button", name="Stop")
    comes(visit, "document.querySelector('article div')?.shadowRoot?.querySelectorAll('.line li').length > 2")
    stop.click()
    until(lambda: app.state.worker.busy == 0, 10)
    comes(visit, "/stopped/.test(document.querySelector('#said').textContent)")
    written = len(texts(visit, 0))
    assert 0 < written < 180
    time.sleep(0.3)
    assert len(texts(visit, 0)) == written
    assert stop.count() == 0
    assert visit.faults == []


@pytest.mark.usefixtures("unhurried")
def test_a_stream_that_breaks_off_says_so_and_shows_what_came(chromium: Any, lm: Any) -> None:
    app = create_app(lm, limits=Limits(new_tokens=200))
    with running(app) as address:
        visit = opened(chromium, address)
        ask(visit, tokens=180)
        comes(visit, "document.querySelector('article div')?.shadowRoot?.querySelectorAll('.line li').length > 2")
    comes(visit, "/broken off/.test(document.querySelector('#said').textContent)")
    fault = visit.page.locator("article .fault")
    assert "the server is stopping" in fault.inner_text()
    assert "What came before it is shown" in fault.inner_text()
    assert len(texts(visit, 0)) > 1
    # And asked again, where nobody answers any more:
    ask(visit)
    comes(visit, "/exitlens serve still running/.test(document.querySelector('#answers').textContent)")


def test_a_connection_that_breaks_in_the_middle_says_so_and_shows_what_came(chromium: Any, address: str) -> None:
    visit = opened(chromium, address)

    def cut(route: Any) -> None:
        """What the server said up to the third token, and then nothing, not even an end."""
        whole = route.fetch()
        events = whole.text().split("\n\n")
        assert any('"done"' in event for event in events)
        third = [i for i, event in enumerate(events) if event.startswith('data: {"token"')][2]
        route.fulfill(response=whole, body="\n\n".join(events[: third + 1]) + "\n\n")

    visit.page.route(
        lambda url: url.endswith("/live"),
        lambda route: cut(route) if route.request.method == "POST" else route.continue_(),
    )
    ask(visit)
    comes(visit, "/broken off/.test(document.querySelector('#said').textContent)")
    assert "What came before it is shown" in visit.page.locator("article .fault").inner_text()
    assert len(texts(visit, 0)) == 3
    assert visit.faults == []


def test_a_finished_run_is_opened_from_the_page(chromium: Any, lm: Any, tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", {"model": "tiny"}):
        pass
    (run_directory(tmp_path / "made") / "report.html").rename(tmp_path / "run" / "report.html")
    with running(create_app(lm, run=tmp_path / "run")) as address:
        visit = opened(chromium, address)
        with visit.page.context.expect_page() as popped:
            visit.page.get_by_role("link", name="Open the run").click()
        report = Visit(popped.value)
        report.page.wait_for_load_state()
        report.page.wait_for_selector("[data-view=layers-1] .big")
        assert report.page.url == f"{address}/run"
        assert report.page.locator(".exitlens-view").count() == 7
        assert report.faults == visit.faults == []


def test_hostile_texts_are_text(chromium: Any, address: str) -> None:
    visit = opened(chromium, address)
    ask(visit, prompt=HOSTILE, tokens=3)
    comes(visit, "/as many/.test(document.querySelector('#said').textContent)")
    assert visit.page.locator("article .asked").text_content() == HOSTILE
    assert "tiny <b>model</b>" in visit.page.locator("#model").text_content()
    assert visit.page.title() == "tiny <b>model</b>, live in exitlens"
    ask(visit, decoder="<img src=x onerror=document.title='run'>")
    visit.page.wait_for_selector("article .notice")
    assert visit.page.locator("img").count() == 0
    assert visit.page.title() != "run"
    # The refusal's status is a line of the browser's own; nothing else went wrong.
    assert [one for one in visit.faults if "status of 400" not in one] == []


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 360)])
def test_in_every_state_axe_finds_nothing_and_nothing_is_cut_off(
    chromium: Any, lm: Any, tmp_path: Path, dark: bool, width: int
) -> None:
    with RunDirectory.open(tmp_path / "run", {"model": "tiny"}):
        pass
    (run_directory(tmp_path / "made", questions=3) / "report.html").rename(tmp_path / "run" / "report.html")
    scheme = {"color_scheme": "dark" if dark else "light", "bypass_csp": True}
    with running(create_app(lm, limits=Limits(new_tokens=200), run=tmp_path / "run")) as address:
        visit = opened(chromium, address, width, **scheme)
        page = visit.page

        def holds(state: str) -> None:
            page.wait_for_timeout(100)
            assert [state, *visit.axe()] == [state]
            assert page.evaluate("document.documentElement.scrollWidth") <= width, state

        holds("nothing asked")
        ask(visit, other="sled", tokens=3)
        comes(visit, "document.querySelectorAll('#compared tbody tr').length === 2")
        comes(visit, "/Answer 2.*as many/.test(document.querySelector('#said').textContent)")
        holds("two answers")
        ask(visit, tokens=180)
        comes(visit, "document.querySelector('article div')?.shadowRoot?.querySelectorAll('.line li').length > 2")
        holds("being written")
        page.get_by_role("button", name="Stop").click()
        comes(visit, "/stopped/.test(document.querySelector('#said').textContent)")
        holds("stopped")
        page.locator("article .line li").nth(2).click()
        page.locator("article").first.get_by_role("button", name="Fork").click()
        comes(visit, "document.querySelectorAll('#compared tbody tr').length === 2")
        holds("forked")
        ask(visit, decoder="no-such-decoder")
        page.wait_for_selector("article .notice")
        holds("refused")
        ask(visit, tokens=180, decoder="vanilla")
        comes(visit, "document.querySelector('article div')?.shadowRoot?.querySelectorAll('.line li').length > 2")
        if not dark:  # the report's own tests look at it in the dark
            opened_run = Visit(page.context.new_page())
            opened_run.page.goto(f"{address}/run")
            opened_run.all_drawn()
            opened_run.page.wait_for_selector("[data-view=layers-1] .big")
            assert opened_run.axe() == []
            opened_run.page.close()
    comes(visit, "/broken off/.test(document.querySelector('#said').textContent)")
    holds("broken off")


def test_with_a_token_the_browser_asks_for_it(chromium: Any, lm: Any) -> None:
    with running(create_app(lm, token="a-long-token")) as address:
        bare = chromium.new_context().new_page()
        with pytest.raises(Exception, match="ERR_INVALID_AUTH_CREDENTIALS"):
            bare.goto(address)  # the browser would ask its user here
        visit = opened(chromium, address, http_credentials={"username": "me", "password": "a-long-token"})
        ask(visit, tokens=3)
        comes(visit, "/as many/.test(document.querySelector('#said').textContent)")
        assert visit.page.context.cookies() == []

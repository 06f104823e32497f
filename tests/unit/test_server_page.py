"""The live page and its stream: what is sent to whom, under which policy, and how it ends."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from tests import tiny

from exitlens.decoding import generate
from exitlens.errors import RunError
from exitlens.lenses import read_ids
from exitlens.models import wrap
from exitlens.probes.probe import LinearProbe, Provenance, SavedProbe
from exitlens.runs.directory import RunDirectory
from exitlens.server import Limits, create_app
from exitlens.server import live as live_module

HOSTILE = "<script>alert(1)</script></script> \u202e javascript:x"


@pytest.fixture(scope="module")
def lm() -> Any:
    return wrap(tiny.model("llama", spread=0.2), tiny.tokenizer(), name="tiny")


def client(lm: Any, **more: Any) -> TestClient:
    limits = Limits(body_bytes=4000, prompt_tokens=150, new_tokens=40, requests=2)
    return TestClient(create_app(lm, limits=limits, **more), base_url="http://127.0.0.1")


def events(made: TestClient, **asked: Any) -> list[dict[str, Any]]:
    answer = made.post("/live", json={"max_tokens": 6, **asked})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def named(found: list[dict[str, Any]], name: str) -> list[Any]:
    return [one[name] for one in found if name in one]


@pytest.mark.parametrize("decoder", ["vanilla", "dola:0/2"])
def test_the_stream_is_what_generate_and_read_say(lm: Any, decoder: str) -> None:
    with client(lm) as made:
        found = events(made, prompt="What is true?", decoder=decoder)
    want = generate(lm, ["What is true?"], decoder=decoder, max_new_tokens=6, trace=True)[0]
    (begin,) = named(found, "begin")
    assert begin["prompt_ids"] == list(want.prompt_ids)
    assert [one["id"] for one in named(found, "token")] == list(want.token_ids)
    assert [one["text"] for one in named(found, "token")] == list(want.tokens)
    assert named(found, "done")[0]["text"] == want.text
    cells = {cell["at"]: cell for cell in named(found, "cell")}
    assert sorted(cells) == list(range(len(want.token_ids) + 1))
    ids = [*want.prompt_ids, *want.token_ids]
    plain = read_ids(lm, [ids], layers="all", stats=("entropy", "kl", "top_k"))
    first = len(want.prompt_ids) - 1
    for at, cell in cells.items():
        assert cell["entropy"] == pytest.approx(plain.values["entropy"][0, :, first + at], abs=1e-3)
        assert cell["kl"] == pytest.approx(plain.values["kl"][0, :, first + at], abs=1e-3)
        top = plain.values["top_ids"][0, :, first + at]
        assert [row[0] for row in cell["top"]] == [lm.token(int(row[0])) for row in top]
        assert all(0 <= p <= 1 for row in cell["p"] for p in row)
    chosen = [cells[at]["chosen"] for at in range(len(want.token_ids))]
    assert chosen == (want.steps["choice"].tolist() if decoder != "vanilla" else [None] * len(chosen))


def test_a_fork_goes_on_from_the_ids_that_it_is_given(lm: Any) -> None:
    with client(lm) as made:
        whole = events(made, prompt="What is true?")
        written = [one["id"] for one in named(whole, "token")]
        before = named(whole, "begin")[0]["prompt_ids"]
        same = events(made, prompt=[*before, *written[:2]], max_tokens=4)
        assert [one["id"] for one in named(same, "token")] == written[2:]
        other = events(made, prompt=[*before, *written[:2]], max_tokens=4, decoder="sled")
        assert named(other, "begin")[0]["decoder"] == "sled"


def test_the_probe_reads_every_token_of_the_answer_and_nothing_before_it(lm: Any) -> None:
    torch.manual_seed(0)
    where = Provenance(model=lm.fingerprint, layer=2, position="last")
    probe = LinearProbe("logistic", torch.randn(lm.d_model), 0.1, where)
    with client(lm, probe=SavedProbe(probe, {"setting": "zero-shot"}, Path("probe"))) as made:
        assert "layer 2" in made.get("/live").json()["probe"]
        found = events(made, prompt="What is true?", max_tokens=4)
    ids = named(found, "begin")[0]["prompt_ids"] + [one["id"] for one in named(found, "token")]
    states = lm.forward(torch.tensor([ids]), layers=[2]).hidden[2][0].float()
    want = probe.predict_proba(states[-4:]).tolist()
    got = {cell["at"]: cell["probe"] for cell in named(found, "cell")}
    assert got.pop(0) is None
    assert [got[at] for at in sorted(got)] == pytest.approx(want, abs=2e-3)


def test_the_page_allows_only_itself_and_sets_no_cookie(lm: Any) -> None:
    with client(lm) as made:
        page = made.get("/")
        assert page.status_code == 200
        for path in ("/", "/assets/live_page.js", "/assets/live.js", "/assets/view.js", "/assets/live.css"):
            answer = made.get(path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "set-cookie" not in answer.headers
        assert "set-cookie" not in made.get("/live").headers
        assert "http" not in page.text, "an address of elsewhere"
        assert made.get("/assets/..%2Fpage.py").status_code == 404
        assert made.get("/assets/nothing.js").json()["error"]["message"].startswith("no file 'nothing.js' here")


def test_hostile_text_is_never_markup(lm: Any) -> None:
    with client(lm) as made:
        answer = made.post("/live", json={"prompt": HOSTILE, "max_tokens": 2})
        assert answer.headers["content-type"].startswith("text/event-stream")
        begin = json.loads(answer.text.split("\n\n")[0].removeprefix("data: "))["begin"]
        assert begin["prompt"] == HOSTILE
        refused = made.post("/live", json={"prompt": "x", "decoder": HOSTILE})
        assert refused.status_code == 400
        assert refused.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({}, "prompt is missing"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "x", "form": "poem"}, "form="),
        ({"prompt": "x", "decoder": "dolla"}, "dolla"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens=0"),
        ({"prompt": "x", "max_tokens": 41}, "above 40"),
        ({"prompt": [99999]}, "outside 0..319"),
        ({"prompt": "x " * 900}, "at most 150"),
        ({"prompt": "x", "form": "chat"}, "no chat template"),
        ({"prompt": "x", "strema": True}, "unknown field 'strema'"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_a_stream_begins(lm: Any, asked: dict[str, Any], said: str) -> None:
    with client(lm) as made:
        answer = made.post("/live", json=asked)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert "\n" not in answer.json()["error"]["message"]


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{password}".encode()).decode()}


def test_off_loopback_everything_needs_the_token_and_a_browser_may_ask_for_it(lm: Any) -> None:
    with client(lm, token="a-long-token") as made:
        for path in ("/", "/live", "/assets/live.js", "/run"):
            refused = made.get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic ")
            assert made.get(path, headers=basic("another-token")).status_code == 401
        assert made.get("/", headers={"Authorization": "Basic !!"}).status_code == 401
        assert made.get("/", headers=basic("a-long-token")).status_code == 200
        assert made.get("/", headers={"Authorization": "Bearer a-long-token"}).status_code == 200
        assert made.post("/live", json={"prompt": "x"}).status_code == 401
        good = made.post("/live", json={"prompt": "x", "max_tokens": 1}, headers=basic("a-long-token"))
        assert good.status_code == 200
        elsewhere = basic("a-long-token") | {"Sec-Fetch-Site": "cross-site"}
        assert made.post("/live", json={"prompt": "x"}, headers=elsewhere).status_code == 403
        # What a browser adds by itself opens nothing at the interface for programs.
        assert made.get("/v1/models", headers=basic("a-long-token")).status_code == 401
        assert made.get("/v1/models").headers["www-authenticate"] == "Bearer"


def test_without_a_token_another_host_name_gets_nothing(lm: Any) -> None:
    with client(lm) as made:
        assert made.get("/", headers={"Host": "rebound.example"}).status_code == 403
        assert made.post("/live", json={"prompt": "x"}, headers={"Host": "rebound.example"}).status_code == 403


@pytest.mark.parametrize("site", ["http://evil.example", "null", "http://127.0.0.1.evil.example", "https://evil@[::1"])
def test_without_a_token_a_page_of_another_site_gets_nothing(lm: Any, site: str) -> None:
    with client(lm) as made:
        for path, asked in (("/live", {"prompt": "x"}), ("/v1/completions", {"model": "tiny", "prompt": "x"})):
            refused = made.post(path, json={**asked, "max_tokens": 1}, headers={"Origin": site})
            assert refused.status_code == 403
            assert "open the page itself" in refused.json()["error"]["message"]
        own = made.post("/live", json={"prompt": "x", "max_tokens": 1}, headers={"Origin": "http://localhost:8000"})
        assert own.status_code == 200


def test_a_report_that_is_a_link_out_of_its_run_is_not_shown(lm: Any, tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", {"model": "tiny"}):
        pass
    (tmp_path / "secret").write_text("a secret")
    (tmp_path / "run" / "report.html").symlink_to(tmp_path / "secret")
    with client(lm, run=tmp_path / "run") as made:
        refused = made.get("/run")
    assert refused.status_code == 404
    assert "a link to a file outside of it" in refused.json()["error"]["message"]


def test_a_reading_that_fails_ends_the_stream_with_a_line(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(live_module, "readout", broken)
    with client(lm) as made:
        text = made.post("/live", json={"prompt": "What is true?", "max_tokens": 3}).text
        last = text.split("\n\n")[-2]
        assert "broke off" in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert "[DONE]" not in text
        monkeypatch.undo()
        assert named(events(made, prompt="again"), "done")


def test_a_run_is_opened_under_a_policy_that_lets_it_ask_nothing(lm: Any, tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", {"model": "tiny"}):
        pass
    with client(lm, run=tmp_path / "run") as made:
        assert made.get("/live").json()["run"] == "run"
        unfinished = made.get("/run")
        assert unfinished.status_code == 200
        assert "<html" in unfinished.text
        (tmp_path / "run" / "report.html").write_text("<p>the report</p>")
        whole = made.get("/run")
        assert whole.text == "<p>the report</p>"
        assert whole.headers["content-security-policy"].startswith("sandbox allow-scripts ")
        assert "allow-same-origin" not in whole.headers["content-security-policy"]
        (tmp_path / "run" / "manifest.json").unlink()
        gone = made.get("/run")
        assert gone.status_code == 404
        assert "holds no run" in gone.json()["error"]["message"]
    with client(lm) as made:
        assert "serve --run DIR" in made.get("/run").json()["error"]["message"]


def test_a_run_that_is_none_is_refused_when_the_server_starts(lm: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        create_app(lm, run=tmp_path)

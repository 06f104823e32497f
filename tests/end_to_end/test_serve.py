"""The endpoint, asked by OpenAI's own client and by hand: answers, streams, refusals, and clients that go away."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIStatusError, OpenAI
from tests import serving, tiny
from tests.serving import until

from exitlens.decoding import Sampling, generate
from exitlens.errors import InputError
from exitlens.models import wrap
from exitlens.models.native.runner import runner_of
from exitlens.server import Limits, check_address, create_app

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
PROMPT = "Q: What is true?"


@pytest.fixture(scope="module")
def lm() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    return wrap(tiny.model("llama", spread=0.2), tokenizer, name="tiny")


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address under which clients of OpenAI's interface ask."""
    with serving.running(app) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def app(lm: Any) -> Any:
    return create_app(lm, limits=Limits(body_bytes=4000, prompt_tokens=100, new_tokens=60, requests=2))


@pytest.fixture(scope="module")
def url(app: Any) -> Iterator[str]:
    with running(app) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def test_models(client: OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "exitlens"


@pytest.mark.parametrize("decoder", ["vanilla", "dola:0/2", "sled"])
def test_a_completion_is_what_generate_says(client: OpenAI, lm: Any, decoder: str) -> None:
    want = generate(lm, [PROMPT], decoder=decoder, max_new_tokens=12, repetition_penalty=1.2)[0]
    got = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, temperature=0,
        extra_body={"decoder": decoder, "repetition_penalty": 1.2},
    )  # fmt: skip
    assert got.choices[0].text == want.text
    assert got.choices[0].finish_reason == ("length" if want.finish == "length" else "stop")
    assert got.usage is not None
    assert got.usage.prompt_tokens == len(lm.encode(PROMPT))
    assert got.usage.completion_tokens == len(want.token_ids)
    by_ids = client.completions.create(
        model="tiny", prompt=lm.encode(PROMPT), max_tokens=12, temperature=0,
        extra_body={"decoder": decoder, "repetition_penalty": 1.2},
    )  # fmt: skip
    assert by_ids.choices[0].text == want.text


def test_stop_and_seed_and_sampling(client: OpenAI, lm: Any) -> None:
    whole = generate(lm, [PROMPT], max_new_tokens=20)[0].text
    stop = whole[4:6]
    got = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, temperature=0, stop=[stop])
    assert got.choices[0].text == whole.split(stop)[0]
    assert got.choices[0].finish_reason == "stop"
    want = generate(lm, [PROMPT], max_new_tokens=10, sampling=Sampling(1.3, top_p=0.9), seed=5)[0].text
    for _ in range(2):
        drawn = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=10, temperature=1.3, top_p=0.9, seed=5
        )
        assert drawn.choices[0].text == want
    free = {client.completions.create(model="tiny", prompt=PROMPT, max_tokens=10).choices[0].text for _ in range(3)}
    assert len(free) > 1


def test_chat(client: OpenAI, lm: Any) -> None:
    want = generate(lm, ["<system>Be true\n<user>What is true?\nA:"], max_new_tokens=8)[0]
    got = client.chat.completions.create(
        model="tiny", max_tokens=8, temperature=0,
        messages=[
            {"role": "system", "content": "Be true"},
            {"role": "user", "content": [{"type": "text", "text": "What is true?"}]},
        ],
    )  # fmt: skip
    assert got.choices[0].message.content == want.text
    assert got.choices[0].message.role == "assistant"


def test_streams_join_to_the_answer(client: OpenAI, lm: Any) -> None:
    want = generate(lm, [PROMPT], decoder="dola:0/2", max_new_tokens=15)[0]
    came = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=15, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"decoder": "dola:0/2"},
    )  # fmt: skip
    events = list(came)
    assert "".join(e.choices[0].text for e in events if e.choices) == want.text
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] in ("length", "stop")
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == len(want.token_ids)
    assert len(events) > 4

    want = generate(lm, ["<user>What is true?\nA:"], max_new_tokens=8)[0]
    turns: Any = [{"role": "user", "content": "What is true?"}]
    talk = client.chat.completions.create(model="tiny", messages=turns, max_tokens=8, temperature=0, stream=True)
    chunks = list(talk)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == want.text
    assert chunks[-1].choices[0].finish_reason == ("length" if want.finish == "length" else "stop")


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "gpt-4"}, 404, "no model 'gpt-4' here"),
        ({"prompt": ""}, 400, "the prompt is empty"),
        ({"prompt": [5, 999]}, 400, "outside 0..319"),
        ({"prompt": "A" * 101}, 400, "at most 100 are taken"),
        ({"max_tokens": 61}, 400, "max_tokens=61 is above 60"),
        ({"max_tokens": 0}, 400, "at least 1"),
        ({"max_tokens": "9"}, 400, "not a whole number"),
        ({"n": 17}, 400, "n=17 is out of range: at most 16"),
        ({"logprobs": 21}, 400, "logprobs=21 is out of range: at most 20"),
        ({"logprobs": 3, "decoder": "sled"}, 400, "not those of decoder 'sled'"),
        ({"frequency_penalty": 0.5}, 400, "use repetition_penalty"),
        ({"temperature": 3}, 400, "temperature=3 is out of range"),
        ({"temperature": "hot"}, 400, "is not a number"),
        ({"top_p": 0}, 400, "top_p 0.0 is out of range"),
        ({"stop": 5}, 400, "stop=5 is not a text or a list of texts"),
        ({"seed": 1.5}, 400, "not a whole number"),
        ({"stream": "yes"}, 400, "neither true nor false"),
        ({"decoder": "dolla"}, 400, "did you mean dola"),
        ({"decoder": "dola:7"}, 400, "candidate layer 7 is out of range"),
        ({"decoder": "dola:7", "stream": True}, 400, "candidate layer 7 is out of range"),
        ({"decoder": 5}, 400, "decoder=5 is not a text"),
        ({"temprature": 1}, 400, "did you mean temperature"),
        ({"prompt": "x" * 4000}, 413, "larger than 4000 bytes"),
    ],
)
def test_refusals_are_one_clear_line(url: str, change: dict[str, Any], status: int, message: str) -> None:
    body = {"model": "tiny", "prompt": "A", "max_tokens": 2} | change
    got = httpx.post(f"{url}/completions", json=body, timeout=20)
    assert got.status_code == status, got.text
    error = got.json()["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert error["type"]


def test_harmless_fields_are_taken(url: str) -> None:
    body = {"model": "tiny", "prompt": "A", "max_tokens": 2, "n": 1, "user": "me", "frequency_penalty": 0.0,
            "logit_bias": {}, "echo": False, "stop": None, "seed": None}  # fmt: skip
    assert httpx.post(f"{url}/completions", json=body, timeout=20).status_code == 200


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "missing or empty"),
        ([{"role": "robot", "content": "x"}], "role 'robot'"),
        ([{"role": "user", "content": 5}], "has content 5"),
        ([{"role": "tool", "content": "x"}], "role 'tool': this server calls no tools"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "other than text"),
        (["hello"], "not an object"),
    ],
)
def test_chat_refusals(url: str, messages: Any, message: str) -> None:
    got = httpx.post(f"{url}/chat/completions", json={"model": "tiny", "messages": messages}, timeout=20)
    assert got.status_code == 400
    assert message in got.json()["error"]["message"]


def test_other_bodies_and_addresses(url: str) -> None:
    json_type = {"content-type": "application/json"}
    assert httpx.post(f"{url}/completions", content="{", headers=json_type).status_code == 400
    assert httpx.post(f"{url}/completions", content="[" * 2000, headers=json_type).status_code == 400
    assert httpx.post(f"{url}/completions", content="[]", headers=json_type).status_code == 400
    half = httpx.post(f"{url}/completions", content='{"prompt": "\\ud800"}', headers=json_type)
    assert half.status_code == 400
    assert "is no character" in half.json()["error"]["message"]
    assert httpx.post(f"{url}/completions", data={"a": "b"}).status_code == 415
    assert httpx.get(f"{url}/nothing").status_code == 404
    assert httpx.get(f"{url}/completions").status_code == 405
    # A body that does not tell its length is counted as it comes.
    chunks = (b"x" * 1000 for _ in range(6))
    assert httpx.post(f"{url}/completions", content=chunks, headers=json_type).status_code == 413
    assert httpx.get(f"{url}/models", headers={"host": "evil.example"}).status_code == 403
    assert httpx.get(f"{url}/models", headers={"host": "localhost:1"}).status_code == 200


def test_the_client_sees_refusals_as_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(APIStatusError, match="n=17 is out of range") as found:
        client.completions.create(model="tiny", prompt="A", n=17)
    assert found.value.status_code == 400


class _Slow:
    """The same model, a little while at each token, and as many of them as it is asked for."""

    def __init__(self, lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = 0
        runner = runner_of(lm)  # its own way to the logits is the one that generation takes
        assert runner is not None
        plain = runner.logits

        def logits(*args: Any, **options: Any) -> Any:
            self.tokens += 1
            time.sleep(0.05)
            return plain(*args, **options)

        monkeypatch.setattr(runner, "logits", logits)
        monkeypatch.setattr(type(lm), "eos_ids", ())  # else the answer has eight tokens, and is soon over


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(
    app: Any, url: str, lm: Any, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    slow = _Slow(lm, monkeypatch)
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "stream": stream}
    if stream:
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=20) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/completions", json=body, timeout=0.4)
    until(lambda: app.state.worker.busy == 0)
    time.sleep(0.15)  # the token that was being computed
    done = slow.tokens
    assert 0 < done < 50
    time.sleep(0.3)
    assert slow.tokens == done


def test_too_many_at_a_time(app: Any, url: str, lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _Slow(lm, monkeypatch)
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "temperature": 0}
    want = generate(lm, [PROMPT], max_new_tokens=20)[0].text
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/completions", json=body, timeout=30)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: app.state.worker.busy == 2)
    third = httpx.post(f"{url}/completions", json=body, timeout=20)
    assert third.status_code == 429
    assert third.headers["retry-after"] == "1"
    assert "2 requests are being answered already" in third.json()["error"]["message"]
    for thread in threads:
        thread.join(30)
    assert [a.json()["choices"][0]["text"] for a in answers] == [want] * 2


def test_a_token_is_asked_for_where_one_is_set(lm: Any) -> None:
    with running(create_app(lm, token="a-secret-token", decoder="sled")) as url:
        assert httpx.get(f"{url}/models").status_code == 401
        wrong = httpx.get(f"{url}/models", headers={"authorization": "Bearer a-secret-tokem"})
        assert wrong.status_code == 401
        assert "Authorization: Bearer TOKEN" in wrong.json()["error"]["message"]
        # A name of its own is fine once the token is right.
        known = {"authorization": "Bearer a-secret-token", "host": "gpu.example"}
        assert httpx.get(f"{url}/models", headers=known).status_code == 200
        with OpenAI(base_url=url, api_key="a-secret-token", max_retries=0) as client:
            got = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=9, temperature=0)
        assert got.choices[0].text == generate(lm, [PROMPT], decoder="sled", max_new_tokens=9)[0].text


def test_a_model_without_a_chat_template() -> None:
    bare = wrap(tiny.model("llama"), tiny.tokenizer(), name="bare")
    with running(create_app(bare)) as url:
        body = {"model": "bare", "messages": [{"role": "user", "content": "x"}]}
        got = httpx.post(f"{url}/chat/completions", json=body)
    assert got.status_code == 400
    assert "no chat template" in got.json()["error"]["message"]


def test_addresses() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        check_address(host, None)
    check_address("0.0.0.0", "long-enough")
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org", ""):
        with pytest.raises(InputError, match="can be reached from other machines"):
            check_address(host, None)
    for token in ("short", "with a space", "not-äscii-at-all", ""):
        with pytest.raises(InputError, match="token is not fit"):
            check_address("127.0.0.1", token)
    with pytest.raises(InputError, match="requests=0"):
        Limits(requests=0)


def test_the_command(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    code = "import sys; from exitlens.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", "--model", str(folder), "--dtype", "float32"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=120, check=False)
        assert refused.returncode == 2
        assert "choose another --port" in refused.stderr
    open_to_all = subprocess.run(
        [*command, "--host", "0.0.0.0"], capture_output=True, text=True, timeout=120, check=False
    )
    assert open_to_all.returncode == 2
    assert "give --token" in open_to_all.stderr

    environment = os.environ | {"EXITLENS_TOKEN": "from-the-environment"}
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stderr is not None
            lines = [server.stderr.readline(), server.stderr.readline()]
            url = lines[1].split(" at ")[1].split(" ")[0]
            until(lambda: _answers(url))
            known = {"authorization": "Bearer from-the-environment"}
            assert json.loads(httpx.get(f"{url}/models", headers=known).text)["data"][0]["id"] == str(folder)
        finally:
            begun = time.monotonic()
            server.terminate()
            assert server.wait(20) == 0
            assert time.monotonic() - begun < 5


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models").status_code == 401
    except httpx.TransportError:
        return False

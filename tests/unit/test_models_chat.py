"""Chat templates: on which day, what they refuse, and those that do not end."""

from __future__ import annotations

import datetime
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from tests.commands import call, done

import exitlens
from exitlens.errors import InputError
from exitlens.models import chat, wrap
from exitlens.models.chat import rendered

LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "Today Date: {{ date_string }} {{ messages[0].content }}"
)
FIXED = (
    "{% if not date_string is defined %}{% set date_string = '1 Jan 2020' %}{% endif %}Today Date: {{ date_string }}"
)
SMOL = "{% set today = strftime_now('%Y-%m-%d') %}{{ today }} {{ messages[0].content }}"
FALLS = (
    "  {%- macro when(f) %}{{ strftime_now(f) }}{% endmacro %}{{ when('%d/%m/%y %A 100%%') }} {{ messages[0].content }}"
)
PLAIN = "{{ messages[0].content }}"
TURNS = [{"role": "user", "content": "hello"}]

pytestmark = pytest.mark.wrong_types


def _model(template: str, day: str | None = None) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    lm = wrap(tiny.model("llama"), tokenizer, name="tiny")
    lm.chat_date = day
    return lm


@pytest.mark.parametrize(("template", "says"), [
    (LLAMA, "Today Date: 26 Jul 2024 hello"), (FIXED, "Today Date: 26 Jul 2024"), (SMOL, "2024-07-26 hello"),
    (PLAIN, "hello"), (FALLS, "26/07/24 Friday 100% hello"),
])  # fmt: skip
def test_a_given_day_is_the_one_that_is_written(template: str, says: str, caplog: pytest.LogCaptureFixture) -> None:
    lm = _model(template, "2024-07-26")
    assert rendered(lm, TURNS, tokenize=False) == says
    assert lm.decode(lm.encode_chat("hello")) == says
    other = _model(template, "2031-01-02")
    assert (rendered(other, TURNS, tokenize=False) == says) == (template == PLAIN)
    assert "writes the day" not in caplog.text


@pytest.mark.parametrize(("template", "dated"), [(LLAMA, True), (FIXED, False), (SMOL, True), (PLAIN, False)])
def test_a_template_that_writes_today_says_so_once(
    template: str, dated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    lm = _model(template)
    for _ in range(3):
        text = rendered(lm, TURNS, tokenize=False)
    today = datetime.datetime.now().astimezone()
    assert (str(today.year) in text) == dated
    assert caplog.text.count("--chat-date") == dated
    assert sum("writes the day" in note for note in lm.notes) == dated


@pytest.mark.parametrize("text", ["today", "2024-7-26", "26 Jul 2024", "2024-02-30", "20240726", "2024-07-26T00:00"])
def test_what_is_no_day_is_refused_before_the_model_is_loaded(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="is no day"):
        exitlens.load("/nowhere", chat_date=text)
    for words in (("generate", "hello", "--chat"), ("serve",)):
        code, _, error = call(capsys, *words, "--model", "/nowhere", "--chat-date", text)
        assert code == 2
        assert "is no day" in error


def test_the_command_writes_the_day_and_records_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.save(tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": SMOL}))
    asked = ("generate", "hello", "--chat", "--model", str(folder), "--max-new-tokens", "4")
    (one,) = done(capsys, *asked, "--chat-date", "2024-07-26")
    (other,) = done(capsys, *asked, "--chat-date", "2025-07-26")
    lm = exitlens.load(folder, chat_date="2024-07-26")
    want = lm.generate(lm.decode(lm.encode_chat("hello")), max_new_tokens=4)[0]
    assert one["chat_date"] == "2024-07-26"
    assert tuple(one["token_ids"]) == want.token_ids
    assert other["chat_date"] == "2025-07-26"
    code, _, error = call(capsys, "generate", "hello", "--model", str(folder), "--chat-date", "2024-07-26")
    assert code == 2
    assert "does nothing without --chat" in error


REFUSED = {
    "raise_exception": (
        "{{ raise_exception('Conversation roles must alternate\nuser, assistant') }}",
        "must alternate user, as",
    ),
    "undefined": ("{{ messages[0].parts[3].text }}", "parts"),
    "syntax": ("{% for m in messages %}{{ m.content }", "refuses these messages"),
    "division": ("{{ 1 // 0 }}", "division"),
    "unknown filter": ("{{ messages | shout }}", "shout"),
    "recursion": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion"),
    "a range too long": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_template_refuses_is_one_line(kind: str) -> None:
    template, says = REFUSED[kind]
    with pytest.raises(InputError, match=says) as caught:
        _model(template).encode_chat("hello")
    assert "\n" not in str(caught.value)
    assert "chat_template in tokenizer_config.json" in str(caught.value)
    assert len(str(caught.value)) < 320


ENDLESS = {
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
}


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_that_loops_ends_with_a_message(kind: str, thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    lm, said, before = _model(ENDLESS[kind]), [], sys.gettrace()

    def ask() -> None:
        with pytest.raises(InputError, match="it loops") as caught:
            lm.encode_chat("hello")
        said.append(str(caught.value))

    began = time.monotonic()
    if thread:  # a server's tokenizer works in one
        other = threading.Thread(target=ask)
        other.start()
        other.join(20)
    else:
        ask()
    assert len(said) == 1
    assert time.monotonic() - began < 10
    assert sys.gettrace() is before


@pytest.mark.parametrize("start", ["", "\n", "\n\n", "  ", "  {% set a = 1 %}\n", "\n  {% set a = 1 %}"])
def test_a_template_begins_as_it_did(start: str) -> None:
    template = start + "{{ messages[0].content }}{% if false %}{{ strftime_now('%d') }}{% endif %}\n"
    lm = _model(template)
    want = lm.tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert rendered(lm, TURNS, tokenize=False) == want
    assert not any("writes the day" in note for note in lm.notes)

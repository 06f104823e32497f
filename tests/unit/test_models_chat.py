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
from exitlens.models import wrap
from exitlens.models.text import chat, chat_bounds
from exitlens.models.text.chat import rendered

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


# What takes memory, or time inside of one step; each of them ran a machine out of it.
DOUBLING = "{{% set ns = namespace(s='ab') %}}{{% for i in range(60) %}}{}{{% endfor %}}"
LARGE = {
    "repetition": "{{ 'x' * 10**9 }}",
    "of a list": "{{ ([1] * 10**9)|length }}",
    "times a name": "{% set n = 10**9 %}{{ messages[0].content * n }}",
    "center": "{{ 'x'|center(10**9) }}",
    "a method": "{{ 'x'.center(10**9) }}",
    "by name": "{{ 'x'|center(width=10**9) }}",
    "by map": "{{ ['a']|map('center', 10**9)|list }}",
    "indent": "{{ 'a\nb'|indent(10**9) }}",
    "batch": "{% for b in [1]|batch(10**9, 'x') %}{% endfor %}",
    "tojson": "{{ [1]|tojson(indent=10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "bytes of a number": "{{ (5).to_bytes(10**10, 'big') }}",
    "%": "{{ '%1000000000d' % 1 }}",
    "% *": "{{ '%*d' % (10**9, 1) }}",
    "format, a filter": "{{ '%1000000000d'|format(1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format, nested": "{{ '{:>{}}'.format(1, 10**9) }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "squares": "{% set ns = namespace(n=3) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "doubling by +": DOUBLING.format("{% set ns.s = ns.s + ns.s %}"),
    "doubling by ~": DOUBLING.format("{% set ns.s = ns.s ~ ns.s %}"),
    "doubling by set": DOUBLING.format("{% set a %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = a %}"),
    "doubling by join": DOUBLING.format("{% set ns.s = [ns.s, ns.s]|join %}"),
    "doubling by replace": DOUBLING.format("{% set ns.s = ns.s|replace('a', 'aa') %}"),
    "doubling by its method": DOUBLING.format("{% set ns.s = ns.s.replace('a', 'aa') %}"),
    "doubling by a macro": "{% macro f(s) %}{{ s }}{{ s }}{% endmacro %}" + DOUBLING.format("{% set ns.s = f(ns.s) %}"),
    "slices kept": "{% set ns = namespace(l=[]) %}{% set s = 'x' * 10**5 %}{% for i in range(99999) %}"
    "{% set ns.l = ns.l + [s[1:]] %}{% endfor %}",
    "output": "{% set s = 'x' * 10**5 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
    "a list of itself twice": DOUBLING.format("{% set ns.s = [ns.s, ns.s] %}") + "{{ ns.s }}",
    "a dictionary of itself twice": DOUBLING.format("{% set ns.s = {'a': ns.s, 'b': ns.s} %}") + "{{ ns.s|tojson }}",
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_template_that_grows_ends_with_a_message(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_bounds, "MOST", 300_000)  # reached sooner, and by no template that does not grow
    monkeypatch.setattr(chat_bounds, "_PIECES", 10_000)
    began = time.monotonic()
    with pytest.raises(InputError, match="makes more than 300,000 characters") as caught:
        rendered(_model(LARGE[kind]), TURNS, tokenize=False)
    assert "chat_template in tokenizer_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 5


def test_long_messages_are_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_bounds, "MOST", 1000)
    text = "ab " * 2000
    assert rendered(_model(PLAIN), [{"role": "user", "content": text}], tokenize=False) == text


RICH = (
    "{%- macro turn(m, last=false) -%}<|{{ m['role'] }}|>{{ m.content|trim ~ ('' if last else '\n') }}{%- endmacro -%}"
    "{%- set ns = namespace(seen=[], n=1) -%}{%- set rest = messages[1:] + messages[:1] -%}"
    "{%- for m in rest -%}{%- set ns.n = ns.n * 2.5 + 10**8 * 1.5 -%}{%- set ns.seen = ns.seen + [m.role] -%}"
    "{{ turn(m, loop.last) }}{%- endfor -%}{{ ns.seen|join(', ') }} {{ ns.n|round|int }}"
    " {{ messages|tojson(indent=2) }}"
    "{{ '%s-%03d' % ('a', 7) }} {{ '{:>5}|{}'.format('b', none) }} {{ ('x' * 3)|center(9)|replace('x', 'yz') }}"
    "{% for k, v in {'a': 1, 'b': [1, (2, 3)]}.items() %}{{ k }}={{ v }};{% endfor %}{{ nothing }}{{ 7 % 4 }}"
    "{{ messages|map(attribute='role')|list }}{{ messages[0].content.split('l')[-1] }}{{ ','.join(['p', 'q']) }}"
    "{% generation %}g{% endgeneration %}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
)


def test_other_templates_write_what_they_did() -> None:
    lm, turns = _model(RICH), [*TURNS, {"role": "assistant", "content": " hi <there> "}]
    want = lm.tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered(lm, turns, tokenize=False) == want
    assert len(want) > 200
    # Who renders a template without us is not held to our bound.
    lm.tokenizer.chat_template = "{{ ('x' * 60000000)|length }}"
    assert lm.tokenizer.apply_chat_template(turns, tokenize=False) == "60000000"


@pytest.mark.parametrize("start", ["", "\n", "\n\n", "  ", "  {% set a = 1 %}\n", "\n  {% set a = 1 %}"])
def test_a_template_begins_as_it_did(start: str) -> None:
    template = start + "{{ messages[0].content }}{% if false %}{{ strftime_now('%d') }}{% endif %}\n"
    lm = _model(template)
    want = lm.tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert rendered(lm, TURNS, tokenize=False) == want
    assert not any("writes the day" in note for note in lm.notes)

"""A tokenizer whose pattern backtracks without end is refused with the pattern and its field: no hang, no panic."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from tests.commands import call
from tokenizers import Regex, normalizers, pre_tokenizers

import exitlens
from exitlens.errors import InputError, UnsupportedModel
from exitlens.models import wrap
from exitlens.models.layered import Layered
from exitlens.models.text import patterns
from exitlens.models.text.patterns import check_patterns

# GPT-2's, GPT-4's and one with a repeated group that is harmless.
GOOD = [
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?:ab)+|.",
    r"(?:\p{L}+)+@",
]
BAD = [r"(a+)+b", r"(a+a+)+b", r"(?:\p{L}+\p{L}+)+@", r"(x+x+)+y|.", r"([0-9]+[0-9]*)*#", r"((a|aa)+)+c"]

# No repeated group: the time grows by the third power of the length, or more.
SLOW = [r"a*a*b", r"\s*\s*\s*x", r"\p{L}+\p{L}+\p{L}+@"]


def _tokenizer(pattern: str, part: str = "pre_tokenizer") -> Any:
    tokenizer = tiny.tokenizer()
    backend = tokenizer.backend_tokenizer
    if part == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Replace(Regex(pattern), "-")])
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return tokenizer


@pytest.mark.parametrize("pattern", GOOD)
def test_patterns_that_models_have_are_taken(pattern: str) -> None:
    assert wrap(tiny.model("llama"), _tokenizer(pattern)).encode("ab 12 what's")


@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
@pytest.mark.parametrize("pattern", BAD)
def test_patterns_that_do_not_end_are_named(pattern: str, part: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedModel, match="backtracks without end") as caught:
        check_patterns(_tokenizer(pattern, part), "mine")
    field = "pre_tokenizer.pretokenizers.0.pattern.Regex" if part == "pre_tokenizer" else "normalizer.normalizers.0"
    assert field in str(caught.value)
    assert repr(pattern) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
@pytest.mark.parametrize("pattern", SLOW)
def test_patterns_whose_time_grows_by_a_power_are_named(pattern: str, part: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"backtracks (for .* s, on half of it|without end)") as caught:
        check_patterns(_tokenizer(pattern, part), "mine")
    assert re.search(r"on a text of (300|1000) characters", str(caught.value))
    assert repr(pattern) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_one_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.model("llama").save_pretrained(tmp_path)
    _tokenizer(BAD[0]).save_pretrained(tmp_path)
    code, _, error = call(capsys, "generate", "hello", "--model", str(tmp_path))
    assert code == 2
    assert error.splitlines()[-1].startswith("error: ")
    assert "tokenizer.json (pre_tokenizer" in error
    with pytest.raises(UnsupportedModel):
        exitlens.load(tmp_path)


def test_one_that_no_trial_finds_is_one_line_when_it_is_met() -> None:
    lm = Layered(tiny.model("llama"), _tokenizer(BAD[0]), name="mine", fingerprint="0")
    assert lm.encode("hello")
    with pytest.raises(InputError, match="the tokenizer of mine gives up on a text of 60 characters"):
        lm.encode("a" * 60)
    lm.tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(InputError, match="the tokenizer of mine gives up on a text of 60 characters"):
        lm.encode_chat("a" * 60)


def test_one_whose_time_grows_with_the_square_is_bounded_on_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trial shows it: 300 letters take microseconds, a million take hours."""
    lm = wrap(tiny.model("llama"), _tokenizer("a*b|."))
    lm.tokenizer.chat_template = "{{ messages[0].content }}"
    plain = "is true. " * 4000
    assert lm.encode(plain) == list(lm.tokenizer(plain, add_special_tokens=False)["input_ids"])
    monkeypatch.setattr(patterns, "SECONDS", 0.3)
    monkeypatch.setattr(patterns, "_SPEED", 1e9)
    for encode in (lm.encode, lm.encode_chat):
        began = time.monotonic()
        with pytest.raises(InputError, match=r"50002 characters .* not done within 0 s: a pattern takes time by"):
            encode("a" * 50_000 + "\x01b")
        assert time.monotonic() - began < 5


def test_one_that_never_comes_back_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    going = threading.Event()

    class Slow:
        backend_tokenizer = _tokenizer(r"(?:ab)+").backend_tokenizer

        def __call__(self, *_: Any, **__: Any) -> dict[str, list[int]]:
            going.wait(20)
            return {"input_ids": []}

    began = time.monotonic()
    with pytest.raises(UnsupportedModel, match="backtracks without end"):
        check_patterns(Slow(), "slow")
    assert time.monotonic() - began < 10
    going.set()

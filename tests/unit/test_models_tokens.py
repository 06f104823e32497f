"""Texts never end in a token of the tokenizer's own, and a token that the embedding lacks is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import processors

import exitlens
from exitlens.errors import InputError
from exitlens.models import wrap
from exitlens.models.native.runner import native
from exitlens.models.text.tokens import appended

from .. import tiny

TEXTS = ["", "a", "The capital of France is", "ends with <|end|>", "  two  spaces ", "né"]


def _tokenizer(before: str = "", behind: str = "<|end|>") -> Any:
    tokenizer = tiny.tokenizer()
    start = f"{before} " if before else ""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}$A {behind}".strip(), pair=f"{start}$A $B {behind}".strip(), special_tokens=[("<|end|>", 0)]
    )
    return tokenizer


@pytest.mark.parametrize(("before", "behind", "ends"), [
    ("", "", ()), ("<|end|>", "", ()), ("", "<|end|>", (0,)), ("<|end|>", "<|end|>", (0,)),
    ("<|end|>", "<|end|> <|end|>", (0, 0)),
])  # fmt: skip
def test_what_is_put_behind_a_text_is_left_out(
    before: str, behind: str, ends: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = _tokenizer(before, behind)
    assert appended(tokenizer) == ends
    lm = wrap(tiny.model("llama"), tokenizer)
    assert ("ends every text with <|end|>" in caplog.text) == bool(ends)
    assert caplog.text.count("ends every text") == bool(ends)
    plain = wrap(tiny.model("llama"), tiny.tokenizer())
    for text in TEXTS:
        want = ([0] if before else []) + plain.encode(text)
        assert lm.encode(text) == want
        assert lm.encode(text, special=False) == plain.encode(text, special=False)


def test_answers_score_and_go_on_as_without_it() -> None:
    lm, plain = wrap(tiny.model("llama"), _tokenizer()), wrap(tiny.model("llama"), tiny.tokenizer())
    prompts = ["What is true?", "The capital of France is"]
    ours = exitlens.generate(lm, prompts, max_new_tokens=4)  # type: ignore[arg-type]
    theirs = exitlens.generate(plain, prompts, max_new_tokens=4)  # type: ignore[arg-type]
    assert [list(a.token_ids) for a in ours] == [list(b.token_ids) for b in theirs]
    assert exitlens.read(lm, prompts).to_pandas().equals(exitlens.read(plain, prompts).to_pandas())


def _larger() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|new|>", "<|other|>"])
    tokenizer.chat_template = "{% for m in messages %}<|other|>{{ m.content }}{% endfor %}"
    return tokenizer


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_token_beyond_the_embedding_is_named_everywhere(family: str, caplog: pytest.LogCaptureFixture) -> None:
    lm: Any = exitlens.wrap(tiny.model(family), _larger())
    assert "its tokenizer has 322 tokens, its embedding 320" in caplog.text
    said = r"token 320 \('<\|new\|>'\) is not one of .*: its embedding has 320 tokens, its tokenizer 322"
    bad = "a <|new|> b"
    for use in (
        lambda: lm.encode(bad),
        lambda: lm.read([bad]),
        lambda: lm.look(bad),
        lambda: lm.generate([bad], max_new_tokens=2),
        lambda: lm.score("a b", [bad]),
        lambda: lm.forward(torch.tensor([[1, 320]])),
    ):
        with pytest.raises(InputError, match=said):
            use()
    with pytest.raises(InputError, match=r"token ids outside 0\.\.319"):
        lm.generate([[5, 320]], max_new_tokens=2)
    with pytest.raises(InputError, match=r"token 321 \('<\|other\|>'\)"):
        lm.encode_chat("hello")
    with pytest.raises(InputError, match=r"token -1 "):
        lm.forward(torch.tensor([[-1, 3]]))
    assert lm.encode("a b") == wrap(tiny.model(family), tiny.tokenizer()).encode("a b")


def test_blocks_run_apart_say_it_too() -> None:
    lm = wrap(tiny.model("llama"), _larger())
    runner = native(lm)
    assert runner is not None
    with pytest.raises(InputError, match="token 320"):
        runner.embed(torch.tensor([[320]]), runner.where(0, 1))

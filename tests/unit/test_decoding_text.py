"""An answer reads as it goes on after its prompt, with any tokenizer; special tokens as stop strings end it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers as tf
from tests import tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from exitlens.decoding import Scores, generate, stream
from exitlens.decoding.stopping import continued
from exitlens.decoding.stream_states import Watched, watch
from exitlens.models import wrap

WORDS = ["<s>", "</s>", "<|im_end|>", "▁what", "▁is", "▁sciences", "iss", "ue", "▁true", "▁", ".", "▁a"]
WORDS += ["▁STOP", "▁STOPa"]


@lru_cache
def sentencepiece() -> Any:
    """As Llama's and Mistral's: spaces stand before words, and decoding drops the first of a text."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="▁"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    made.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:3]])
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


class Says:
    """A decoder that writes the tokens it was given, one after the other."""

    name, lens = "says", "logit"

    def __init__(self, *words: str) -> None:
        self.ids = [WORDS.index(word) for word in words]
        self.step = 0

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        return ()

    def __call__(self, final: torch.Tensor, early: torch.Tensor, n_layers: int) -> Scores:
        scores = torch.zeros_like(final)
        scores[:, self.ids[self.step % len(self.ids)]] = 1.0
        self.step += 1
        return Scores(scores)


@lru_cache
def model() -> Any:
    return wrap(tiny.model("llama"), sentencepiece())


def prompt(*words: str) -> list[int]:
    return [WORDS.index(word) for word in words]


def test_an_answer_keeps_the_space_between_it_and_its_prompt() -> None:
    lm = model()
    said = ("▁sciences", "▁true", ".")
    (answer,) = generate(lm, [prompt("<s>", "▁what", "▁is")], decoder=Says(*said), max_new_tokens=3)
    assert answer.text == " sciences true."
    assert answer.prompt + answer.text == "what is sciences true."
    *pieces, last = stream(lm, prompt("<s>", "▁what", "▁is"), decoder=Says(*said), max_new_tokens=3)
    assert "".join(str(piece) for piece in pieces) == " sciences true." == last.text  # type: ignore[union-attr]
    (joined,) = generate(lm, [prompt("<s>", "▁what", "iss")], decoder=Says("ue"), max_new_tokens=1)
    assert joined.prompt + joined.text == "whatissue"


def test_a_stop_string_that_begins_with_a_space_is_found_at_the_first_token_too() -> None:
    lm = model()
    for words, text in ((("▁STOP", "▁a"), ""), (("▁true", "▁STOP", "▁a"), " true")):
        asked = [prompt("<s>", "▁what", "▁is")]
        (answer,) = generate(lm, asked, decoder=Says(*words), max_new_tokens=5, stop=[" STOP"])
        assert (answer.text, answer.finish) == (text, "stop")
        *pieces, _ = stream(lm, asked[0], decoder=Says(*words), max_new_tokens=5, stop=[" STOP"])
        assert "".join(map(str, pieces)) == text
        watched = [w for w in watch(lm, asked[0], [1], decoder=Says(*words), max_new_tokens=5, stop=[" STOP"])
                   if isinstance(w, Watched)]  # fmt: skip
        assert len(watched) == len(words) - 2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_special_token_as_stop_string_ends_the_answer_and_is_no_part_of_it(batch_size: int) -> None:
    lm = model()
    asked = [prompt("<s>", "▁what")] * 3
    said = ("▁true", "<|im_end|>", "▁a")
    (first, *_) = generate(lm, asked, decoder=Says(*said), max_new_tokens=6, stop=["<|im_end|>", " STOP"],
                           batch_size=batch_size if batch_size == 3 else 1)  # fmt: skip
    assert (first.text, first.finish, first.token_ids) == (" true", "eos", (WORDS.index("▁true"),))
    *pieces, last = stream(lm, asked[0], decoder=Says(*said), max_new_tokens=6, stop=["<|im_end|>"])
    assert (pieces, last.finish) == ([" true"], "eos")  # type: ignore[union-attr]
    (unstopped,) = generate(lm, asked[:1], decoder=Says(*said), max_new_tokens=3)
    assert len(unstopped.token_ids) == 3


def test_bytes_of_one_character_on_both_sides_of_the_border() -> None:
    tokenizer = tiny.tokenizer()
    text = "Paris, 日本 is é"
    ids = tokenizer.encode(text, add_special_tokens=False)

    def decode(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=True))

    whole = 0
    for cut in range(1, len(ids)):
        begun = decode(ids[:cut])
        rest = continued(decode, ids[:cut], ids[cut:])
        if not begun.endswith("\ufffd"):
            assert begun + rest == text
            whole += 1
        else:  # the character whose first bytes end the prompt is the answer's
            assert text.endswith(rest)
            assert begun.rstrip("\ufffd") + rest == text
    assert 0 < whole < len(ids) - 1


def test_a_token_is_shown_with_its_space() -> None:
    lm = model()
    shown = {word: lm.token(WORDS.index(word)) for word in ("▁true", "iss", "ue", "▁is", "</s>", ".")}
    assert shown == {"▁true": " true", "iss": "iss", "ue": "ue", "▁is": " is", "</s>": "</s>", ".": "."}

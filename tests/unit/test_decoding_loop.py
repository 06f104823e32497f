"""The loop around a decoder: where answers end, what is sampled, what is streamed, what is refused."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from tests import tiny

from exitlens.decoding import Sampling, generate, stream
from exitlens.decoding.sampling import penalise, row_generator
from exitlens.decoding.stopping import StopStrings
from exitlens.errors import ContextError, InputError
from exitlens.models import wrap
from exitlens.models.native.runner import runner_of

PROMPTS = ["How many whiskers does a human have?", "Q: What is true?", "Paris", "Q: What is true?"]


@lru_cache
def model(family: str = "llama") -> Any:
    return wrap(tiny.model(family, spread=0.2), tiny.tokenizer())


# ---- stop strings


class Bytes:
    """One token a byte: every stop string is split, characters too."""

    def __init__(self, size: int = 1) -> None:
        self.size = size

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Any) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("Snow is cold.\nQ: Why", ("\nQ:",), "Snow is cold."),
        ("one two three", ("two", "three"), "one "),
        ("一二三。四五", ("。",), "一二三"),
        ("yes 🦥🦦 no", ("🦦",), "yes 🦥"),
        ("é è", (" è",), "é"),
        ("STOP at once", ("STOP",), ""),
        ("aab", ("ab",), "a"),
    ],
)
def test_a_stop_string_split_over_tokens(text: str, stops: tuple[str, ...], kept: str) -> None:
    tokenizer = Bytes()
    found = StopStrings(stops, tokenizer.decode)
    ids = tokenizer.encode(text)
    first = next(n for n in range(1, len(ids) + 1) if found.found(ids[:n]))
    end = min(text.find(stop) + len(stop) for stop in stops if stop in text)
    assert first == len(text[:end].encode())  # at the very byte that completes it
    answer, n = found.cut(ids[:first])
    assert answer == kept
    assert tokenizer.decode(ids[:n]) == kept


def test_text_without_a_stop_is_left_whole() -> None:
    tokenizer = Bytes()
    found = StopStrings(("\nQ:",), tokenizer.decode)
    ids = tokenizer.encode("Snow\nQ is not it: 🦥")
    assert not any(found.found(ids[:n]) for n in range(len(ids) + 1))
    assert found.cut(ids) == ("Snow\nQ is not it: 🦥", len(ids))


def test_stops_that_cannot_be() -> None:
    tokenizer = Bytes()
    with pytest.raises(InputError, match="is empty"):
        StopStrings(("",), tokenizer.decode)

    def lower(text: str) -> list[int]:
        return tokenizer.encode(text.lower())

    with pytest.raises(InputError, match="'STOP' cannot be written by this tokenizer") as error:
        StopStrings(("STOP",), tokenizer.decode, lower)
    assert "\n" not in str(error.value)
    StopStrings(("stop",), tokenizer.decode, lower)


def test_generation_ends_before_a_stop_string() -> None:
    lm = model()
    whole = generate(lm, PROMPTS, max_new_tokens=24)
    for n in range(3, 8):
        stop = whole[0].text[n : n + 3]
        if not stop.isprintable() or "�" in stop:
            continue
        got = generate(lm, PROMPTS, max_new_tokens=24, stop=[stop])
        for a, b in zip(whole, got, strict=True):
            assert b.text == a.text.split(stop)[0]
            assert b.finish == ("stop" if stop in a.text else a.finish)
            assert lm.decode(b.token_ids).startswith(b.text)
            assert len(b.token_ids) == len(b.tokens)


# ---- sampling


def test_a_row_does_not_depend_on_batch_size_or_order() -> None:
    lm = model()
    options: dict[str, Any] = {"sampling": Sampling(temperature=1.5, top_p=0.95), "seed": 3, "max_new_tokens": 12}
    alone = [g.token_ids for g in generate(lm, PROMPTS, batch_size=1, **options)]
    together = [g.token_ids for g in generate(lm, PROMPTS, batch_size=8, **options)]
    assert alone == together
    turned = [g.token_ids for g in generate(lm, PROMPTS[::-1], batch_size=2, **options)]
    assert turned == [alone[1], alone[2], alone[3], alone[0]]
    # The same prompt twice gives two answers, and another seed others.
    assert alone[1] != alone[3]
    assert [g.token_ids for g in generate(lm, PROMPTS, **(options | {"seed": 4}))] != alone


def drawn(sampling: Sampling, scores: torch.Tensor, n: int = 6000) -> torch.Tensor:
    generators = [row_generator(0, [1], k) for k in range(n)]
    return torch.bincount(sampling.choose(scores.expand(n, -1), generators), minlength=scores.shape[-1])


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.0), Sampling(0.5), Sampling(2.0, top_k=4), Sampling(1.0, top_p=0.7), Sampling(1.0, min_p=0.2)],
)
def test_tokens_come_as_often_as_their_probability_says(sampling: Sampling) -> None:
    from scipy.stats import chisquare

    scores = torch.tensor([[2.0, 1.0, -float("inf"), 0.5, 0.0, -1.0, 1.5, -4.0]])
    want = by_hand(sampling, scores[0])
    counts = drawn(sampling, scores)
    assert (counts[want == 0] == 0).all()
    live = want > 0
    assert chisquare(counts[live].numpy(), (want[live] * counts.sum()).numpy()).pvalue > 1e-3


def by_hand(sampling: Sampling, scores: torch.Tensor) -> torch.Tensor:
    """The filters token by token, in their order, each on what the one before left."""
    p = [float(x) for x in (scores.double() / sampling.temperature).softmax(-1)]
    order = sorted(range(len(p)), key=lambda i: -p[i])
    if sampling.top_k:
        for i in order[sampling.top_k :]:
            p[i] = 0.0
    total, mass = sum(p), 0.0
    for i in order:
        if mass >= sampling.top_p * total:
            p[i] = 0.0
        mass += p[i]
    p = [x if x >= sampling.min_p * max(p) else 0.0 for x in p]
    return torch.tensor([x / sum(p) for x in p], dtype=torch.float64)


def test_greedy_takes_the_first_of_equals_and_uses_no_randomness() -> None:
    assert Sampling().choose(torch.tensor([[1.0, 3.0, 3.0]]), [None]).tolist() == [1]
    assert Sampling(5.0, top_k=1).choose(torch.tensor([[1.0, 3.0, 2.0]]), [row_generator(0, [1], 0)]).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"min_p": 2.0}, "min_p 2.0"),
    ],
)
def test_sampling_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**options)


def test_the_penalty() -> None:
    scores = torch.tensor([[2.0, -2.0, 0.0, -float("inf"), 2.0]])
    seen = torch.tensor([[True, True, True, True, False]])
    assert penalise(scores, seen, 2.0).tolist() == [[1.0, -4.0, 0.0, -float("inf"), 2.0]]
    assert scores[0, 0] == 2.0
    assert penalise(scores, seen, 1.0) is scores


def test_the_penalty_is_over_prompt_and_output() -> None:
    lm = model()
    strong = generate(lm, PROMPTS, max_new_tokens=24, repetition_penalty=1e6)
    for prompt, got in zip(PROMPTS, strong, strict=True):
        assert len(set(got.token_ids)) == len(got.token_ids)
        assert not set(got.token_ids) & set(lm.encode(prompt))


# ---- streaming


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.0)])
def test_pieces_join_to_the_answer(sampling: Sampling | None) -> None:
    lm = model()
    for prompt in PROMPTS[:3]:
        whole = generate(lm, [prompt], max_new_tokens=20, sampling=sampling, seed=1)[0]
        *pieces, last = stream(lm, prompt, max_new_tokens=20, sampling=sampling, seed=1)
        assert "".join(str(p) for p in pieces) == whole.text
        assert last == whole
        assert all(pieces)


def test_a_stream_never_shows_the_beginning_of_a_stop_string() -> None:
    lm = model()
    text = generate(lm, PROMPTS[:1], max_new_tokens=24)[0].text
    for n in range(2, 10):
        stop = text[n : n + 4]
        if "�" in stop:
            continue
        *pieces, last = stream(lm, PROMPTS[0], max_new_tokens=24, stop=[stop])
        assert "".join(str(p) for p in pieces) == text.split(stop)[0] == last.text  # type: ignore[union-attr]


def test_a_stream_shows_text_before_the_answer_is_whole() -> None:
    pieces = stream(model(), PROMPTS[0], max_new_tokens=20)
    assert isinstance(next(pieces), str)
    pieces.close()  # type: ignore[attr-defined]


# ---- input


@pytest.mark.wrong_types
def test_a_prompt_of_neither_kind_is_named() -> None:
    with pytest.raises(InputError, match=r"'A' \(str\) was given as one of a prompt's token ids"):
        generate(model(), [["A", "B"]])  # type: ignore[list-item]


def test_token_ids_are_taken_as_they_are() -> None:
    lm = model()
    ids = lm.encode(PROMPTS[0])
    by_ids, by_text = generate(lm, [ids], max_new_tokens=5)[0], generate(lm, PROMPTS[:1], max_new_tokens=5)[0]
    assert by_ids == by_text
    with pytest.raises(InputError, match=r"outside 0\.\.319"):
        generate(lm, [[5, 320]])


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("", {}, InputError, "empty"),
        ("A", {"max_new_tokens": 0}, InputError, "max_new_tokens=0"),
        ("A", {"repetition_penalty": 0.0}, InputError, "repetition_penalty 0.0"),
        ("A", {"max_new_tokens": 300}, ContextError, "does not fit the context of 256"),
        ("A" * 300, {}, ContextError, "shorten it"),
        ("A", {"decoder": "dola:9"}, InputError, "out of range"),
        ("A", {"stop": [""]}, InputError, "stop string is empty"),
        ("A\ud800", {}, InputError, "is no character"),
        ("A", {"stop": ["\udfff"]}, InputError, "is no character"),
        ("A", {"chat": True}, InputError, "no chat template"),
    ],
)
def test_what_cannot_be_generated_is_one_line(prompt: str, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as found:
        generate(model(), [prompt], **options)
    assert "\n" not in str(found.value)


def test_the_whole_context_can_be_filled() -> None:
    lm = model()
    n = 256 - len(lm.encode("A"))
    got = generate(lm, ["A"], max_new_tokens=n)[0]
    assert got.finish in ("length", "eos")


def test_layers_that_a_decoder_does_not_read_are_not_unembedded(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model()
    asked: list[tuple[int, int]] = []
    runner = runner_of(lm)
    assert runner is not None
    plain = runner.logits
    monkeypatch.setattr(
        runner, "logits", lambda h, j, lens="logit": asked.append((j, h.numel() // h.shape[-1])) or plain(h, j, lens)
    )
    generate(lm, PROMPTS[:2], decoder="dola:2", max_new_tokens=3)
    assert {j for j, _ in asked} == {2, 3}
    assert {rows for _, rows in asked} == {2}  # the last position of each row and no other


def test_a_trace_reports_what_vanilla_would_have_taken() -> None:
    lm = model()
    got = generate(lm, PROMPTS[:1], decoder="dola:0/2", max_new_tokens=6, trace=True)[0]
    ids = lm.encode(PROMPTS[0])
    for k, token in enumerate(got.steps["vanilla"]):
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*ids, *got.token_ids[:k]]])).logits[0, -1]
        assert int(logits.argmax()) == int(token)
        assert int(got.steps["choice"][k]) in (0, 2)
        assert got.steps["divergence"][k].shape == (2,)
        assert 1 <= int(got.steps["kept"][k]) <= 320

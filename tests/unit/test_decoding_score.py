"""Scores of given continuations: equal to one plain pass for each of them, for any decoder."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny

from exitlens.data.prompts import ZERO_SHOT_PROMPT
from exitlens.data.records import Question
from exitlens.decoding import DoLa, parse_decoder
from exitlens.decoding.score import FLOOR, ContinuationScorer, score
from exitlens.errors import ContextError, InputError
from exitlens.models import wrap
from exitlens.studies.decoding.multiple_choice import mc_scores

SHARED = list(range(40, 52))
CONTEXTS = [[*SHARED, 7, 9, 11], [*SHARED, 7, 9, 12], [*SHARED, 8, 9, 12, 14, 3], [*SHARED, 80]]
ANSWERS = [[5, 6, 7, 8, 9], [5], [100, 101], [250, 3, 77]]


@lru_cache
def model(family: str) -> Any:
    return wrap(tiny.model(family, spread=0.2), tiny.tokenizer())


def slowly(lm: Any, context: list[int], answer: list[int], text: str, post_softmax: bool) -> np.ndarray:
    """One whole pass, without cache, batch or prefix; a position at a time."""
    decoder = parse_decoder(text)
    layers = decoder.layers(lm.n_layers, False)
    out = []
    for k, token in enumerate(answer):
        ids = torch.tensor([[*context, *answer[:k]]])
        with torch.no_grad():
            hidden = {j: h[:, -1] for j, h in lm.forward(ids, layers="all").hidden.items()}
            final = lm.model(ids).logits[:, -1]
            early = [lm.logits(hidden[j], j, decoder.lens) for j in layers]
            stacked = torch.stack(early) if early else final.new_empty(0, *final.shape)
            scores = decoder(final, stacked, lm.n_layers).scores
        if post_softmax:
            scores = scores.double().log_softmax(-1)
        out.append(max(float(scores[0, token]), FLOOR))
    return np.array(out)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "falcon"])
@pytest.mark.parametrize(
    ("text", "post_softmax"),
    [("vanilla", True), ("dola:0/2,top=0", True), ("dola:0/2,top=0.001", False), ("sled", True), ("end:1/2", True)],
)
def test_scores_are_those_of_a_pass_for_each_answer(family: str, text: str, post_softmax: bool) -> None:
    lm = model(family)
    requests = [(c, a) for c in CONTEXTS for a in ANSWERS] + [([*SHARED, 1, 2], [3])]
    want = [slowly(lm, c, a, text, post_softmax) for c, a in requests]
    for shared, batch_size in ((SHARED, 3), ((), 16)):
        scorer = ContinuationScorer(lm, text, shared=shared, post_softmax=post_softmax)
        got = scorer.score(requests, batch_size=batch_size)
        for one, expected in zip(got, want, strict=True):
            np.testing.assert_allclose(one.logprobs, expected, atol=2e-4)
            assert one.total == pytest.approx(expected.sum(), abs=1e-3)


def test_a_position_in_a_small_block_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model("llama")
    requests = [(c, a) for c in CONTEXTS for a in ANSWERS]
    whole = ContinuationScorer(lm, "dola:0/2").score(requests)
    scorer = ContinuationScorer(lm, "dola:0/2")
    monkeypatch.setattr(scorer, "_block", 2)
    for a, b in zip(whole, scorer.score(requests), strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_greedy_says_whether_the_decoder_would_have_written_it() -> None:
    from exitlens.decoding import generate

    lm = model("llama")
    for text in ("vanilla", "dola:0/2"):
        answer = list(generate(lm, ["What is true?"], decoder=text, max_new_tokens=5)[0].token_ids)
        context = lm.encode("What is true?")
        other = [*answer[:-1], (answer[-1] + 1) % 300 + 1]
        got = ContinuationScorer(lm, text).score([(context, answer), (context, other)])
        assert [s.greedy for s in got] == [True, False]


def test_vanilla_gives_log_probabilities_whatever_the_setting_and_contrasts_do_not() -> None:
    lm = model("llama")
    same = [score(lm, CONTEXTS[0], ANSWERS, "vanilla", post)[0] for post in (True, False)]
    assert (same[0] == same[1]).all()
    assert (same[0] < 0).all()
    differ = [score(lm, CONTEXTS[0], ANSWERS, "dola:0/2,top=0", post)[0] for post in (True, False)]
    assert not np.allclose(*differ)


def test_a_filtered_token_counts_the_floor_and_the_sum_stays_a_number() -> None:
    lm = model("llama")
    found = np.concatenate(score(lm, CONTEXTS[0], ANSWERS, "dola:0/2,top=0.9"))
    assert (found == FLOOR).any()
    assert np.isfinite(found).all()


def question(**changes: Any) -> Question:
    made = {"id": "q1", "question": "What is true?", "best": "A statement", "correct": ("A statement", "Paris"),
            "incorrect": ("None", "2 + 2")} | changes  # fmt: skip
    return Question(**made)


def test_multiple_choice_is_computed_from_the_answers_scores() -> None:
    lm = model("llama")
    questions = [question(), question(id="q2", question="What is false?", incorrect=("Paris, and", "A", "human"))]
    steps: list[tuple[int, int]] = []
    one_by_one = mc_scores(
        lm, questions, "dola:0/2,top=0", style=ZERO_SHOT_PROMPT, batch_size=1, progress=lambda *a: steps.append(a)
    )
    assert steps == [(1, 2), (2, 2)]
    got = mc_scores(lm, questions, "dola:0/2,top=0", style=ZERO_SHOT_PROMPT)  # answers of both side by side
    for a, b in zip((*got.correct, *got.incorrect), (*one_by_one.correct, *one_by_one.incorrect), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    for i, q in enumerate(questions):
        context = lm.encode(f"Q: {q.question}\nA:")

        def total(answer: str, context: list[int] = context) -> float:
            ids = lm.encode(f" {answer}")
            return float(slowly(lm, context, ids, "dola:0/2,top=0", True).sum())

        right, wrong = [total(a) for a in q.correct], [total(a) for a in q.incorrect]
        np.testing.assert_allclose(got.correct[i], right, atol=1e-3)
        np.testing.assert_allclose(got.incorrect[i], wrong, atol=1e-3)
        assert got.mc1[i] == float(total(q.best) > max(wrong))
        assert got.mc2[i] == pytest.approx(np.exp(right).sum() / np.exp(right + wrong).sum(), abs=1e-3)
        assert got.mc3[i] == np.mean([r > max(wrong) for r in right])


@pytest.mark.parametrize(
    ("context", "answer", "error", "message"),
    [
        ([5], [], InputError, "nothing to score"),
        ([], [5], InputError, "must begin with"),
        ([5] * 250, [6] * 8, ContextError, "do not fit the context of 256"),
    ],
)
def test_what_cannot_be_scored(context: list[int], answer: list[int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        score(model("llama"), context, [answer])


def test_a_question_without_wrong_answers() -> None:
    with pytest.raises(InputError, match=r"'q1' has no incorrect answers"):
        mc_scores(model("llama"), [question(incorrect=())])


def test_the_longest_continuation_that_fits() -> None:
    lm = model("llama")
    assert len(score(lm, [5] * 250, [[6] * 7])[0]) == 7


def log_p_and_q(lm: Any, context: list[int], answer: list[int], layer: int) -> tuple[np.ndarray, np.ndarray]:
    """``log p`` and ``log q`` ``[tokens, vocab]`` in float64 at the places that an answer's tokens are chosen from."""
    ids = torch.tensor([[*context, *answer]])
    with torch.no_grad():
        hidden = lm.forward(ids, layers=[layer, lm.n_layers]).hidden
        rows = [lm.logits(hidden[j], j, "raw")[0, len(context) - 1 : -1].double() for j in (lm.n_layers, layer)]
    log_p, log_q = (z.log_softmax(-1).numpy() for z in rows)
    return log_p, log_q


@pytest.mark.parametrize("post_softmax", [True, False])
def test_answers_scored_as_the_published_code_does_sum_log_probabilities_not_raw_logits(post_softmax: bool) -> None:
    """``choice=reference,top=0``: generation subtracts raw logits, scores of answers do not."""
    lm = model("llama")
    for context, answer in zip(CONTEXTS, ANSWERS, strict=True):
        log_p, log_q = log_p_and_q(lm, context, answer, 1)
        contrast = log_p - log_q
        if post_softmax:
            contrast = contrast - np.log(np.exp(contrast).sum(-1, keepdims=True))
        got = score(lm, context, [answer], "dola:1,choice=reference,top=0", post_softmax=post_softmax)[0]
        np.testing.assert_allclose(got, contrast[np.arange(len(answer)), answer], rtol=1e-4, atol=1e-4)


def test_in_reference_mode_the_softmax_comes_before_the_filter() -> None:
    lm = model("llama")
    kept = 0
    for context, answer in zip(CONTEXTS, ANSWERS, strict=True):
        log_p, log_q = log_p_and_q(lm, context, answer, 1)
        contrast = log_p - log_q
        over_all = contrast - np.log(np.exp(contrast).sum(-1, keepdims=True))
        mask = log_p >= log_p.max(-1, keepdims=True) + np.log(0.02)
        want = np.where(mask, over_all, FLOOR)[np.arange(len(answer)), answer]
        got = score(lm, context, [answer], "dola:1,choice=reference,top=0.02")[0]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        kept += int((want > FLOOR).sum())
        # By the paper's divergence the kept tokens share all of the mass: another number.
        paper = score(lm, context, [answer], "dola:1,top=0.02")[0]
        assert (paper[want > FLOOR] > want[want > FLOOR]).all()
    assert kept > 2


def test_generation_in_reference_mode_is_the_published_one() -> None:
    """What scores answers is not what writes them: the next token still comes from raw logits."""
    final, early = torch.randn(2, 9), torch.randn(1, 2, 9)
    decoder = parse_decoder("dola:1,choice=reference,top=0")
    assert isinstance(decoder, DoLa)
    torch.testing.assert_close(decoder(final, early, 4).scores, final - early[0])
    want = final.log_softmax(-1) - early[0].log_softmax(-1)
    torch.testing.assert_close(decoder.for_scoring()(final, early, 4).scores, want)

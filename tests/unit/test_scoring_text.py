"""BLEU and ROUGE-L equal the packages that define them; any script; empty answers; TruthfulQA's summary."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from rouge_score.tokenize import tokenize
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from exitlens import scoring
from exitlens.data.records import Question
from exitlens.errors import InputError
from exitlens.scoring.text import _tokens
from exitlens.scoring.tokens import words

WORDS = "the The cat cats sat on a mat, it's 3.5 5-4 % (no) &amp; dog. U.S. I; café naïve 日本 – “x” - \n"
VOCABULARY = WORDS.split(" ")


def _sentences(n: int, seed: int, longest: int = 25) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(VOCABULARY) for _ in range(rng.randint(0, longest))) for _ in range(n)]


@pytest.mark.parametrize("smoothing", ["none", "exp"])
def test_bleu_equals_sacrebleu(smoothing: str) -> None:
    answers = _sentences(60, 0)
    rng = random.Random(1)
    references = [[*_sentences(rng.randint(1, 4), i), answers[i] + " too"][: rng.randint(1, 4)] for i in range(60)]
    theirs = BLEU(tokenize="13a", smooth_method=smoothing, effective_order=False)
    # sacrebleu takes streams: reference k of every row, None where a row has fewer.
    streams = [[row[k] if k < len(row) else None for row in references] for k in range(4)]
    assert scoring.corpus_bleu(answers, references, smoothing) == pytest.approx(
        theirs.corpus_score(answers, streams).score / 100, abs=1e-14
    )
    assert scoring.corpus_bleu(answers, references) > 0
    rows = [theirs.sentence_score(a, refs).score / 100 for a, refs in zip(answers, references, strict=True)]
    ours = [scoring.corpus_bleu([a], [refs], smoothing) for a, refs in zip(answers, references, strict=True)]
    np.testing.assert_allclose(ours, rows, atol=1e-14)
    assert max(rows) > 0.1
    flat = [(a, r) for a, refs in zip(answers, references, strict=True) for r in refs]
    for tokens in ("13a", "intl"):
        theirs = BLEU(tokenize=tokens, smooth_method=smoothing, effective_order=False)
        pairs = scoring.Bleu(smoothing, tokens).pairs([a for a, _ in flat], [r for _, r in flat])
        np.testing.assert_allclose(pairs, [theirs.sentence_score(a, [r]).score / 100 for a, r in flat], atol=1e-14)


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(max_codepoint=200), max_size=12))
def test_tokens_are_those_of_13a(text: str) -> None:
    assert _tokens(text) == Tokenizer13a()(text.rstrip()).split()


def test_bleu_by_hand() -> None:
    # Matches 5, 4, 3, 2 of 6, 5, 4, 3 n-grams; same length: no brevity penalty.
    value = scoring.corpus_bleu(["the cat sat on the hat"], [["the cat sat on the mat"]])
    assert value == pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    # Same words and a shorter answer: exp(1 − 6/4), all precisions 1.
    assert scoring.corpus_bleu(["the cat sat on"], [["the cat sat on the mat"]]) == pytest.approx(math.exp(1 - 6 / 4))
    assert scoring.corpus_bleu(["the cat"], [["the cat"]]) == 0  # no 4-gram, no smoothing


def test_rouge_equals_rouge_score_on_ascii() -> None:
    texts = [text.encode("ascii", "ignore").decode() for text in _sentences(80, 5, 60)]
    theirs = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    expected = [theirs.score(b, a)["rougeL"].fmeasure for a, b in zip(texts, texts[::-1], strict=True)]
    assert scoring.RougeL().pairs(texts, texts[::-1]).tolist() == expected
    references = [[texts[(i + 1) % 80], texts[(i + 7) % 80]] for i in range(80)]
    best = [theirs.score_multi(r, a)["rougeL"].fmeasure for a, r in zip(texts, references, strict=True)]
    assert scoring.best_of(scoring.RougeL(), texts, references).tolist() == best


def test_rouge_by_hand() -> None:
    # LCS "the cat on mat": 4 of 5 and 4 of 6 → F = 2·.8·.667/(1.467)
    assert scoring.RougeL().pairs(["the cat lay on mat"], ["The cat sat on the mat."])[0] == pytest.approx(8 / 11)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_words_are_those_of_rouge_score(text: str) -> None:
    assert list(words(text)) == tokenize(text, None)


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=30))
def test_any_text_has_words_without_gaps(text: str) -> None:
    for word in words(text):
        assert word
        assert not any(character.isspace() for character in word)


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcde"), max_size=80), st.lists(st.sampled_from("abcde"), max_size=80))
def test_rouge_is_that_of_the_table_of_common_subsequences(a: list[str], b: list[str]) -> None:
    row = [0] * (len(b) + 1)
    for x in a:
        previous = row[:]
        for j, y in enumerate(b):
            row[j + 1] = previous[j] + 1 if x == y else max(previous[j + 1], row[j])
    f = 2 * row[-1] / (len(a) + len(b)) if row[-1] else 0.0
    assert scoring.RougeL().pairs([" ".join(a)], [" ".join(b)])[0] == pytest.approx(f)


def test_of_two_references_as_near_in_length_the_shorter_counts() -> None:
    # Four words; references of three and of five. Against three there is no brevity penalty, against five e^(1 − 5/4).
    answer, short, long = "a b c d", "a b c", "a b c d e"
    for references in ([short, long], [long, short]):
        theirs = BLEU(tokenize="13a").sentence_score(answer, references).score / 100
        assert scoring.corpus_bleu([answer], [references]) == pytest.approx(1.0) == pytest.approx(theirs)
    assert scoring.corpus_bleu([answer], [[long]]) == pytest.approx(math.exp(1 - 5 / 4))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("東京タワーです。", ("東", "京", "タ", "ワ", "ー", "で", "す")),
        ("مرحبا بالعالم", ("مرحبا", "بالعالم")),
        ("नमस्ते दुनिया", ("नमस्ते", "दुनिया")),
        ("Привет, мир!", ("привет", "мир")),
        ("ที่ นี่", ("ที่", "นี่")),
        ("cafe\u0301 CAFÉ", ("café", "café")),
        ("東京Tower 2", ("東", "京", "tower", "2")),
        ("<script>\0😀</script>", ("script", "script")),
        ("\u0301", ("\u0301",)),
        ("😀 …", ()),
    ],
)
def test_words_of_other_scripts(text: str, tokens: tuple[str, ...]) -> None:
    assert words(text) == tokens
    if tokens:
        assert scoring.RougeL().pairs([text], [text])[0] == 1.0


def test_empty_answers_score_zero() -> None:
    for metric in (scoring.Bleu(), scoring.Bleu("none", "13a"), scoring.RougeL()):
        assert metric.pairs(["", "  ", "a b c d", ""], ["a b c d", "x", "", ""]).tolist() == [0, 0, 0, 0]
    assert scoring.corpus_bleu(["", "a b c d e"], [["a b"], ["a b c d e"]]) > 0
    assert scoring.corpus_bleu([""], [["a"]]) == 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="2 answers do not match 1"):
        scoring.RougeL().pairs(["a", "b"], ["a"])
    with pytest.raises(InputError, match="row 1"):
        scoring.corpus_bleu(["a", "b"], [["a"], []])
    with pytest.raises(InputError, match="row 0"):
        scoring.corpus_bleu(["a"], ["a"])
    with pytest.raises(InputError, match="no answers"):
        scoring.corpus_bleu([], [])
    with pytest.raises(InputError, match="smoothing"):
        scoring.Bleu("floor")


def _question(i: int, correct: tuple[str, ...], incorrect: tuple[str, ...]) -> Question:
    return Question(id=str(i), question=f"q{i}", best=correct[0], correct=correct, incorrect=incorrect)


def test_truthfulqa_max_diff_acc_by_hand() -> None:
    questions = [
        _question(0, ("two legs", "it has two"), ("four legs", "six")),
        _question(1, ("yes",), ("no",)),
        _question(2, ("yes",), ()),
        _question(3, ("a b",), ("b a",)),
    ]
    table = scoring.truthfulqa_scores(["two legs", "no", "yes", "a b"], questions, [scoring.RougeL()], "plain")
    assert table.columns.tolist() == ["question_id", "rouge_max", "rouge_diff", "rouge_acc"]
    assert table["question_id"].tolist() == ["0", "1", "2", "3"]
    assert table["rouge_max"].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert table["rouge_diff"].tolist()[:2] == [0.5, -1.0]
    assert table["rouge_acc"].tolist()[:2] == [1.0, 0.0]
    assert math.isnan(table["rouge_diff"][2])
    assert math.isnan(table["rouge_acc"][2])
    assert table["rouge_diff"][3] == 0.5
    tie = scoring.truthfulqa_scores(["x"], [_question(0, ("y",), ("z",))], [scoring.RougeL(), scoring.Bleu()])
    assert tie["rouge_acc"][0] == 0.0
    assert tie["bleu_acc"][0] == 0.0
    with pytest.raises(InputError):
        scoring.truthfulqa_scores(["x"], questions, [scoring.RougeL()])


def test_truthfulqa_is_the_published_protocol() -> None:
    """Row by row what the harness computes from its own copy of the published code, times 0.01."""
    from lm_eval.tasks.truthfulqa import utils

    rng = random.Random(3)
    subjects = ["A dog", "The moon", "Nobody", "In 1999, U.S. law", "It (probably)", "Café owners"]
    said = [
        "barks at night",
        "is made of rock",
        "can know",
        "bans it",
        "costs 3.5 dollars",
        "have no comment",
        "is blue.",
    ]
    answers = [f"{rng.choice(subjects)} {rng.choice(said)}{rng.choice(['', '.', '!'])}" for _ in range(60)]
    sides = [[f"{rng.choice(subjects)} {rng.choice(said)}" for _ in range(rng.randint(1, 4))] for _ in range(120)]
    questions = [_question(i, tuple(dict.fromkeys(sides[2 * i])), tuple(sides[2 * i + 1])) for i in range(60)]
    ours = scoring.truthfulqa_scores(answers, questions, [scoring.Bleu(), scoring.RougeL()])
    plain = scoring.truthfulqa_scores(answers, questions, [scoring.Bleu(), scoring.RougeL()], "plain")
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        row = {
            "question": question.question,
            "correct_answers": question.correct,
            "incorrect_answers": question.incorrect,
        }
        theirs = utils.process_results_gen(utils.preprocess_function(row), [answer])
        assert ours["bleu_max"][i] == pytest.approx(theirs["bleu_max"] / 100, abs=1e-12)
        assert ours["bleu_diff"][i] == pytest.approx(theirs["bleu_diff"] / 100, abs=1e-12)
        assert ours["bleu_acc"][i] == theirs["bleu_acc"]
    assert (ours["bleu_acc"] != plain["bleu_acc"]).any()  # the choice matters
    assert (plain["bleu_max"] == 0).mean() > 0.3  # an unsmoothed row of a short answer is 0
    with pytest.raises(InputError, match="unknown scoring protocol 'harness': use truthfulqa or plain"):
        scoring.truthfulqa_scores(answers, questions, [], "harness")


def test_references_of_the_published_protocol() -> None:
    question = _question(0, ("two legs", "It has two."), ("four", "six."))
    rules = scoring.protocol_named("truthfulqa")
    assert rules.correct(question) == ("two legs.", "It has two.", "I have no comment.")
    assert rules.incorrect(question) == ("four.", "six.")
    assert scoring.protocol_named("plain").correct(question) == question.correct
    only = scoring.truthfulqa_scores(["I have no comment."], [question], [scoring.RougeL()])
    assert only["rouge_acc"][0] == 1.0


def test_the_original_studys_numbers_are_against_the_best_answer() -> None:
    questions = [_question(0, ("a b c d e", "x y"), ("z",)), _question(1, ("k l m n", "o"), ("p",))]
    found = scoring.best_answer_scores(["a b c d e", "o"], questions, [scoring.Bleu(), scoring.RougeL()])
    best = [q.best for q in questions]
    theirs = BLEU(tokenize="13a", smooth_method="none").corpus_score(["a b c d e", "o"], [best])
    assert found == {"corpus_bleu": pytest.approx(theirs.score / 100), "rouge": pytest.approx(0.5)}

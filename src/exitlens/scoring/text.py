"""BLEU and ROUGE-L, row by row and over a corpus, equal to sacrebleu and rouge-score and fast enough for all pairs.

A :class:`TextMetric` compares aligned lists of answers and references; everything else (best of several references,
TruthfulQA's max/diff/acc) is built on that. All scores are 0..1; an empty answer or reference scores 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_intl import TokenizerV14International

from exitlens.errors import InputError
from exitlens.parsing import cut
from exitlens.scoring.tokens import words

__all__ = ["Bleu", "RougeL", "TextMetric", "best_of", "check_aligned", "corpus_bleu"]

_ORDER = 4
_13a: Callable[[str], str] = Tokenizer13a()  # type: ignore[no-untyped-call]
_intl: Callable[[str], str] = TokenizerV14International()  # type: ignore[no-untyped-call]
# What 13a always sets apart, and what it treats by its surroundings (13a proper is asked about texts with these).
_APART = {ord(c): f" {c} " for c in '!"#$%()*+/:;=>?@[\\]^_`{|}~'}
_BY_SURROUNDINGS = re.compile(r"[.,&<\n-]")


@runtime_checkable
class TextMetric(Protocol):
    """How alike an answer and a reference are."""

    @property
    def name(self) -> str:
        """Short name in tables: ``bleu``, ``rouge``, ``bertscore``."""

    @property
    def label(self) -> str:
        """What is printed beside the numbers: every choice that changes them."""

    def pairs(self, answers: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """Similarity of ``answers[i]`` and ``references[i]``: ``[n]``, 0..1."""


class Bleu:
    """Sentence BLEU: case kept, orders 1–4.

    Args:
        smoothing: ``exp``, sacrebleu's exponential smoothing (as TruthfulQA's), or ``none``: then an answer that shares
            no 4-gram with the reference scores 0, which most short answers do.
        tokens: ``intl`` (as TruthfulQA's) or ``13a``.
    """

    name = "bleu"

    def __init__(self, smoothing: str = "exp", tokens: str = "intl") -> None:
        self.smoothing, self.tokens = _known(smoothing), tokens
        if tokens not in ("13a", "intl"):
            raise InputError(f"unknown tokens {cut(tokens)!r}: use '13a' or 'intl'")

    @property
    def label(self) -> str:
        """Tokens and smoothing, as printed beside the numbers."""
        return f"sentence BLEU ({self.tokens} tokens, smoothing {self.smoothing}, 0..1)"

    def pairs(self, answers: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """BLEU of each answer against its one reference: ``[n]``."""
        check_aligned(answers, references)
        pairs = zip(answers, references, strict=True)
        scores = [_bleu_score(_bleu_counts(a, (r,), self.tokens), self.smoothing) for a, r in pairs]
        return np.array(scores, dtype=np.float64)


class RougeL:
    """ROUGE-L F-measure: longest common subsequence of words, no stemming; any script (see ``tokens.words``)."""

    name = "rouge"
    label = "ROUGE-L (F-measure, no stemming, mean over rows, 0..1)"

    def pairs(self, answers: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """ROUGE-L F of each answer against its one reference: ``[n]``."""
        check_aligned(answers, references)
        return np.array([_rouge_f(a, r) for a, r in zip(answers, references, strict=True)], dtype=np.float64)


def best_of(metric: TextMetric, answers: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Score of each answer against the most similar of its references: ``[n]``; NaN where it has none.

    Raises InputError when the two lists differ in length.
    """
    check_aligned(answers, references)
    counts = np.array([len(options) for options in references], dtype=np.int64)
    flat = metric.pairs(
        [answer for answer, options in zip(answers, references, strict=True) for _ in options],
        [option for options in references for option in options],
    )
    out = np.full(len(answers), np.nan)
    has = counts > 0
    if has.any():
        starts = (np.cumsum(counts) - counts)[has]
        out[has] = np.maximum.reduceat(flat, starts)
    return out


def corpus_bleu(answers: Sequence[str], references: Sequence[Sequence[str]], smoothing: str = "none") -> float:
    """Corpus BLEU, 0..1: counts are summed over rows before the ratio, as in sacrebleu (13a, case kept).

    Args:
        answers: One a row.
        references: One or more a row: n-grams are clipped by the most generous of them, and the length is compared with
            the nearest (of two as near, the shorter: Papineni et al. 2002 leave it open, sacrebleu takes the shorter).
        smoothing: ``none`` or ``exp``.

    Raises:
        InputError: No rows, or a row without references.
    """
    _known(smoothing)
    if not answers:
        raise InputError("BLEU of no answers: give at least one")
    total = np.sum([_bleu_counts(a, refs, "13a") for a, refs in _rows(answers, references)], axis=0)
    return _bleu_score([int(x) for x in total], smoothing)


def check_aligned(answers: Sequence[Any], references: Sequence[Any]) -> None:
    """Raise InputError unless both lists are as long."""
    if len(answers) != len(references):
        raise InputError(f"{len(answers)} answers do not match {len(references)} references: align them by question")
    # A bare string is a sequence of letters, and would be scored as such.
    if isinstance(answers, str) or isinstance(references, str):
        raise InputError(f"answers and references must be lists, got {(answers or references)[:40]!r}")


def _known(smoothing: str) -> str:
    if smoothing not in ("none", "exp"):
        raise InputError(f"unknown smoothing {cut(smoothing)!r}: use 'none' or 'exp'")
    return smoothing


def _rows(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[str, tuple[str, ...]]]:
    check_aligned(answers, references)
    for i, options in enumerate(references):
        if isinstance(options, str) or not options:
            raise InputError(f"references of row {i} are {cut(repr(options))}: give a list of at least one text")
    return [(answer, tuple(options)) for answer, options in zip(answers, references, strict=True)]


def _tokens(text: str, kind: str = "13a") -> list[str]:
    """Tokens. Most answers have no mark that 13a treats by its neighbours, and take the short way."""
    if kind == "intl":
        return _intl(text.rstrip()).split()
    if _BY_SURROUNDINGS.search(text) is None:
        return text.translate(_APART).split()
    return _13a(text.rstrip()).split()


@lru_cache(maxsize=1 << 15)
def _ngrams(text: str, kind: str) -> tuple[Mapping[tuple[str, ...], int], int]:
    """Counts of all n-grams of orders 1–4 of the tokens, and the number of tokens."""
    tokens = _tokens(text, kind)
    grams = [tuple(tokens[i : i + n]) for n in range(1, _ORDER + 1) for i in range(len(tokens) - n + 1)]
    return Counter(grams), len(tokens)


def _reference_counts(references: tuple[str, ...], kind: str) -> tuple[Mapping[tuple[str, ...], int], tuple[int, ...]]:
    """Each n-gram's largest count among the references, and the references' lengths."""
    if len(references) == 1:
        counts, size = _ngrams(references[0], kind)
        return counts, (size,)
    merged: Counter[tuple[str, ...]] = Counter()
    sizes = []
    for text in references:
        counts, size = _ngrams(text, kind)
        merged |= Counter(counts)
        sizes.append(size)
    return merged, tuple(sizes)


def _bleu_counts(answer: str, references: tuple[str, ...], kind: str) -> list[int]:
    """Answer length, nearest reference length (the shorter of two as near), matches and totals of each order."""
    counts, size = _ngrams(answer, kind)
    known, sizes = _reference_counts(references, kind)
    matched = [0] * _ORDER
    for gram in counts.keys() & known.keys():
        matched[len(gram) - 1] += min(counts[gram], known[gram])
    nearest = min(sizes, key=lambda length: (abs(length - size), length))
    return [size, nearest, *matched, *(max(size - n, 0) for n in range(_ORDER))]


def _bleu_score(counts: Sequence[int], smoothing: str) -> float:
    # Without smoothing one order with no match makes the product 0; sacrebleu gives 0 too, only slower.
    if smoothing == "none" and counts[1 + _ORDER] == 0:
        return 0.0
    score = BLEU.compute_bleu(
        correct=list(counts[2 : 2 + _ORDER]),
        total=list(counts[2 + _ORDER :]),
        sys_len=counts[0],
        ref_len=counts[1],
        smooth_method=smoothing,
    )
    return float(score.score) / 100.0


def _rouge_f(answer: str, reference: str) -> float:
    mine, other = words(answer), words(reference)
    # Longest common subsequence, bit-parallel (Hyyrö 2004): 17,360 pairs in 16 ms, 30 ms with Python numbers as bits.
    common = LCSseq.similarity(mine, other)
    if not common:
        return 0.0
    precision, recall = common / len(mine), common / len(other)
    return 2 * precision * recall / (precision + recall)

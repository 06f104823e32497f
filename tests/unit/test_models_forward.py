"""How many texts are run: common beginnings, batches, padding, windows, against plain definitions."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from exitlens.models.forward import common_prefix, cut_tokens, padded, plan_batches, same_beginning, shared_prefix

TEXTS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=8)


@given(TEXTS)
def test_the_common_prefix_is_the_longest_that_leaves_every_text_a_token(texts: list[list[int]]) -> None:
    n = common_prefix(texts)
    assert all(text[:n] == texts[0][:n] and len(text) > n for text in texts)
    assert any(len(text) == n + 1 or text[n] != texts[0][n] for text in texts)


@given(TEXTS, st.integers(1, 6))
def test_a_shared_prefix_is_the_common_one_of_several_texts_or_nothing(texts: list[list[int]], least: int) -> None:
    n = common_prefix(texts)
    assert shared_prefix(texts, least) == (tuple(texts[0][:n]) if len(texts) > 1 and n >= least else ())


def test_two_texts_may_begin_alike_to_the_end_of_one() -> None:
    assert [same_beginning([1, 2], other) for other in ([1, 2], [1, 2, 3], [1], [2], [])] == [2, 2, 1, 0, 0]


@given(TEXTS, st.integers(1, 4), st.booleans())
def test_batches_hold_every_text_once_and_are_of_one_length_where_padding_is_not_exact(
    texts: list[list[int]], size: int, gap_exact: bool
) -> None:
    batches = plan_batches(texts, size, gap_exact=gap_exact).batches
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(len(texts)))
    assert [len(texts[i]) for i in flat] == sorted(map(len, texts), reverse=True)
    assert all(len(batch) <= size for batch in batches)
    assert gap_exact or all(len({len(texts[i]) for i in batch}) == 1 for batch in batches)
    # No batch is closed early: the next row would not have fitted.
    for one, other in pairwise(batches):
        assert len(one) == size or (not gap_exact and len(texts[one[0]]) != len(texts[other[0]]))


@given(st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=5), st.sampled_from(["left", "right"]))
def test_padding_fills_one_side_and_says_which_places_are_real(texts: list[list[int]], side: str) -> None:
    ids, real = padded(texts, side=side, fill=7)
    assert ids.shape == real.shape == (len(texts), max(map(len, texts), default=0))
    for row, text in enumerate(texts):
        assert ids[row][real[row]].tolist() == text
        assert bool((ids[row][~real[row]] == 7).all())
        order = real[row].long() if side == "left" else real[row].long().flip(0)
        assert torch.equal(order, order.sort().values)


def test_tokens_are_cut_one_stretch_after_another() -> None:
    assert list(cut_tokens(range(7), 3, 1)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(cut_tokens(range(7), 3, 2)) == [[0, 1, 2], [3, 4, 5]]
    assert list(cut_tokens([], 3, 0)) == []

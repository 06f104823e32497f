"""One grammar of layers: what it reads, what it refuses before a model is there, what it resolves to."""

from __future__ import annotations

import pytest

from exitlens.errors import InputError, LayerError
from exitlens.layer_range import parse_layers, resolve_layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0,8,16-18", (0, 8, 16, 17, 18)),
        (" 8 , 0 , 8 ", (0, 8)),
        ("last", (30,)),
        ("28-last", (28, 29, 30)),
        ("1/2,5/8,3/4", (15, 19, 22)),
        ("0/1,1/1", (0, 30)),
        ("9/10-last", (27, 28, 29, 30)),
        ("29-29", (29,)),
    ],
)
def test_every_way_to_write_layers(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text).resolve(30) == layers


def test_all_and_last_follow_what_may_be_meant() -> None:
    assert parse_layers("all").resolve(4) == (0, 1, 2, 3, 4)
    assert parse_layers("all").resolve(4, first=1, last=3) == (1, 2, 3)
    assert parse_layers("last,1").resolve(4, first=1, last=3) == (1, 3)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "''"), ("3,x", "'x' in layers '3,x'"), ("15/20/24", "'15/20/24'"), ("-1", "'-1'"), ("1.5", "'1.5'"),
        ("3,,4", "'' in layers"), ("5/4", "'5/4'"), ("1/0", "'1/0'"), ("0/0", "'0/0'"), ("all-3", "'all-3'"),
        ("high", "'high'"), ("٣", "'٣'"), ("1" * 40, "'1111"),
    ],
)  # fmt: skip
def test_what_is_no_layer_is_refused_without_a_model(text: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_layers(text)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_what_the_model_does_not_have_is_refused_with_what_it_has() -> None:
    with pytest.raises(LayerError, match=r"^layer 31 is out of range: the model has layers 0 \(embeddings\) to 30$"):
        parse_layers("31").resolve(30)
    with pytest.raises(LayerError, match=r"^exit layer 0 is out of range: M has exit layers 1 to 29$"):
        parse_layers("0").resolve(30, first=1, last=29, what="exit layer", owner="M")
    with pytest.raises(LayerError, match="layer 999999999 is out of range"):
        parse_layers("0-999999999").resolve(30)  # not expanded first
    with pytest.raises(InputError, match="'3/4-10' runs backwards"):
        parse_layers("3/4-10").resolve(30)


def test_numbers_keep_their_order_and_text_is_the_same_grammar() -> None:
    assert resolve_layers([3, 1, 3], 4) == (3, 1)
    assert resolve_layers("3,1", 4) == (1, 3)
    with pytest.raises(LayerError, match="layer -1 is out of range"):
        resolve_layers([-1], 4)

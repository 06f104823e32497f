"""BERTScore's arithmetic on vectors chosen by hand, and against the bert-score package on the built-in encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from exitlens.errors import InputError, LayerError, ModelNotFound
from exitlens.models.encoder import load_encoder
from exitlens.models.hub import catalog
from exitlens.scoring import BertScorer
from exitlens.scoring.bertscore import Embedded


class Letters:
    """A stand-in encoder: start token, one token a letter (its one-hot vector, scaled), end token."""

    name, layer = "letters", 1

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> list[Embedded]:
        self.asked.extend(texts)
        out = []
        for text in texts:
            rows = [27, *(ord(c) - 97 for c in text.strip()), 28]
            counts = torch.tensor([False, *[True] * len(text.strip()), False])
            out.append(Embedded(3.0 * torch.eye(29)[rows], counts))
        return out


def test_greedy_matching_by_hand() -> None:
    scorer = BertScorer(Letters())
    # "abc" and "abd": two of three letters match: P = R = 2/3. "aab" and "b": P = 1/3, R = 1.
    found = scorer.pairs(["abc", "aab", "abc", "x"], ["abd", "b", "abc", "yz"])
    assert found.tolist() == pytest.approx([2 / 3, 0.5, 1.0, 0.0], abs=1e-6)
    assert found.dtype == np.float64


def test_empty_texts_score_zero_and_repeats_are_encoded_once() -> None:
    encoder = Letters()
    scorer = BertScorer(encoder)
    assert scorer.pairs(["", " ", "abc", ""], ["abc", "a", "", ""]).tolist() == [0, 0, 0, 0]
    assert encoder.asked == []
    scorer.pairs(["abc", "abc"], ["abc", "b"])
    scorer.pairs(["b"], ["abc"])
    assert sorted(encoder.asked) == ["abc", "b"]
    with pytest.raises(InputError, match="do not match"):
        scorer.pairs(["a"], [])


def test_a_score_does_not_depend_on_its_neighbours() -> None:
    scorer = BertScorer(Letters())
    pairs = [("abcde", "ab"), ("a", "abcdefghijk"), ("zzz", "z"), ("hello", "yellow")]
    together = scorer.pairs([a for a, _ in pairs], [b for _, b in pairs])
    alone = [scorer.pairs([a], [b])[0] for a, b in pairs]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_label_names_encoder_and_layer() -> None:
    assert "letters, layer 1" in BertScorer(Letters()).label


@pytest.mark.parametrize("name", ["", "no-such-encoder", "/no/such/folder", "./none"])
def test_unknown_encoders_are_refused_in_one_line(name: str) -> None:
    with pytest.raises((ModelNotFound, InputError)) as caught:
        load_encoder(name)
    assert "\n" not in str(caught.value)


def test_a_causal_lm_or_an_empty_folder_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="causal LM"):
        load_encoder("smollm2-135m")
    with pytest.raises(ModelNotFound, match="no model in folder"):
        load_encoder(tmp_path)


@pytest.fixture(scope="module")
def folder() -> Path:
    found = catalog.cached("all-minilm-l6-v2")
    if found is None:
        pytest.skip("the built-in encoder is not on this machine: `exitlens models pull all-minilm-l6-v2`")
    return found


ANSWERS = [
    "Nothing happens if you eat watermelon seeds.",
    "a cat",
    "  The capital of Japan is Tokyo — not Kyoto! ",
    "東京",
    "I have no comment",
    "long " * 80,
]
REFERENCES = [
    "The watermelon seeds pass through your digestive system",
    "The cat sat on the mat",
    "Kyoto was the capital of Japan",
    "東京タワー",
    "No.",
    "a very long text " * 30,
]


@pytest.mark.encoder
@pytest.mark.parametrize("layer", [6, 3])
def test_equals_the_bert_score_package(folder: Path, layer: int) -> None:
    import bert_score

    theirs = bert_score.BERTScorer(model_type=str(folder), num_layers=layer, device="cpu")
    expected = theirs.score(ANSWERS, REFERENCES)[2].numpy()
    scorer = BertScorer(folder, layer=layer, device="cpu")
    np.testing.assert_allclose(scorer.pairs(ANSWERS, REFERENCES), expected, atol=1e-5)


@pytest.mark.encoder
def test_built_in_encoder(folder: Path) -> None:
    scorer = BertScorer(device="cpu")
    assert "all-minilm-l6-v2, layer 6" in scorer.label
    texts = ["Tokyo", "مرحبا بالعالم", "😀", "<script>\0</script>", "\ud800", "word " * 2000]
    np.testing.assert_allclose(scorer.pairs(texts, texts), 1.0, atol=1e-5)
    assert scorer.pairs(["", "\u200b", "Tokyo"], ["Tokyo", "Tokyo", ""]).tolist() == [0, 0, 0]
    a, b = scorer.pairs(ANSWERS, REFERENCES), BertScorer(device="cpu").pairs(ANSWERS, REFERENCES)
    assert a.tolist() == b.tolist()
    assert all(-1 <= x <= 1 and not math.isnan(x) for x in a)
    with pytest.raises(LayerError, match=r"layer 7 .* 0 \(embeddings\) to 6"):
        load_encoder(layer=7)

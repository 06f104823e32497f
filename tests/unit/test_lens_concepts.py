"""Pass@k: where a prompt is read, which tokens stand for a concept, their ranks, and the lens that must not read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from tokenizers import normalizers

from exitlens.data.records import ConceptPrompt, ReadAt
from exitlens.errors import ContextError, DataError, InputError, LayerError
from exitlens.lenses.concepts import (
    ConceptRead,
    best_of_tokens,
    best_ranks,
    chance_pass,
    inner_layers,
    pass_at,
    plan_read,
    plan_reads,
    ranks_at,
    with_rule,
)
from exitlens.lenses.controls import RotationLens
from exitlens.models import wrap


@pytest.fixture(scope="module")
def lm() -> Any:
    return wrap(tiny.model("llama"), tiny.tokenizer())


def prompt(text: str, *concepts: str, at: ReadAt | None = "last", target: str | None = None) -> ConceptPrompt:
    concepts = concepts or ("true",)
    return ConceptPrompt("set/p", "set", text, concepts, tuple((c,) for c in concepts), target, at)


@pytest.mark.parametrize(
    ("text", "at", "target", "expected"),
    [
        # The space before "Paris" is part of its first token: the token before it is read, not the space alone.
        ("The capital of France is ", "before-target", "Paris", "The capital of France is"),
        ("The capital of France is", "before-target", " Paris", "The capital of France is"),
        ("It is called '", "before-target", "Paris", "It is called '"),
        # A character of several bytes is several tokens: the first of them is the target's first.
        ("月曜日の次の日は", "before-target", "火曜日", "月曜日の次の日は"),
        ("One true line,\nand a false\nTh", "last-newline", None, "One true line,\nand a false\n"),
        ("月\n火", "last-newline", None, "月\n"),
        ("The capital of ", "last", None, "The capital of "),
    ],
)
def test_the_token_that_is_read(lm: Any, text: str, at: ReadAt, target: str | None, expected: str) -> None:
    assert lm.decode(plan_read(lm, prompt(text, at=at, target=target)).ids) == expected


def test_a_token_that_joins_prompt_and_target_is_the_targets_own(lm: Any) -> None:
    # " true" is one token: a target that begins inside it is read before it.
    assert lm.decode(plan_read(lm, prompt("It is tr", at="before-target", target="ue")).ids) == "It is"


def test_a_concept_counts_by_every_single_token_that_spells_it(lm: Any) -> None:
    read = plan_read(lm, prompt("The capital", "true", "whiskers and more", "a", "is"))
    spelt = [[lm.token(t) for t in tokens] for tokens in read.tokens]
    assert (read.concepts, spelt) == (("true", "a", "is"), [[" true"], ["a", " a"], ["is", " is"]])
    assert read.left_out == ("whiskers and more",)
    both = ConceptPrompt("set/p", "set", "It", ("true",), (("true", "false"),), None, "last")
    assert [[lm.token(t) for t in tokens] for tokens in plan_read(lm, both).tokens] == [[" true", " false"]]


def test_ranks_are_those_of_the_plain_product(lm: Any) -> None:
    texts = ["The capital of France is ", "Q: What is true?", "It is"]
    reads = plan_reads(lm, [prompt(text, "true", "a", "is") for text in texts])
    for lens in ("logit", "raw"):
        found = ranks_at(lm, reads, lens, (1, 2))
        for read, ranks in zip(reads, found, strict=True):
            hidden = lm.forward(torch.tensor([read.ids]), layers=[1, 2]).hidden
            for row, layer in enumerate((1, 2)):
                z = lm.logits(hidden[layer][0, -1], layer, lens)
                expected = [min(1 + int((z > z[t]).sum()) for t in tokens) for tokens in read.tokens]
                assert ranks[row].tolist() == expected


def test_best_ranks_are_over_tokens_and_layers() -> None:
    ranks = np.array([[7, 3, 9, 40], [2, 8, 9, 30]])  # two layers; tokens 0 and 1 spell the first concept
    concepts = best_of_tokens(ranks, ((5, 6), (7,), (8,)))
    assert concepts.tolist() == [[3, 9, 40], [2, 9, 30]]
    assert [b.tolist() for b in best_ranks([concepts])] == [[2, 9, 30]]


def test_pass_at_k_is_the_mean_over_prompts_of_the_share_of_concepts() -> None:
    best = [np.array([1, 5]), np.array([11]), np.array([], dtype=np.int64), np.array([2, 3, 9, 50])]
    assert pass_at(best, 1) == pytest.approx((0.5 + 0 + 0) / 3)
    assert pass_at(best, 5) == pytest.approx((1 + 0 + 0.5) / 3)
    assert pass_at(best, 10) == pytest.approx((1 + 0 + 0.75) / 3)
    assert pass_at(best, 50) == 1.0
    with pytest.raises(InputError, match="pass@0"):
        pass_at(best, 0)
    with pytest.raises(InputError, match="no prompt has a single-token concept"):
        pass_at([np.array([], dtype=np.int64)], 1)


def test_chance_is_that_of_random_directions_through_norm_and_unembedding(lm: Any) -> None:
    reads = [ConceptRead("s/p", "s", (1,), ("a", "b"), ((30, 40), (50,))), ConceptRead("s/q", "s", (1,), (), ())]
    chance = chance_pass(lm, reads, (4, 20), layers=3)
    assert np.isnan(chance[1]).all()
    g = torch.Generator().manual_seed(9)
    z = lm.unembed(lm.norm(torch.randn(3 * 4000, lm.d_model, generator=g)))
    rank = 1 + (z[:, None] > z[:, [30, 40, 50], None]).sum(-1)
    best = torch.stack([rank[:, :2].amin(1), rank[:, 2]], 1).view(4000, 3, 2).amin(1)
    expected = [float((best <= k).float().mean()) for k in (4, 20)]
    assert chance[0].tolist() == pytest.approx(expected, abs=0.012)


def test_a_rotation_keeps_lengths_and_angles_is_seeded_and_another_at_every_layer() -> None:
    lens = RotationLens(24, seed=1)
    eye = torch.eye(24)
    turned = [lens.transform(eye, layer) for layer in (1, 2)]
    for matrix in turned:
        assert torch.allclose(matrix @ matrix.T, eye, atol=1e-5)
    assert not torch.allclose(turned[0], turned[1], atol=0.1)
    assert torch.equal(RotationLens(24, seed=1).transform(eye, 2), turned[1])
    assert not torch.allclose(RotationLens(24, seed=2).transform(eye, 2), turned[1], atol=0.1)
    assert not torch.allclose(RotationLens(24, seed=1, draw=5).transform(eye, 2), turned[1], atol=0.1)
    assert len({RotationLens(24, seed, draw).identity for seed in (1, 2) for draw in (0, 1)}) == 4
    # Evenly drawn: one vector lands in every direction alike.
    h = torch.zeros(1, 24)
    h[0, 0] = 1.0
    many = torch.cat([RotationLens(24, draw=s).transform(h, 3) for s in range(400)])
    assert float(many.mean(0).abs().max()) < 4 / (24**0.5 * 20)
    assert torch.allclose(many.pow(2).mean(0), torch.full((24,), 1 / 24), atol=0.02)


def test_inner_layers_leave_out_the_embeddings_and_the_output() -> None:
    assert inner_layers(4) == (1, 2, 3)
    assert inner_layers(4, "1/2-last") == (2, 3)
    with pytest.raises(LayerError, match="inner layer 4 is out of range: the model has inner layers 1 to 3"):
        inner_layers(4, "2,4")
    with pytest.raises(InputError, match="no inner layer"):
        inner_layers(1)


def test_a_rule_is_given_where_a_set_has_none_and_only_there() -> None:
    bare = prompt("One\ntwo", at=None)
    assert [p.read_at for p in with_rule([bare, prompt("x")], "last-newline")] == ["last-newline", "last"]
    with pytest.raises(DataError, match=r"set 'set' does not say at which token it is read: add --read-at"):
        with_rule([bare], None)
    with pytest.raises(DataError, match="--read-at last would change nothing"):
        with_rule([prompt("x")], "last")
    with pytest.raises(DataError, match="no 'target'"):
        with_rule([bare], "before-target")


def test_a_target_with_nothing_before_it_is_refused(lm: Any) -> None:
    with pytest.raises(InputError, match="no token stands before target 'Paris'"):
        plan_read(lm, prompt("", at="before-target", target="Paris"))


def test_a_prompt_beyond_the_context_is_refused(lm: Any) -> None:
    with pytest.raises(ContextError, match=r"'set/p' is read at token \d+, beyond the context of .* \(256 tokens\)"):
        plan_read(lm, prompt("é" * 300))


def test_concepts_of_several_tokens_alone_are_refused(lm: Any) -> None:
    with pytest.raises(InputError, match=r"none of the intermediates \('Brazil', ...\) is a single token"):
        plan_reads(lm, [prompt("It is", "Brazil"), prompt("It", "Atlantic Ocean")])


def test_a_tokenizer_that_changes_the_text_is_refused_where_a_place_in_it_is_needed() -> None:
    small = tiny.tokenizer()
    small.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower = wrap(tiny.model("llama"), small)
    assert lower.decode(plan_read(lower, prompt("It is")).ids) == "it is", "the last token needs no place"
    with pytest.raises(InputError, match=r"prompt 'set/p': the tokens of 'It\\nis' spell 'it\\nis'"):
        plan_read(lower, prompt("It\nis", at="last-newline"))

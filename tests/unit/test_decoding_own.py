"""A decoder of the user's own: registered once, it works in Python, in the grammar and on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.commands import call, done
from torch import Tensor

from exitlens.decoding import (
    ContrastDecoder,
    Scores,
    decoder_names,
    decoder_options,
    early_layers,
    generate,
    option,
    parse_decoder,
    register_decoder,
)
from exitlens.decoding.contrast import parse
from exitlens.decoding.score import score
from exitlens.errors import InputError
from exitlens.models import wrap

LAYERS = 3  # of the tiny model


@dataclass(frozen=True, slots=True, kw_only=True)
class Halfway(ContrastDecoder):
    """Final logits and a share of those at a share of the depth."""

    share: float = option(0.5, "share of the early logits", low=0.0, high=1.0, bare=True)
    depth: float = option(0.5, "share of the depth that is read", low=0.0, high=0.99)

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        return (int(n_layers * self.depth),)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:
        return Scores((1 - self.share) * final + self.share * early[0], {"n": torch.full((len(final),), n_layers)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare(ContrastDecoder):
    """Gives a tensor where scores belong."""

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:
        return final  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "_OWN", {})
    register_decoder("halfway", Halfway)


def test_its_options_and_the_number_of_layers_reach_it() -> None:
    decoder = parse_decoder("halfway:0.25,depth=0.7")
    assert isinstance(decoder, Halfway)
    assert (decoder.share, decoder.depth, decoder.name) == (0.25, 0.7, "halfway:0.25,depth=0.7")
    assert decoder.layers(10, False) == (7,)
    assert decoder_names()[-1] == "halfway"
    assert [item.name for item in decoder_options("halfway")] == ["share", "depth"]
    lm = wrap(tiny.model("llama", spread=0.3), tiny.tokenizer())
    (plain,) = generate(lm, ["What is true?"], max_new_tokens=6)
    (same,) = generate(lm, ["What is true?"], decoder="halfway:share=0", max_new_tokens=6, trace=True)
    assert same.token_ids == plain.token_ids
    assert same.steps["n"].tolist() == [LAYERS] * len(same.token_ids)
    (other,) = generate(lm, ["What is true?"], decoder="halfway:share=1,depth=0", max_new_tokens=6)
    # With nothing but layer 0 the most probable next token is what an embedding says of itself.
    ids = [*lm.encode("What is true?"), *other.token_ids]
    for before, token in zip(ids[-len(other.token_ids) - 1 :], other.token_ids, strict=False):
        state = lm.embed(torch.tensor([[before]]))[0, 0]
        assert int(lm.logits(state, 0).argmax()) == token
    assert score(lm, lm.encode("Paris"), [[5, 6]], "halfway")[0].shape == (2,)


def test_it_works_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.save(tmp_path / "model", "llama", spread=0.3)
    common = ("generate", "What is true?", "-m", tmp_path / "model", "--max-new-tokens", "4")
    (found,) = done(capsys, *common, "--decoder", "halfway:share=0.75@1.1")
    assert (found["decoder"], found["repetition_penalty"]) == ("halfway:share=0.75", 1.1)
    code, _, err = call(capsys, *common, "-q", "--decoder", "halfway:sharre=0.75")
    assert (code, err.count("\n")) == (2, 1)
    assert "unknown option 'sharre' of decoder 'halfway': did you mean share?" in err
    code, _, err = call(capsys, *common, "-q", "--decoder", "halfway:depth=1")
    assert (code, err.count("\n")) == (2, 1)
    assert "depth=1.0 is out of range (share of the depth that is read): use 0 to 0.99" in err


def test_a_function_is_a_decoder_without_options() -> None:
    register_decoder("sum", lambda final, early: final + early[0], layers=(3,), lens="raw")
    register_decoder("deep", lambda final, early: early[-1] - final, layers=lambda n: (0, n - 1))
    decoder = parse_decoder("sum")
    assert (decoder.layers(12, True), decoder.lens, decoder.name) == ((3,), "raw", "sum")
    assert parse_decoder("deep").layers(7, True) == (0, 6)
    final, early = torch.randn(2, 5), torch.randn(1, 2, 5).to(torch.bfloat16)
    assert torch.equal(decoder(final, early, 12).scores, final + early[0].float())
    with pytest.raises(InputError, match="takes no value by itself"):
        parse_decoder("sum:3")
    lm = wrap(tiny.model("llama"), tiny.tokenizer())
    assert early_layers(lm, "deep") == (0, LAYERS - 1)


def test_what_is_no_decoder_is_refused_in_one_line() -> None:
    lm = wrap(tiny.model("llama"), tiny.tokenizer())
    register_decoder("narrow", lambda final, _early: final[:, :3])
    register_decoder("bare", Bare)
    for name, says in (("narrow", "scores of shape"), ("bare", "gave a Tensor: return exitlens.decoding.Scores")):
        with pytest.raises(InputError, match=says) as found:
            generate(lm, ["Paris"], decoder=name, max_new_tokens=1)
        assert "\n" not in str(found.value)


@dataclass(frozen=True, kw_only=True)
class Silent(ContrastDecoder):
    """Without the one method that it needs."""


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("name", "decoder", "more", "says"),
    [
        ("dola", Halfway, {}, "is taken by a built-in one"),
        ("a:b", Halfway, {}, "cannot be written"),
        ("mine", int, {}, "int is no decoder"),
        ("mine", Silent, {}, "'mine' gives no scores: write the __call__ of Silent"),
        ("mine", lambda final, early: final, {"lens": "tund"}, "no lens 'tund'"),
    ],
)
def test_what_cannot_be_registered(name: str, decoder: object, more: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says) as found:
        register_decoder(name, decoder, **more)  # type: ignore[arg-type]
    assert "\n" not in str(found.value)


def test_the_documented_table_has_every_option_with_its_default() -> None:
    rows = {}
    for line in (Path(__file__).parents[2] / "docs/decoding.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            cells = line.split("|")
            rows.setdefault(cells[1].strip().strip("`").partition(":")[0], cells[-2])  # tables of results follow
    for name in decoder_names()[:-1]:
        for item in decoder_options(name):
            assert f"`{item.name}`" in rows[name], (name, item.name)
            if isinstance(item.default, (int, float, str)):
                text = item.default if isinstance(item.default, str) else f"{item.default:g}"
                assert f"`{item.name}` ({text})" in rows[name], (name, item.name)

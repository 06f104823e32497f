"""The tuned lens: what it may change and what not, training that lowers held-out KL, files that are never pickles."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.unit.lens_model import SmallModel, states

from exitlens.errors import InputError, LayerError
from exitlens.lenses import train_tuned as training
from exitlens.lenses.read_hidden import readout
from exitlens.lenses.train_tuned import split_texts, train_tuned_lens
from exitlens.lenses.tuned import TunedLens, from_published
from exitlens.models.protocol import LogitTransform


def random_lens(n: int = 4, d: int = 24, fingerprint: str = "small-0") -> TunedLens:
    g = torch.Generator().manual_seed(5)
    return TunedLens("t", fingerprint, torch.randn(n, d, generator=g), 0.1 * torch.randn(n, d, d, generator=g))


def test_transform_is_affine_and_leaves_the_last_layer() -> None:
    lens, model = random_lens(), SmallModel()
    h = states(model)[2]
    want = h + h @ lens.weight[2].T + lens.bias[2]
    assert torch.allclose(lens.transform(h, 2), want, atol=1e-6)
    assert lens.transform(h, 4) is h
    with pytest.raises(LayerError, match="layer 5"):
        lens.transform(h, 5)


def test_readout_uses_it_before_the_norm_and_never_at_layer_n() -> None:
    lens, model = random_lens(), SmallModel()
    hidden = states(model)
    tuned = readout(model, hidden, lens=lens, stats=("entropy", "top_k"))
    plain = readout(model, hidden, stats=("entropy", "top_k"))
    want = model.unembed(model.norm(lens.transform(hidden[1], 1))).log_softmax(-1).topk(5).values
    assert torch.allclose(tuned["top_logprobs"][1], want, atol=1e-4)
    assert torch.allclose(tuned["entropy"][-1], plain["entropy"][-1], atol=1e-5)
    assert tuned.lens == "t"


def test_zero_translator_is_the_logit_lens() -> None:
    model = SmallModel()
    zero = TunedLens("zero", "", torch.zeros(4, 24), torch.zeros(4, 24, 24))
    hidden = states(model)
    got, want = readout(model, hidden, lens=zero), readout(model, hidden)
    assert torch.allclose(got["entropy"], want["entropy"], atol=1e-5)


@pytest.mark.parametrize("logit_transform", [LogitTransform(), LogitTransform(0.5, 3.0)])
@pytest.mark.parametrize("sample", [None, 64])
def test_training_lowers_held_out_kl_at_every_layer(logit_transform: LogitTransform, sample: int | None) -> None:
    model = SmallModel(logit_transform=logit_transform, bias=True)
    g = torch.Generator().manual_seed(9)
    texts = [torch.randint(203, (12,), generator=g).tolist() for _ in range(120)]
    lens, report = train_tuned_lens(
        model, texts, steps=60, check_every=30, vocabulary_sample=sample, learning_rate=3e-3, source="random"
    )
    assert lens.fingerprint == "small-0"
    assert report.after[-1] == 0.0
    for before, after in zip(report.before[:-1], report.after[:-1], strict=True):
        assert after < 0.9 * before
    assert lens.provenance["source"] == "random"


def test_the_report_is_of_text_that_neither_training_nor_the_choice_saw() -> None:
    g = torch.Generator().manual_seed(9)
    texts = [torch.randint(203, (12,), generator=g).tolist() for _ in range(60)]
    model = SmallModel()
    lens, report = train_tuned_lens(model, texts, steps=10, check_every=5, learning_rate=3e-3, seed=4)
    split = split_texts(60, 0.2, torch.Generator().manual_seed(4))
    assert sorted([*split.train, *split.choose, *split.report]) == list(range(60))
    assert (len(split.choose), len(split.report)) == (6, 6)
    assert report.test_tokens == 6 * 11  # a text's first token is left out

    def kl(numbers: list[int], how: str | TunedLens) -> torch.Tensor:
        hidden = model.forward(torch.tensor([texts[i] for i in numbers]), layers="all").hidden
        return readout(model, {j: h[:, 1:].flatten(0, 1) for j, h in hidden.items()}, lens=how, stats=("kl",))[
            "kl"
        ].mean(1)

    assert report.after == pytest.approx(kl(split.report, lens).tolist(), abs=1e-5)
    assert report.before == pytest.approx(kl(split.report, "logit").tolist(), abs=1e-5)
    assert (kl(split.choose, lens)[:-1] - torch.tensor(report.after[:-1])).abs().min() > 1e-3


def test_steps_that_time_cut_short_are_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def progress(phase: str, done: int, _total: int) -> None:
        if phase == "steps" and done == 50:
            clock[0] = 99.0

    g = torch.Generator().manual_seed(9)
    texts = [torch.randint(203, (12,), generator=g).tolist() for _ in range(120)]
    _, report = train_tuned_lens(
        SmallModel(), texts, steps=300, check_every=300, learning_rate=3e-3, time_limit=90.0, progress=progress
    )
    assert report.steps == 50
    assert "trained" in report.chosen


def test_a_layer_that_cannot_be_bettered_keeps_the_identity() -> None:
    model = SmallModel()
    # Blocks that change nothing: every layer says already what the last one says.
    model._mix = [torch.zeros(24, 24) for _ in range(4)]
    texts = [[(i * 7 + k * 3) % 203 for k in range(10)] for i in range(40)]
    lens, report = train_tuned_lens(model, texts, steps=4, check_every=2)
    assert set(report.chosen[:-1]) == {"identity"}
    assert (lens.weight == 0).all()
    assert max(report.after) < 1e-6


def test_training_is_the_same_for_the_same_seed() -> None:
    texts = [[(i * 5 + k) % 203 for k in range(9)] for i in range(30)]
    a, _ = train_tuned_lens(SmallModel(), texts, steps=3, check_every=3)
    b, _ = train_tuned_lens(SmallModel(), texts, steps=3, check_every=3)
    assert torch.equal(a.weight, b.weight)


def test_too_little_text() -> None:
    with pytest.raises(InputError, match="needs at least 4"):
        train_tuned_lens(SmallModel(), [[1, 2]] * 3)
    with pytest.raises(InputError, match=r"held_out 1\.0"):
        train_tuned_lens(SmallModel(), [[1, 2]] * 8, held_out=1.0)


def test_save_and_load(tmp_path: Path) -> None:
    lens = random_lens()
    again = TunedLens.load(lens.save(tmp_path / "lens.safetensors"), SmallModel())
    assert torch.equal(again.weight, lens.weight)
    assert again.name == "t"
    small = lens.low_rank(24)
    assert torch.allclose(small.up @ small.down, lens.weight, atol=1e-5)
    low = TunedLens.load(lens.low_rank(3).save(tmp_path / "low.safetensors"))
    h = states(SmallModel())[1]
    assert torch.allclose(low.transform(h, 1), h + h @ (low.up[1] @ low.down[1]).T + low.bias[1], atol=1e-5)
    with pytest.raises(InputError, match="rank 25"):
        lens.low_rank(25)


def test_published_checkpoints(tmp_path: Path) -> None:
    lens = random_lens()
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "base_model_name_or_path": "m"}))
    tensors = {f"{j}.weight": lens.weight[j].contiguous() for j in range(4)}
    tensors |= {f"{j}.bias": lens.bias[j].contiguous() for j in range(4)}
    (tmp_path / "params.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="is a pickle, which exitlens never opens"):
        TunedLens.load(tmp_path)
    save_file(tensors, tmp_path / "params.safetensors")
    again = TunedLens.load(tmp_path, SmallModel())
    assert torch.equal(again.weight, lens.weight)
    assert again.provenance["model"] == "m"


def test_other_models_lens_and_damage(tmp_path: Path) -> None:
    model = SmallModel()
    with pytest.raises(InputError, match="trained for model 'other'"):
        readout(model, states(model), lens=random_lens(fingerprint="other"))
    with pytest.raises(InputError, match="3 layers of width 24"):
        readout(model, states(model), lens=random_lens(n=3))
    with pytest.raises(InputError, match="holds NaN"):
        TunedLens("x", "", torch.full((1, 2), torch.nan), torch.zeros(1, 2, 2))
    (tmp_path / "junk.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(InputError, match="not a readable safetensors"):
        TunedLens.load(tmp_path / "junk.safetensors")
    with pytest.raises(InputError, match="no such file"):
        TunedLens.load(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="pickle"):
        TunedLens.load(tmp_path / "params.pt")


def published(model: SmallModel, **config: object) -> TunedLens:
    g = torch.Generator().manual_seed(5)
    tensors = {f"{j}.weight": 0.1 * torch.randn(24, 24, generator=g) for j in range(4)}
    tensors |= {f"{j}.bias": torch.zeros(24) for j in range(4)}
    return from_published({"num_hidden_layers": 4, "base_model_name_or_path": "org/small"} | config, tensors, "pub")


def test_a_published_lens_is_used_with_the_unembedding_it_names(caplog: pytest.LogCaptureFixture) -> None:
    model, other = SmallModel(), SmallModel(seed=9)
    hashed = hashlib.sha256(str.encode(np.array_str(model.weight.float().numpy(), precision=1))).hexdigest()
    lens = published(model, unembed_hash=hashed)
    lens.check(model)
    model.name = "./a/folder"  # the hash knows better than the name
    lens.check(model)
    assert not caplog.text
    with pytest.raises(InputError, match=r"published for 'org/small', whose unembedding is not that of small"):
        lens.check(other)
    with pytest.raises(InputError, match="published for"):
        readout(other, states(other), lens=lens, stats=("entropy",))
    half = SmallModel(seed=9, dtype=torch.bfloat16)
    lens.check(half)
    assert "load it in float32" in caplog.text


def test_a_published_lens_without_a_hash_is_compared_by_name(caplog: pytest.LogCaptureFixture) -> None:
    model = SmallModel()
    published(model).check(model)
    model.name = "org/Small@main"
    published(model).check(model)
    assert not caplog.text
    published(model, base_model_name_or_path="org/large").check(model)
    assert "published for 'org/large', not for org/Small@main" in caplog.text

"""The readout against the plain definitions in float64, on easy and on awkward inputs."""

from __future__ import annotations

import math

import pytest
import torch
from tests.unit import plain_statistics
from tests.unit.lens_model import SmallModel, double, states
from torch import Tensor

from exitlens.compute import hardware
from exitlens.errors import InputError, LayerError, ModelError
from exitlens.lenses.read_hidden import readout
from exitlens.lenses.statistics import STATS
from exitlens.models.protocol import LogitTransform

CHOICES = [[3, 7], [11], [200]]


def plain(model: SmallModel, hidden: dict[int, Tensor], lens: str, targets: Tensor) -> dict[str, Tensor]:
    """Every statistic by its definition, in float64, on whole vocabularies."""
    twin, n = double(model), model.n_layers
    logits = torch.stack([twin.logits(h.double(), j, lens) for j, h in hidden.items()])
    last = logits[n].expand_as(logits)
    logp = logits.log_softmax(-1)
    own = targets.expand(len(logits), -1, -1)
    sets = torch.stack([logp[..., ids].exp().sum(-1) for ids in CHOICES], -1)
    top = logp.argmax(-1)
    return {
        "entropy": plain_statistics.entropy(logits),
        "varentropy": plain_statistics.varentropy(logits),
        "top_logprobs": logp.topk(5).values,
        "max_probability": logp.amax(-1).exp(),
        "margin": plain_statistics.margin(logits),
        "logprob": logp.gather(-1, own),
        "rank": torch.stack([plain_statistics.rank(logits, own[..., k]) for k in range(own.shape[-1])], -1),
        "choice_probability": sets,
        "choice_share": sets / sets.sum(-1, keepdim=True),
        "kl": plain_statistics.kl(last, logits),
        "jsd": plain_statistics.jsd(last, logits),
        "tv": plain_statistics.total_variation(last, logits),
        "agreement": top == top[n],
        "saturation": plain_statistics.saturation(top)[None],
    }


def everything(model: SmallModel, hidden: dict[int, Tensor], targets: Tensor, **options):
    return readout(model, hidden, stats=tuple(STATS), targets=targets, choices=CHOICES, **options)


MODELS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"logit_transform": LogitTransform(0.3)},
    "scale and bias": {"logit_transform": LogitTransform(2.5), "bias": True},
    "soft-cap": {"logit_transform": LogitTransform(1.0, 4.0)},
    "scaled soft-cap and bias": {"logit_transform": LogitTransform(0.5, 6.0), "bias": True},
    "half-size run": {"vocab": 211},
    "whole runs": {"vocab": 256},
    "many tiles": {"vocab": 2000, "d": 8},
    "bfloat16 weights": {},
    "shifted": {"spread": 4.0},
}


@pytest.mark.parametrize("lens", ["logit", "raw"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_statistic_equals_the_plain_one(kind: str, lens: str) -> None:
    model = SmallModel(**MODELS[kind])
    if "bfloat16" in kind:
        model._weight = model._weight.bfloat16()
    hidden = states(model)
    targets = torch.randint(model.vocab_size, (37, 2), generator=torch.Generator().manual_seed(1))
    want = plain(model, hidden, lens, targets)
    got = everything(model, hidden, targets, lens=lens, block_rows=50)
    for name, value in want.items():
        if value.is_floating_point():
            assert torch.allclose(got[name].double(), value, atol=1e-4, rtol=1e-5), name
        elif name == "rank":
            assert (got[name] - value).abs().max() <= 1, name  # neighbours may swap in the last bit of float32
        else:
            assert (got[name] == value).float().mean() > 0.99, name
    best = want["top_logprobs"]
    found = _logp(model, hidden, lens).gather(-1, got["top_ids"])
    assert torch.allclose(found, best, atol=1e-5)


def _logp(model: SmallModel, hidden: dict[int, Tensor], lens: str) -> Tensor:
    twin = double(model)
    return torch.stack([twin.logits(h.double(), j, lens) for j, h in hidden.items()]).log_softmax(-1)


def test_layer_n_against_itself_is_exact() -> None:
    for options in MODELS.values():
        model = SmallModel(**options)
        got = readout(model, states(model), stats=("kl", "jsd", "tv", "agreement", "saturation"))
        for name in ("kl", "jsd", "tv"):
            assert (got[name][-1] == 0).all()
            assert (got[name] >= 0).all()
        assert got["agreement"][-1].all()
        assert got["jsd"].max() <= math.log(2)
        assert got["saturation"].max() <= model.n_layers


@pytest.mark.parametrize("size", [1e2, 1e3, 1e4])
def test_huge_logits(size: float) -> None:
    model = SmallModel(spread=size)
    hidden = states(model)
    targets = torch.zeros(37, 1, dtype=torch.long)
    got, want = everything(model, hidden, targets), plain(model, hidden, "logit", targets)
    for name in ("entropy", "kl", "jsd", "logprob", "margin"):
        scale = max(1.0, float(want[name].abs().max()))
        assert torch.isfinite(got[name]).all(), name
        # A float32 logit of this size is itself only right to 1e-7 of it.
        assert (got[name] - want[name]).abs().max() <= 3e-6 * max(scale, 10 * size), name


def test_logits_far_apart_are_summed_again_with_the_true_maximum() -> None:
    # First tile near 0, a later one near 300: e^300 is over float32, so the first attempt must be discarded.
    model = SmallModel(vocab=3000, d=4)
    model._weight[:2500] *= 0.01
    model._weight[2500:] *= 200
    hidden = states(model, 9)
    targets = torch.full((9, 1), 2600)
    got = readout(model, hidden, stats=("entropy", "logprob", "kl"), targets=targets, block_rows=1)
    logp = _logp(model, hidden, "logit")
    assert torch.allclose(got["entropy"].double(), -(logp.exp() * logp).sum(-1), atol=2e-3)
    assert torch.allclose(got["logprob"].double(), logp[:, :, 2600:2601], rtol=1e-5, atol=1e-2)


def test_one_hot_and_uniform_bounds() -> None:
    model = SmallModel(vocab=128, d=128, n_layers=2)
    model._weight = torch.eye(128)
    hidden = {0: torch.zeros(3, 128), 1: 500 * torch.eye(128)[:3], 2: 500 * torch.eye(128)[[0, 5, 2]]}
    model.norm = lambda h: h  # type: ignore[method-assign]
    got = readout(model, hidden, stats=("entropy", "kl", "jsd", "tv", "varentropy", "margin"))
    assert torch.allclose(got["entropy"][0], torch.full((3,), math.log(128)), atol=1e-5)
    assert torch.equal(got["entropy"][1], torch.zeros(3))
    assert torch.equal(got["varentropy"][1], torch.zeros(3))
    assert torch.allclose(got["kl"][0], torch.full((3,), math.log(128)), atol=1e-4)
    assert torch.allclose(got["jsd"][1], torch.tensor([0.0, math.log(2), 0.0]))
    assert torch.equal(got["tv"][1], torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(got["margin"][1], torch.ones(3))


def test_jsd_worked_out_by_hand() -> None:
    model = SmallModel(vocab=3, d=3, n_layers=1)
    model._weight = torch.eye(3)
    model.norm = lambda h: h  # type: ignore[method-assign]
    hidden = {0: torch.tensor([[0.7, 0.2, 0.1]]).log(), 1: torch.tensor([[0.1, 0.2, 0.7]]).log()}
    got = readout(model, hidden, stats=("jsd", "tv", "kl"))
    assert got["jsd"][0, 0] == pytest.approx(0.7 * math.log(7 / 4) + 0.1 * math.log(1 / 4), abs=1e-6)
    assert got["tv"][0, 0] == pytest.approx(0.6, abs=1e-6)
    assert got["kl"][0, 0] == pytest.approx(0.6 * math.log(7), abs=1e-6)


def test_ties_give_the_lower_id_first() -> None:
    model = SmallModel(vocab=1000, d=4, n_layers=1)
    model._weight = torch.zeros(1000, 4)
    model._weight[[990, 40, 700]] = 1.0
    got = readout(model, {1: torch.ones(2, 4)}, stats=("top_k", "rank"), targets=torch.tensor([700, 0]), top_k=6)
    assert got["top_ids"][0, 0].tolist() == [40, 700, 990, 0, 1, 2]
    assert got["rank"][0].tolist() == [0, 3]


def test_large_k_and_whole_vocabulary() -> None:
    model = SmallModel(vocab=150)
    hidden = states(model, 5)
    got = readout(model, hidden, stats=("top_k",), top_k=150)
    assert torch.allclose(
        got["top_logprobs"].double(), _logp(model, hidden, "logit").sort(-1, descending=True)[0], atol=1e-4
    )
    assert (got["top_ids"].sort(-1).values == torch.arange(150)).all()


def test_bfloat16_products_stay_in_their_documented_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SmallModel(vocab=1500, d=64, spread=0.5)
    hidden = states(model, 60)
    targets = torch.randint(1500, (60, 1), generator=torch.Generator().manual_seed(1))
    exact = everything(model, hidden, targets)
    monkeypatch.setattr(hardware, "bf16_fast", lambda device: True)
    fast = everything(model, hidden, targets, precision="fast")
    assert fast.product == torch.bfloat16
    assert exact.product == torch.float32
    assert torch.equal(fast["top_ids"][..., 0], exact["top_ids"][..., 0])
    bounds = {c.name: c.fast for record in STATS.values() for c in record.columns if c.fast is not None}
    assert len(bounds) == 10
    for name, bound in bounds.items():
        assert (fast[name] - exact[name]).abs().max() < bound, name
    # Without re-scoring the best log-probability would be off by the rounding of bf16 (about 2^-9 of the logit).
    assert (fast["top_logprobs"] - exact["top_logprobs"])[..., 0].abs().max() < 0.02


@pytest.mark.parametrize("logit_transform", [LogitTransform(), LogitTransform(2.0, 60.0)], ids=["plain", "soft-cap"])
@pytest.mark.parametrize("stat", ["entropy", "kl", "logprob"])
def test_fast_keeps_its_bounds_for_one_statistic_of_widely_spread_logits(
    monkeypatch: pytest.MonkeyPatch, stat: str, logit_transform: LogitTransform
) -> None:
    # A divergence of tens of nats: an error of p_N would count as often as the other layer's logits are large.
    model = SmallModel(vocab=3000, d=64, spread=1.5, logit_transform=logit_transform)
    hidden = states(model, 40)
    targets = torch.arange(40)
    exact = readout(model, hidden, stats=(stat,), targets=targets)[stat]
    monkeypatch.setattr(hardware, "bf16_fast", lambda device: True)
    fast = readout(model, hidden, stats=(stat,), targets=targets, precision="fast")[stat]
    assert exact.max() > 20 or stat != "kl"
    assert (fast - exact).abs().max() < 0.05


def test_equal_logits_keep_the_order_of_their_ids_after_a_bf16_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "bf16_fast", lambda device: True)
    model = SmallModel(vocab=1500)
    hidden = {j: torch.zeros(3, model.d_model) for j in range(model.n_layers + 1)}
    found = readout(model, hidden, stats=("top_k",), top_k=4, precision="fast")["top_ids"]
    assert (found == torch.arange(4)).all()


def test_fast_is_the_float32_product_where_bf16_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "bf16_fast", lambda device: False)
    model = SmallModel()
    assert readout(model, states(model), precision="fast").product == torch.float32


@pytest.mark.parametrize("rows", [1, 5, 7, 40, 10_000])
def test_blocks_do_not_change_anything(rows: int) -> None:
    model = SmallModel(bias=True)
    hidden = states(model)
    targets = torch.arange(37)
    want = everything(model, hidden, targets)
    got = everything(model, hidden, targets, block_rows=rows)
    for name in want:
        assert torch.allclose(got[name].double(), want[name].double(), atol=1e-5, equal_nan=True), name


def test_memory_limit_makes_smaller_blocks_and_says_so() -> None:
    model = SmallModel(vocab=4000)
    hidden = states(model, 200)
    got = readout(model, hidden, stats=("entropy", "rank"), targets=torch.zeros(200).long(), memory_limit=2_000_000)
    assert "smaller blocks" in got.notes[0]
    with pytest.raises(InputError, match="memory_limit 1000 bytes is too small"):
        readout(model, hidden, memory_limit=1000)


def test_other_reference_and_missing_targets() -> None:
    model = SmallModel(bias=True)
    hidden = states(model)
    logp = _logp(model, hidden, "logit")
    got = readout(model, hidden, stats=("kl", "logprob"), reference=2, targets=torch.tensor([5, -1] + [0] * 35))
    want = (logp[2].exp() * (logp[2] - logp)).sum(-1)
    assert torch.allclose(got["kl"].double(), want, atol=1e-4)
    assert torch.isnan(got["logprob"][:, 1]).all()
    assert torch.isfinite(got["logprob"][:, 0]).all()


def test_order_and_subset_of_layers_are_kept() -> None:
    model = SmallModel()
    hidden = states(model)
    every = readout(model, hidden, stats=("entropy", "kl"))
    some = readout(model, {4: hidden[4], 1: hidden[1]}, stats=("entropy", "kl"))
    assert some.layers == (4, 1)
    for name in some:
        assert torch.allclose(some[name], every[name][[4, 1]], atol=1e-5)


def test_no_tokens_give_empty_results() -> None:
    model = SmallModel()
    hidden = {j: h[:0] for j, h in states(model).items()}
    got = everything(model, hidden, torch.empty(0, 2, dtype=torch.long))
    assert got["entropy"].shape == (5, 0)
    assert got["logprob"].shape == (5, 0, 2)
    assert got["saturation"].shape == (1, 0)


def test_cosine_with_the_next_layer() -> None:
    model = SmallModel()
    hidden = states(model)
    got = readout(model, hidden, stats=("cosine",))["cosine"]
    assert torch.allclose(got[1], torch.cosine_similarity(hidden[1], hidden[2]), atol=1e-6)
    assert torch.isnan(got[-1]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stats": ("entrpy",)}, InputError, "unknown statistic 'entrpy'"),
        ({"lens": "tunned"}, InputError, "unknown lens 'tunned'"),
        ({"stats": ("top_k",), "top_k": 204}, InputError, "top_k 204"),
        ({"stats": ("rank",)}, InputError, "rank needs targets"),
        ({"stats": ("rank",), "targets": torch.full((37,), 203)}, InputError, "target id 203 is out of the vocabulary"),
        ({"stats": ("choices",), "choices": [[1], [999]]}, InputError, "token id 999"),
        ({"precision": "quick"}, InputError, "unknown precision 'quick'"),
        ({"block_rows": 0}, InputError, "block_rows 0"),
        ({"stats": ("kl",), "reference": 9}, LayerError, "layer 9"),
    ],
)
def test_bad_input_is_one_line(options: dict, error: type[Exception], message: str) -> None:
    model = SmallModel()
    with pytest.raises(error, match=message) as caught:
        readout(model, states(model), **options)
    assert "\n" not in str(caught.value)


def test_layer_out_of_range_and_odd_shapes() -> None:
    model = SmallModel()
    with pytest.raises(LayerError, match="layer 5 is out of range"):
        readout(model, {5: torch.zeros(2, 24)})
    with pytest.raises(InputError, match="shape"):
        readout(model, {1: torch.zeros(2, 24), 2: torch.zeros(3, 24)})
    with pytest.raises(LayerError, match="compares with layer 4"):
        readout(model, {1: torch.zeros(2, 24)}, stats=("kl",))


def test_nan_names_the_first_layer() -> None:
    model = SmallModel()
    hidden = states(model)
    hidden[4][8, 0] = torch.nan
    hidden[2][8, 3] = torch.nan
    with pytest.raises(ModelError, match=r"layer 2 of small .*token 8"):
        readout(model, hidden, block_rows=20)
    model._weight[77] = torch.nan
    with pytest.raises(ModelError, match="token id 77"):
        readout(model, states(model))

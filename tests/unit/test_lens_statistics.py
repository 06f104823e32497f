"""Statistics: each on a value worked out by hand, in its record's bounds, and what a new record takes."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit import plain_statistics as plain
from tests.unit.lens_model import SmallModel, states

from exitlens.cli import main
from exitlens.data.texts import TextFile
from exitlens.errors import InputError
from exitlens.lenses import read, readout, register_statistic, statistics
from exitlens.lenses.statistics import STATS, Column, Needs, Statistic
from exitlens.models.protocol import LogitTransform
from exitlens.runs.engine import LocalEngine
from exitlens.studies.corpus.read import CorpusSettings, read_corpus

INF = math.inf
P, Q = (0.7, 0.2, 0.1), (0.1, 0.2, 0.7)


def eye(vocab: int, layers: int = 1) -> SmallModel:
    """A model whose hidden states are its logits."""
    model = SmallModel(vocab=vocab, d=vocab, n_layers=layers)
    model._weight = torch.eye(vocab)
    model.norm = lambda h: h  # type: ignore[method-assign]
    return model


def of(*rows: tuple[float, ...], stats: tuple[str, ...] | None = None, **options) -> dict[str, torch.Tensor]:
    """Statistics of layers with these probabilities, the last one the reference: ``[layers]``."""
    hidden = {j: torch.tensor([row]).log().clamp(min=-1e4) for j, row in enumerate(rows)}
    model = eye(len(rows[0]), len(rows) - 1)
    names = stats or tuple(name for name in STATS if name not in ("choices", "logprob", "rank"))
    found = readout(model, hidden, stats=names, top_k=2, **options)
    return {name: value[:, 0] for name, value in found.items()}


def test_values_worked_out_by_hand() -> None:
    found = of(Q, P)
    # H = −(.7 ln .7 + .2 ln .2 + .1 ln .1); KL(P‖Q) = .7 ln 7 + 0 + .1 ln(1/7) = .6 ln 7
    h = 0.7 * 0.35667494394 + 0.2 * 1.60943791243 + 0.1 * 2.30258509299
    second = 0.7 * 0.35667494394**2 + 0.2 * 1.60943791243**2 + 0.1 * 2.30258509299**2
    # m = (.4, .2, .4): JSD = .7 ln(.7/.4) + .1 ln(.1/.4)
    hand = {"entropy": h, "varentropy": second - h * h, "kl": 0.6 * math.log(7), "tv": 0.6, "margin": 0.5}
    hand |= {"jsd": 0.7 * math.log(1.75) - 0.1 * math.log(4), "max_probability": 0.7}
    for name, value in hand.items():
        assert found[name][0].item() == pytest.approx(value, abs=1e-6), name
    assert found["top_ids"].tolist() == [[2, 1], [0, 1]]
    assert found["top_logprobs"][0].exp().tolist() == pytest.approx([0.7, 0.2])
    assert found["agreement"].tolist() == [False, True]
    assert found["saturation"].tolist() == [1]
    cosine = torch.cosine_similarity(torch.tensor(Q).log(), torch.tensor(P).log(), dim=0)
    assert found["cosine"][0].item() == pytest.approx(cosine.item(), abs=1e-6)
    asked = of(Q, P, stats=("logprob", "rank", "choices"), targets=torch.tensor([[1, 0]]), choices=[[0, 1], [2]])
    assert asked["logprob"][0].exp().tolist() == pytest.approx([0.2, 0.1])
    assert asked["rank"].tolist() == [[1, 2], [1, 0]]
    assert asked["choice_probability"][0].tolist() == pytest.approx([0.3, 0.7])
    assert of(Q, P, stats=("choices",), choices=[[0], [2]])["choice_share"][0].tolist() == pytest.approx([1 / 8, 7 / 8])


def test_bounds_are_reached() -> None:
    one, other, even = (1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.25,) * 4
    found = of(other, even, one)
    assert found["jsd"].tolist() == pytest.approx([math.log(2), found["jsd"][1].item(), 0.0])
    assert found["tv"].tolist() == pytest.approx([1.0, 0.75, 0.0])
    assert found["entropy"].tolist() == pytest.approx([0.0, math.log(4), 0.0], abs=1e-6)
    assert found["varentropy"].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert found["margin"].tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert found["kl"][1:].tolist() == pytest.approx([math.log(4), 0.0])
    assert of((1.0,), (1.0,), stats=("margin", "entropy", "kl"))["margin"].tolist() == [1.0, 1.0]


scores = st.lists(st.floats(-80, 80, width=32), min_size=5, max_size=5)


@settings(deadline=None, max_examples=60)
@given(scores, scores)
def test_divergences_stay_in_bounds(p: list[float], q: list[float]) -> None:
    hidden = {0: torch.tensor([q, p]), 1: torch.tensor([p, q])}
    found = readout(eye(5), hidden, stats=("jsd", "kl", "tv", "entropy", "varentropy"))
    jsd, kl, tv = (found[name][0, 0].item() for name in ("jsd", "kl", "tv"))
    assert 0 <= jsd <= torch.tensor(math.log(2)).item()  # ln 2 as float32 writes it
    assert jsd == pytest.approx(found["jsd"][0, 1].item(), abs=1e-5)
    # Pinsker: KL ≥ 2 TV²; and JSD ≤ ln 2 · TV.
    assert kl >= 2 * tv**2 - 1e-4
    assert jsd <= math.log(2) * tv + 1e-5
    assert found["varentropy"].min() >= 0


@pytest.mark.parametrize("logit_transform", [LogitTransform(), LogitTransform(0.5, 6.0)], ids=["plain", "soft-cap"])
def test_every_statistic_keeps_the_bounds_of_its_record(logit_transform: LogitTransform) -> None:
    model = SmallModel(logit_transform=logit_transform)
    targets = torch.randint(model.vocab_size, (37, 2), generator=torch.Generator().manual_seed(1))
    found = readout(model, states(model), stats=tuple(STATS), targets=targets, choices=[[3, 7], [11]])
    kinds = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
    for column in (c for record in STATS.values() for c in record.columns):
        low, high = column.bounds(model.vocab_size, model.n_layers)
        values = found[column.name]
        assert values.dtype == kinds[column.kind], column.name
        assert values.ndim == (2 if column.axis is None else 3), column.name
        assert len(values) == (1 if column.shared else 5), column.name
        known = values[~values.isnan()].double()
        assert known.min() >= low, column.name
        assert known.max() <= high + 1e-6, column.name  # e^0 or ln V as float32 writes it


def test_saturation() -> None:
    #           never before N · from 2 on · always · changes again, the same only from 3 on
    tops = [[1, 5, 7, 2], [1, 6, 7, 9], [1, 9, 7, 1], [4, 9, 7, 2], [9, 9, 7, 2]]
    hidden = {j: torch.eye(10)[row] for j, row in enumerate(tops)}
    found = readout(eye(10, 4), hidden, stats=("saturation", "agreement"))
    assert found["saturation"].tolist() == [[4, 2, 0, 3]] == [plain.saturation(torch.tensor(tops)).tolist()]
    some = readout(eye(10, 4), {j: hidden[j] for j in (4, 1, 3)}, stats=("saturation",))
    assert some["saturation"].tolist() == [[4, 3, 1, 3]]  # of the recorded layers


@contextlib.contextmanager
def registered(statistic: Statistic) -> Iterator[None]:
    register_statistic(statistic)
    try:
        yield
    finally:
        del statistics._known[statistic.name]


COLLISION = Statistic(
    "collision",
    "Rényi entropy of order 2, −ln Σ p²",
    (Column("collision", "nats", 0.0, "ln V"),),
    Needs(logits=True),
    formula=lambda rows: -rows.sum(lambda log_p: (2 * log_p).exp()).log(),
)
HELLINGER = Statistic(
    "hellinger",
    "squared Hellinger distance, ½Σ(√p − √q)²",
    (Column("hellinger", "", 0.0, 1.0),),
    Needs(reference="terms"),
    formula=lambda rows: 0.5 * rows.terms["hellinger"],
    term=lambda tile: tile.subtract(tile.p.sqrt(), tile.q.sqrt()).square_(),
)


def test_a_new_statistic_is_one_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few lines: and it is in readout, trace, corpus table, means by layer, and help."""
    model = SmallModel()
    with registered(COLLISION), registered(HELLINGER):
        found = readout(
            model, states(model), stats=("jsd", "rank", "collision", "hellinger"), targets=torch.zeros(37).long()
        )
        logits = torch.stack([model.logits(h, j) for j, h in states(model).items()]).double()
        p = logits.softmax(-1)
        assert torch.allclose(found["collision"].double(), -p.square().sum(-1).log(), atol=1e-4)
        want = 0.5 * (p[-1].sqrt() - p.sqrt()).square().sum(-1)
        assert torch.allclose(found["hellinger"].double(), want, atol=1e-5)
        assert torch.allclose(found["jsd"].double(), plain.jsd(logits[-1].expand_as(logits), logits), atol=1e-5)
        trace = read(model, ["abc", "de"], stats=("collision",))
        assert trace.to_pandas()["collision"].notna().all()
        (tmp_path / "t.txt").write_text("abc\nde\n")
        read_corpus(
            LocalEngine(model),
            TextFile(tmp_path / "t.txt"),
            tmp_path / "out",
            CorpusSettings(stats=("collision",), precision="exact"),
        )
        table = pd.read_parquet(tmp_path / "out" / "shards")
        assert np.allclose(np.sort(table["collision"]), np.sort(trace.to_pandas()["collision"]), atol=1e-5)
        assert "collision" in pd.read_parquet(tmp_path / "out" / "tables" / "by_layer.parquet")
        assert main(["read", "--help"]) == 0
        assert "collision" in capsys.readouterr().out
    with pytest.raises(InputError, match="unknown statistic 'collision': use entropy"):
        readout(model, states(model), stats=("collision",))


def test_names_that_are_taken_and_records_without_a_formula() -> None:
    with pytest.raises(InputError, match="the name 'top_ids' is taken by 'top_k'"):
        register_statistic(Statistic("mine", "", (Column("top_ids"),), formula=lambda rows: rows.entropy))
    with pytest.raises(InputError, match="needs at least one column, and either"):
        register_statistic(Statistic("mine", "", (Column("mine"),)))
    assert "mine" not in STATS


def test_the_docs_list_every_statistic() -> None:
    """docs/lens.md has the table that the records give, word for word."""
    docs = (Path(__file__).parents[2] / "docs" / "lens.md").read_text("utf-8")
    for line in statistics.table().splitlines():
        assert line in docs, line


def test_listing_them_does_not_import_torch() -> None:
    code = "import sys, exitlens.lenses; exitlens.lenses.STATS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Traces: every value lands on its own text, layer and position, whatever the batches and windows were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.lens_model import SmallModel

from exitlens.errors import ContextError, InputError, LayerError
from exitlens.lenses.read_hidden import readout
from exitlens.lenses.read_texts import read, read_ids
from exitlens.lenses.trace import Trace
from exitlens.models.forward import plan_windows

TEXTS = ["abc", "a", "hello worl", "no", "lens"]
STATS = ("entropy", "top_k", "logprob", "rank", "kl", "agreement", "saturation")


def alone(model: SmallModel, ids: list[int]) -> dict:
    hidden = model.forward(torch.tensor([ids]), layers="all").hidden
    targets = torch.tensor([*ids[1:], -1])
    return readout(model, {j: h[0] for j, h in hidden.items()}, stats=STATS, targets=targets)


@pytest.mark.parametrize("batch_tokens", [1, 12, 25, 512])
def test_each_text_reads_as_it_does_alone(batch_tokens: int) -> None:
    model = SmallModel()
    trace = read(model, TEXTS, stats=STATS, batch_tokens=batch_tokens)
    assert trace.layers == (0, 1, 2, 3, 4)
    assert trace.lengths == (4, 2, 11, 3, 5)
    for i, text in enumerate(TEXTS):
        want = alone(model, model.encode(text))
        n = len(model.encode(text))
        for name, value in want.items():
            got = trace[name][i, :, :n]
            assert np.allclose(got, value.numpy(), atol=1e-5, equal_nan=True), (name, text)
            rest = trace[name][i, :, n:]
            empty = np.isnan(rest) if rest.dtype.kind == "f" else rest == (0 if rest.dtype.kind == "b" else -1)
            assert empty.all()


def test_layers_and_their_order() -> None:
    model = SmallModel()
    trace = read(model, TEXTS, layers=[4, 2])
    every = read(model, TEXTS)
    assert trace.layers == (4, 2)
    assert np.allclose(trace["entropy"], every["entropy"][:, [4, 2]], atol=1e-5, equal_nan=True)
    assert np.array_equal(trace.at(2)["entropy"], trace["entropy"][:, 1], equal_nan=True)
    with pytest.raises(LayerError, match="layer 3 was not recorded"):
        trace.at(3)


def test_windows_cover_every_position_once() -> None:
    for n in (12, 13, 30, 57):
        for overlap in (0, 3, 11):
            windows = plan_windows([n, 5], 12, overlap, long="split")
            kept = [p for w in windows if w.text == 0 for p in range(w.keep, w.stop)]
            assert kept == list(range(n))
            assert all(w.stop - w.start <= 12 and w.start <= w.keep for w in windows)


def test_texts_over_the_context() -> None:
    model = SmallModel()
    ids = [list(range(1, 31)), [5, 6]]
    with pytest.raises(ContextError, match="text 0 has 30 tokens, over the context of 12"):
        read_ids(model, ids)
    trace = read_ids(model, ids, stats=("entropy", "logprob"), long="split", overlap=4)
    assert trace.notes
    assert np.isfinite(trace["entropy"][0]).all()
    assert np.isfinite(trace["logprob"][0, :, :29]).all()
    assert np.isnan(trace["logprob"][0, :, 29]).all()
    # Position 14 lies in the second window, which starts at 8.
    hidden = model.forward(torch.tensor([ids[0][8:20]]), layers="all").hidden
    want = readout(model, {j: h[0] for j, h in hidden.items()})["entropy"]
    assert np.allclose(trace["entropy"][0, :, 14], want[:, 6].numpy(), atol=1e-5)


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    trace = read(SmallModel(), TEXTS, stats=STATS)
    again = Trace.load(trace.save(tmp_path / "t.safetensors"))
    assert again.tokens == trace.tokens
    assert again.layers == trace.layers
    for name in trace.values:
        assert np.array_equal(again[name], trace[name], equal_nan=trace[name].dtype.kind == "f")
    with pytest.raises(InputError, match="not a trace"):
        Trace.from_tensors({}, {"format": "other"})


def test_frozen() -> None:
    trace = read(SmallModel(), TEXTS)
    with pytest.raises(ValueError, match="read-only"):
        trace["entropy"][0] = 0
    with pytest.raises(InputError, match="holds no 'kl'"):
        trace["kl"]


def test_tables() -> None:
    trace = read(SmallModel(), TEXTS, stats=STATS, top_k=3)
    frame = trace.to_pandas()
    assert len(frame) == 5 * sum(trace.lengths)
    row = frame[(frame.text == 2) & (frame.layer == 3) & (frame.position == 7)].iloc[0]
    assert row.entropy == trace["entropy"][2, 3, 7]
    assert row.top_ids_1 == trace["top_ids"][2, 3, 7, 1]
    assert row.token == trace.tokens[2][7]
    assert row.saturation == trace["saturation"][2, 0, 7]
    xarray = pytest.importorskip("xarray")
    data = trace.to_xarray()
    assert isinstance(data, xarray.Dataset)
    assert data.entropy.dims == ("text", "layer", "position")
    assert float(data.entropy.sel(layer=3)[2, 7]) == pytest.approx(float(row.entropy))


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ([], {}, InputError, "no text was given"),
        (["ab", ""], {}, InputError, "text 1 is empty"),
        (["ab"], {"layers": [0, 5]}, LayerError, "layer 5 is out of range"),
        (["ab"], {"batch_tokens": 0}, InputError, "batch_tokens=0"),
        (["ab"], {"lens": "focal"}, InputError, "unknown lens 'focal'"),
        (["abcdefghijklmnop"], {"long": "split", "overlap": 12}, InputError, "overlap 12"),
    ],
)
def test_bad_input(texts: list[str], options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(SmallModel(), texts, **options)
    with pytest.raises(InputError, match="token id 300"):
        read_ids(SmallModel(), [[1, 300]])

"""Lens and trace files that were forged or damaged: one line, whatever stands in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.unit.lens_model import SmallModel

from exitlens.errors import InputError
from exitlens.lenses import Trace, TunedLens, read

N, D = 4, 24


def one_line(error: pytest.ExceptionInfo[InputError]) -> None:
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def good(**changed: Any) -> dict[str, torch.Tensor]:
    tensors = {"bias": torch.zeros(N, D), "weight": torch.zeros(N, D, D)} | changed
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


LOW = {"weight": None, "up": torch.zeros(N, D, 3), "down": torch.zeros(N, 3, D)}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"bias": torch.zeros(N)}, "needs bias"),
        ({"bias": torch.zeros(0, D)}, "needs bias"),
        ({"bias": torch.zeros(N, D, 1)}, "needs bias"),
        ({"weight": None}, "needs bias"),
        (LOW | {"down": None}, "needs bias"),
        ({"up": torch.zeros(N, D, 3)}, "needs bias"),
        (
            {"weight": torch.zeros(N, D, D - 1)},
            r"weight has shape \(4, 24, 23\), which does not fit",
        ),
        (LOW | {"up": torch.zeros(N, D)}, r"up has shape \(4, 24\)"),
        (LOW | {"down": torch.zeros(N, 2, D)}, r"down has shape \(4, 2, 24\)"),
        ({"bias": torch.zeros(N, D, dtype=torch.int64)}, "bias holds NaN, infinity or no floats"),
        ({"weight": torch.full((N, D, D), torch.inf)}, "weight holds NaN, infinity"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    path = tmp_path / "lens.safetensors"
    save_file(good(**changed), path, {"format": "exitlens-tuned-lens-1", "name": "x" * 500})
    with pytest.raises(InputError, match=says) as error:
        TunedLens.load(path)
    one_line(error)


@pytest.mark.parametrize("provenance", ["[1]", "{", '{"a": 1}', "[" * 50_000, '"\\ud800"', "1" * 5000])
def test_provenance_is_checked(tmp_path: Path, provenance: str) -> None:
    path = tmp_path / "lens.safetensors"
    save_file(good(), path, {"format": "exitlens-tuned-lens-1", "name": "x", "provenance": provenance})
    with pytest.raises(InputError, match="provenance") as error:
        TunedLens.load(path)
    one_line(error)


def published(folder: Path, config: str, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    whole = {f"{j}.weight": torch.zeros(D, D) for j in range(N)} if tensors is None else tensors
    save_file(whole, folder / "params.safetensors")
    (folder / "config.json").write_text(config)
    return folder


@pytest.mark.parametrize(
    ("config", "tensors", "says"),
    [
        ("[" * 50_000, None, "nested too deeply"),
        ("[]", None, r"is \[\], no object"),
        ('{"num_hidden_layers": true}', None, "no num_hidden_layers"),
        ('{"num_hidden_layers": 4.0}', None, "no num_hidden_layers"),
        ('{"num_hidden_layers": ' + "9" * 30 + "}", None, "no tensor '4.weight', though config.json says 9999"),
        ('{"num_hidden_layers": 1}', {"0.weight": torch.zeros(D)}, r"'0.weight' has shape \(24,\)"),
        ('{"num_hidden_layers": 1}', {"0.weight": torch.tensor(1.0)}, r"'0.weight' has shape \(\)"),
        ('{"num_hidden_layers": 1}', {"0.weight": torch.zeros(D, D).int()}, "of torch.int32"),
        (
            '{"num_hidden_layers": 1}', {"0.weight": torch.zeros(D, D), "0.bias": torch.zeros(D, 1)},
            r"'0.bias' has shape \(24, 1\)",
        ),
    ],
)  # fmt: skip
def test_published_folders_are_checked(tmp_path: Path, config: str, tensors: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        TunedLens.load(published(tmp_path, config, tensors))
    one_line(error)


def test_a_published_lens_of_another_unembedding_is_refused(tmp_path: Path) -> None:
    model = SmallModel()
    mark = hashlib.sha256(np.array_str(model.weight.float().numpy(), precision=1).encode()).hexdigest()
    config = {"num_hidden_layers": N, "base_model_name_or_path": "org/base", "unembed_hash": mark}
    assert TunedLens.load(published(tmp_path, json.dumps(config)), model).provenance["unembed_hash"] == mark
    with pytest.raises(InputError, match="was published for 'org/base', whose unembedding is not that of small"):
        TunedLens.load(tmp_path, SmallModel(seed=1))


def test_traces_are_checked(tmp_path: Path) -> None:
    trace = read(SmallModel(), ["abc", "a"], stats=("entropy", "rank", "saturation"))
    tensors, header = trace.to_tensors()
    path = tmp_path / "trace.safetensors"
    for changed in (
        {"layers": '["0"]'}, {"layers": "{}"}, {"layers": "[" * 50_000}, {"token_ids": "[[1, 2]]"}, {"token_ids": "3"},
        {"tokens": "[[1], [2]]"}, {"tokens": "[[], []]"}, {"notes": "[1]"}, {"extra": "[]"}, {"extra": '{"a": 1}'},
        {"layers": "[0, 1]"}, {"layers": "1" * 5000},
    ):  # fmt: skip
        save_file(tensors, path, header | changed)
        with pytest.raises(InputError, match="trace") as error:
            Trace.load(path)
        one_line(error)
    for wrong in (torch.zeros(2, 5), torch.zeros(2, 5, 9), torch.zeros(2, 5, 4).bfloat16(), torch.zeros(())):
        save_file(tensors | {"entropy": wrong}, path, header)
        with pytest.raises(InputError, match="'entropy' has shape"):
            Trace.load(path)
    save_file(tensors, path, header)
    assert Trace.load(path).tokens == trace.tokens


texts = st.text(max_size=12) | st.sampled_from(["[]", "{}", "[[]]", "[[1]]", "null", "[0]", '["a"]', "4"])
shapes = st.lists(st.integers(0, 3), max_size=4)
kinds = st.sampled_from([torch.float32, torch.int64, torch.bool, torch.float16])


@pytest.mark.parametrize("loader", [TunedLens, Trace])
def test_any_header_and_any_shapes(loader: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    forms = ["exitlens-tuned-lens-1", "exitlens-trace-1"]
    names = st.sampled_from(["bias", "weight", "up", "down", "entropy", "0.weight"])
    keys = [
        "name",
        "fingerprint",
        "provenance",
        "layers",
        "lens",
        "model",
        "product",
        "token_ids",
        "tokens",
        "notes",
        "extra",
    ]

    @settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(forms),
        st.dictionaries(names, st.tuples(shapes, kinds), max_size=3),
        st.fixed_dictionaries({}, optional=dict.fromkeys(keys, texts)),
    )
    def check(form: str, parts: dict[str, Any], header: dict[str, str]) -> None:
        save_file(
            {name: torch.zeros(shape, dtype=kind) for name, (shape, kind) in parts.items()},
            path,
            header | {"format": form},
        )
        said = "nothing"
        try:
            loader.load(path)
        except InputError as error:
            said = str(error)
        assert "\n" not in said

    check()

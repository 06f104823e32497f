"""The names a notebook uses: `exitlens.read`, `lm.read`, `lm.generate`, traces of answers as they are written."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny

import exitlens
from exitlens.errors import InputError
from exitlens.lenses import TunedLens
from exitlens.lenses.speed import reading_speed

STATS = ("entropy", "kl", "top_k", "logprob", "rank", "agreement", "saturation")
PROMPTS = ["The capital of", "What is true? A true statement is"]


@pytest.fixture(scope="module")
def lm() -> Any:
    return exitlens.wrap(tiny.model("llama"), tiny.tokenizer())


def test_lm_read_is_the_public_read(lm: Any, tmp_path: Path) -> None:
    trace = lm.read(PROMPTS, layers=[0, 3], stats=("entropy", "kl"))
    same = exitlens.read(lm, PROMPTS, layers=[0, 3], stats=("entropy", "kl"))
    assert isinstance(trace, exitlens.Trace)
    assert np.array_equal(trace["kl"], same["kl"], equal_nan=True)
    again = exitlens.Trace.load(trace.save(tmp_path / "t.safetensors"))
    assert np.array_equal(again["entropy"], trace["entropy"], equal_nan=True)
    assert len(lm.read("alone")) == 1


@pytest.mark.parametrize("lens", ["logit", "raw"])
def test_a_trace_of_answers_is_that_of_reading_prompt_and_answer(lm: Any, lens: str) -> None:
    passes = 0
    original = lm.forward

    answers = lm.generate(PROMPTS, max_new_tokens=7, read=STATS, read_lens=lens, read_layers=[1, 3])

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        return original(*args, **kwargs)

    lm.forward = counted
    try:
        trace = exitlens.trace_answers(lm, answers)
    finally:
        del lm.forward
    assert passes == 0
    assert trace.layers == (1, 3)
    assert trace.lens == lens
    for i, answer in enumerate(answers):
        n = len(answer.token_ids)
        assert trace.token_ids[i] == (answer.prompt_ids[-1], *answer.token_ids)
        whole = exitlens.lenses.read_ids(
            lm, [[*answer.prompt_ids, *answer.token_ids]], layers=[1, 3], lens=lens, stats=STATS
        )
        start = len(answer.prompt_ids) - 1
        for name, value in whole.values.items():
            want = value[0, :, start : start + n]
            assert np.allclose(trace[name][i, :, :n], want, atol=1e-3, equal_nan=True), name
        assert np.isnan(trace["entropy"][i, :, n:]).all()
    frame = trace.to_pandas()
    assert len(frame) == 2 * sum(len(a.token_ids) + 1 for a in answers)


def test_answers_that_were_not_read(lm: Any) -> None:
    answers = lm.generate("one", max_new_tokens=2)
    with pytest.raises(InputError, match="answer 0 was not read: ask generate for it with read="):
        exitlens.trace_answers(lm, answers)
    with pytest.raises(InputError, match="no answers were given"):
        exitlens.trace_answers(lm, [])
    one = lm.generate("one", max_new_tokens=2, read=("entropy",))
    other = lm.generate("one", max_new_tokens=2, read=("entropy",), read_layers=[0])
    with pytest.raises(InputError, match="read at other layers"):
        exitlens.trace_answers(lm, [*one, *other])


def test_a_tuned_lens_pickles() -> None:
    lens = TunedLens("t", "f", torch.ones(2, 3), torch.zeros(2, 3, 3), provenance={"source": "x"})
    again = pickle.loads(pickle.dumps(lens))  # noqa: S301 - our own bytes, of this test
    assert torch.equal(again.bias, lens.bias)
    assert dict(again.provenance) == {"source": "x"}


def test_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, exitlens; dir(exitlens);"
        "print(sorted({'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert exitlens.__all__ == sorted(exitlens.__all__, key=lambda name: (not name[0].isupper(), name))


def test_reading_speed_is_measured(lm: Any) -> None:
    speed = reading_speed(lm, seconds=0.2)
    assert speed.tokens_per_second > 0
    assert speed.rows % (lm.n_layers + 1) == 0
    assert speed.forward_share + speed.product_share + speed.statistics_share == pytest.approx(1.0)
    assert min(speed.forward_share, speed.product_share, speed.statistics_share) >= 0
    assert speed.bound in ("forward pass", "unembedding product", "statistics")

"""One model in several threads: hooks, training modes and measurements belong to the model, readings to the thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from tests import tiny

from exitlens.decoding import generate
from exitlens.lenses import read_ids
from exitlens.lenses.attribution import Target, attribute_ids
from exitlens.models import Layered, wrap
from exitlens.models.pullback import gradient_of

TEXTS = ["What is true?", "How many whiskers does a human have? None. The capital of France"]


def wrapped(family: str, *, train: bool = False) -> tuple[Layered, Layered]:
    """Two wrappers of one model."""
    model = tiny.model(family, spread=0.2)
    a, b = (wrap(model, tiny.tokenizer(), name="tiny") for _ in range(2))
    model.train(train)
    return a, b


def together(jobs: list[Callable[[], Any]], times: int) -> list[list[Any]]:
    """What each job gives, ``times`` in a row, each in a thread of its own."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: [job() for _ in range(times)], jobs))


def states(lm: Layered, text: str) -> torch.Tensor:
    return torch.stack(list(lm.forward(torch.tensor([lm.encode(text)]), layers="all").hidden.values()))


def entropy(lm: Layered, text: str) -> torch.Tensor:
    return torch.tensor(read_ids(lm, [lm.encode(text)], layers="all", stats=("entropy",)).values["entropy"])


def written(lm: Layered, text: str) -> torch.Tensor:
    return torch.tensor(generate(lm, [text], decoder="dola:0/2", max_new_tokens=6)[0].token_ids)


def shares(lm: Layered, text: str) -> torch.Tensor:
    found = attribute_ids(lm, [lm.encode(text)], [[Target("difference", 5, 6)]], texts=[text]).table(0)
    return torch.tensor(found["difference"].to_numpy())


def pulled(lm: Layered, text: str) -> torch.Tensor:
    ids = lm.encode(text)
    found: dict[int, torch.Tensor] = {}
    cotangents = torch.ones(len(ids) - 1, 1, lm.d_model)
    gradient_of(lm, ids).text(ids).pull(cotangents, lambda layer, v: found.update({layer: v.clone()}))
    return torch.stack([found[layer] for layer in sorted(found)])


@pytest.mark.parametrize(("family", "train"), [("llama", False), ("gpt2", True), ("gemma3", False), ("falcon", True)])
def test_threads_that_read_one_model_at_once_read_what_each_reads_alone(family: str, train: bool) -> None:
    first, _ = wrapped(family)
    jobs = [(what, text) for what in (states, entropy, written, shares, pulled) for text in TEXTS]
    want = [what(first, text) for what, text in jobs]
    lms = wrapped(family, train=train)  # nothing has been measured of these
    got = together([partial(job[0], lms[i % 2], job[1]) for i, job in enumerate(jobs)], 2)
    for (what, text), alone, found in zip(jobs, want, got, strict=True):
        for one in found:
            assert one.shape == alone.shape, (what.__name__, text)
            torch.testing.assert_close(one, alone, rtol=1e-5, atol=1e-5, msg=f"{what.__name__} of {text!r}")
    modules = list(lms[0].model.modules())
    assert all(module.training == train for module in modules)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_passes_of_the_model_itself_in_another_thread_are_not_recorded() -> None:
    lm, _ = wrapped("llama")
    want = states(lm, TEXTS[0])
    other = torch.tensor([lm.encode(TEXTS[1])])

    def own() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = lm.model(input_ids=other).logits
        return found

    alone = own()
    reads, passes = together([lambda: states(lm, TEXTS[0]), own], 60)
    assert all(torch.equal(read, want) for read in reads)
    assert all(torch.equal(one, alone) for one in passes)

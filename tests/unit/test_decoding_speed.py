"""The speed of decoders in a run: what comes first does not pay for what a model does once, nor for the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from exitlens.data.records import Question
from exitlens.studies.answers.decoder_spec import DecoderSpec
from exitlens.studies.decoding import speed

QUESTIONS = [Question(id=str(i), question="Who?", best="A", correct=("A",), incorrect=("B",)) for i in range(20)]
COST = {"vanilla": 0.010, "sled": 0.030, "dola:high": 0.015}  # seconds a token
# They work on a stand-in for a model.
pytestmark = pytest.mark.wrong_types


class Machine:
    """Time passes only by what decoders do: 40 s at the very first call, 5 s a prompt's pass, some a token."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, 0

    def generate(self, _lm: Any, prompts: Sequence[str], *, decoder: str, max_new_tokens: int, **_: Any) -> list[Any]:
        self.now += 40.0 if self.calls == 0 else 0.0
        self.now += 5.0 + COST[decoder] * max_new_tokens * len(prompts)
        self.calls += 1
        return [SimpleNamespace(token_ids=[0] * max_new_tokens) for _ in prompts]


@pytest.mark.parametrize("order", [("vanilla", "sled", "dola:high"), ("sled", "dola:high", "vanilla")])
def test_speed_is_of_the_tokens_alone_whoever_comes_first(
    order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    monkeypatch.setattr(speed, "generate", machine.generate)
    specs = [DecoderSpec.parse(text) for text in order]
    found: Any = speed.writing_speed(None, specs, QUESTIONS, batch_size=8, clock=lambda: machine.now)  # type: ignore[arg-type]
    assert list(found) == list(order)
    for text in order:
        assert found[text] == pytest.approx(1.0 / COST[text])


def test_answers_that_end_at_once_have_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "generate", lambda _lm, prompts, **_: [SimpleNamespace(token_ids=[]) for _ in prompts])
    specs = [DecoderSpec.parse("vanilla")]
    assert speed.writing_speed(None, specs, QUESTIONS, batch_size=8) == {"vanilla": None}  # type: ignore[arg-type]

"""A checkpoint's own generation settings, on request: greedy answers are then those of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import exitlens
from exitlens.decoding import Generation, generate
from exitlens.decoding.stream_states import watch
from exitlens.decoding.token_rules import TokenRules
from exitlens.errors import InputError
from exitlens.exits.policies import parse_policy
from exitlens.exits.session import ExitPrefix
from exitlens.models import wrap
from exitlens.server import create_app
from exitlens.studies.answers.stage import ask
from exitlens.studies.config import RunConfig
from exitlens.studies.run import run

from .. import tiny
from ..commands import call

PROMPTS = [[5, 80, 33, 7], [9, 9, 61, 12, 9, 9], [100, 3]]


def _theirs(model: Any, prompt: list[int]) -> list[int]:
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
    return out[: out.index(0)] if 0 in out else out


def _first(model: Any) -> list[int]:
    return [_theirs(model, prompt)[0] for prompt in PROMPTS]


CASES = [
    "repetition_penalty",
    "no_repeat_ngram_size",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "all",
]


@pytest.mark.parametrize("kind", CASES)
def test_answers_with_the_models_own_settings_are_those_of_transformers(kind: str) -> None:
    model = tiny.model("llama")
    plain = [_theirs(model, prompt) for prompt in PROMPTS]
    first = _first(model)
    settings: dict[str, Any] = {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "suppress_tokens": first[:2],
        "begin_suppress_tokens": first,
        "bad_words_ids": [[first[0]], [plain[1][0], plain[1][1]]],
    }
    for name, value in settings.items():
        if kind in (name, "all"):
            setattr(model.generation_config, name, value)
    lm = wrap(model, tiny.tokenizer())
    want = [_theirs(model, prompt) for prompt in PROMPTS]
    assert want != plain  # the setting does something here
    got = exitlens.generate(lm, PROMPTS, max_new_tokens=12, generation_config="model")  # type: ignore[arg-type]
    assert [list(g.token_ids) for g in got] == want
    without = exitlens.generate(lm, PROMPTS, max_new_tokens=12)  # type: ignore[arg-type]
    assert [list(g.token_ids) for g in without] == plain


def test_ends_are_put_off() -> None:
    rules = TokenRules(least=3, ends=(0, 4))
    assert rules.forbidden([1], [2, 2]) == {0, 4}
    assert rules.forbidden([1], [2, 2, 2]) == set()


def test_what_cannot_be_applied_is_refused() -> None:
    model = tiny.model("llama")
    lm = wrap(model, tiny.tokenizer())
    with pytest.raises(InputError, match="unknown generation settings 'mine'"):
        exitlens.generate(lm, PROMPTS, generation_config="mine")  # type: ignore[arg-type]
    model.generation_config.sequence_bias = {(3,): -1.0}
    with pytest.raises(InputError, match="sequence_bias cannot be applied"):
        exitlens.generate(lm, PROMPTS, generation_config="model")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CASES)
def test_watched_exiting_and_served_answers_obey_them_too(kind: str) -> None:
    model = tiny.model("llama")
    first = _first(model)
    settings: dict[str, Any] = {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "suppress_tokens": first[:2],
        "begin_suppress_tokens": first,
        "bad_words_ids": [[token] for token in first],
    }
    for name, value in settings.items():
        if kind in (name, "all"):
            setattr(model.generation_config, name, value)
    lm = wrap(model, tiny.tokenizer(), name="tiny")
    want = [_theirs(model, prompt) for prompt in PROMPTS]
    watched = [list(watch(lm, prompt, [1], max_new_tokens=12, generation_config="model"))[-1] for prompt in PROMPTS]
    assert [list(g.token_ids) for g in watched if isinstance(g, Generation)] == want
    exits = generate(lm, PROMPTS, max_new_tokens=12, generation_config="model", open_with=lambda ids: ExitPrefix(
        lm, ids, parse_policy("probability:1.0@1,2"), steps=12))  # fmt: skip
    assert [list(g.token_ids) for g in exits] == want
    with TestClient(create_app(lm, generation_config="model")) as client:
        for prompt, ids in zip(PROMPTS, want, strict=True):
            body = {"model": "tiny", "prompt": prompt, "max_tokens": 12, "temperature": 0}
            said = client.post("/v1/completions", json=body, headers={"Host": "127.0.0.1"}).json()
            plain = generate(lm, [prompt], max_new_tokens=12, generation_config="model")[0]
            assert said["choices"][0]["text"] == plain.text
            assert said["usage"]["completion_tokens"] == len(ids)


def test_a_run_applies_them_and_its_manifest_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.model("llama", spread=0.15)
    model.config.max_position_embeddings = 4096
    model.generation_config.repetition_penalty = 1.4
    model.generation_config.no_repeat_ngram_size = 3
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "q.csv").write_text(
        "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
        "A,Misc,What is true?,A statement,A statement,None,x\nA,Misc,How many whiskers?,None,None,Four,x\n"
    )
    made = {}
    for name, more in {"plain": {}, "own": {"generation_config": "model"}}.items():
        config = RunConfig(
            model=str(tmp_path / "model"), data=(str(tmp_path / "q.csv"),), only=("decoding",), decoders=("vanilla",),
            judges=("margin:rouge",), bertscore_model=None, max_new_tokens=24, out=str(tmp_path / name), figures=False,
            dtype="float32",
            **more,
        )  # fmt: skip
        made[name] = run(config)
    settings = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3}
    assert made["plain"].manifest["generation_settings"] == {"applied": {}, "not_applied": settings}
    assert made["own"].manifest["generation_settings"] == {"applied": settings, "not_applied": {}}
    lm = wrap(model, tiny.tokenizer())
    for name, option in (("plain", None), ("own", "model")):
        prompts = [record.prompt for record in ask(list(exitlens.read_data(tmp_path / "q.csv")))]
        want = generate(lm, prompts, max_new_tokens=24, stop=["\nQ:"], generation_config=option)
        assert list(made[name].tables["answers"]["answer"]) == [g.text.strip() for g in want]
        penalty = 1.4 if option else 1.0
        assert set(made[name].tables["decoding"]["repetition_penalty"]) == {penalty}
    assert not made["plain"].tables["answers"]["answer"].equals(made["own"].tables["answers"]["answer"])


@pytest.mark.wrong_types
def test_where_they_cannot_be_applied_it_is_said_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("generate", "hello", "--model", "/nowhere", "--generation-config", "model", "--speculate", "exit=1")
    code, _, error = call(capsys, *asked)
    assert code == 2
    assert "--generation-config" in error
    out = str(tmp_path / "run")
    code, _, error = call(capsys, "run", "--model", "/nowhere", "--generation-config", "model", "--out", out)
    assert code == 2
    assert "the exits study" in error
    assert "--only" in error

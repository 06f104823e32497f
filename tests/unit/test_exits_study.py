"""The exit study on a tiny model: tables that agree with decoding, kinds, calibration, and a report that shows them."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import tiny

from exitlens.data.records import Question
from exitlens.errors import InputError, LayerError
from exitlens.exits.policies import ExitPolicy
from exitlens.exits.replay_policies import Cost, Signals, block_widths, caught_up, oracle_at
from exitlens.exits.session import ExitPrefix, Tally
from exitlens.models import wrap
from exitlens.runs.engine import LocalEngine
from exitlens.studies.answers.decoder_spec import DecoderSpec
from exitlens.studies.context import answer_all
from exitlens.studies.exits.calibration import calibration_table
from exitlens.studies.exits.stage import AnswerRecord, ExitStage, signals_from
from exitlens.studies.exits.study import ExitResult, exits_study

QUESTIONS = [
    Question(id=f"q{i}", question=text, best="yes", correct=("yes",), incorrect=("no",))
    for i, text in enumerate(["What is true?", "Is 2 + 2 = 4?", "How many?", "What is the capital of France?"])
]


@lru_cache
def model() -> Any:
    built = tiny.model("llama", spread=0.15)
    built.config.max_position_embeddings = 4096
    built.generation_config.eos_token_id = []
    return wrap(built, tiny.tokenizer())


@lru_cache
def study() -> ExitResult:
    return exits_study(model(), QUESTIONS, max_new_tokens=8, batch_size=2)


def test_every_policy_is_there_with_intervals_and_the_oracle_bounds_them() -> None:
    exits = study().exits
    assert {"probability", "margin", "entropy", "patience", "cosine", "fixed", "never", "oracle"} == set(
        exits["policy"]
    )
    never = exits[exits["policy"] == "never"].iloc[0]
    assert (never["agreement"], never["flops_saved"], never["predicted_time"]) == (1.0, 0.0, pytest.approx(1.0))
    assert (exits["agreement_low"] <= exits["agreement"]).all()
    assert (exits["agreement"] <= exits["agreement_high"]).all()
    oracle = exits[(exits["policy"] == "oracle") & (exits["threshold"] == 1.0)].iloc[0]
    assert oracle["agreement"] == 1.0
    perfect = exits[(exits["agreement"] == 1.0) & (exits["policy"] != "oracle")]
    assert (perfect["layers_saved"] <= oracle["layers_saved"] + 1e-12).all()
    assert (exits["flops_saved"] <= exits["flops_saved_propagate"] + 1e-12).all()


def test_shares_by_layer_add_up_and_kinds_cover_all_tokens() -> None:
    tables = study()
    for _, rows in tables.exits_layers.groupby(["policy", "threshold"]):
        assert rows["share"].sum() == pytest.approx(1.0)
    total = int(tables.exits["n"].iloc[0])
    for (_, _, kind), rows in tables.exits_kinds.groupby(["policy", "threshold", "kind"]):
        assert kind in ("position", "confidence")
        assert rows["n"].sum() == total


def test_too_few_answers_say_how_many_are_needed() -> None:
    table = study().exits_calibration
    assert table["outcome"].str.contains("calibration answers are needed").all()
    with pytest.raises(InputError, match=r"at least .* are needed"):
        exits_study(model(), QUESTIONS, max_new_tokens=4, deltas=(0.05,), strict=True)


def test_catching_up_is_what_decoding_really_runs() -> None:
    """Blocks counted while decoding equal blocks to the exits plus what the analysis says is caught up."""
    from exitlens.decoding import generate

    lm = model()
    tally = Tally()
    policy = ExitPolicy("margin", 0.004, (1, 2))
    prompts = ["Q: What is true? A:", "Paris and the cat"]
    answers = generate(
        lm, prompts, max_new_tokens=12, batch_size=1, trace=True,
        open_with=lambda ids: ExitPrefix(lm, ids, policy, tally=tally),
    )  # fmt: skip
    blocks = 0
    for answer in answers:
        exits = answer.steps["exit"][1:]
        steps = np.arange(1, len(exits) + 1)
        blocks += int(exits.sum() + caught_up(exits, np.zeros(len(steps)), steps).sum())
    assert tally.blocks == blocks
    assert len({int(e) for a in answers for e in a.steps["exit"][1:]}) > 1


def test_caught_up_by_hand() -> None:
    exits = np.array([1, 2, 4, 1, 3, 4])
    question = np.array([0, 0, 0, 1, 1, 0])
    step = np.array([1, 2, 3, 1, 2, 4])
    # q0: 1, then 2 takes one more of the first, then 4 takes 2 + 2, then nothing waits. q1: 3 takes 2 more.
    assert caught_up(exits, question, step).tolist() == [0, 1, 4, 0, 2, 0]
    # The third token of q0 runs two blocks alone and two with both before it.
    assert block_widths(exits, question, step)[2].tolist() == [0, 2, 0, 2, 0]


def test_a_table_of_signals_comes_back_in_any_batching() -> None:
    lm = model()
    said = tuple(lm.encode(" the answer is"))
    records = [AnswerRecord(str(i), p, said[i:]) for i, p in enumerate(["Q: a\nA:", "Q: b\nA:", "Paris? A:"])]
    stage = ExitStage((1, 2))
    together = stage.run(lm, records)["exit_signals"]
    alone = pd.concat([stage.run(lm, [r])["exit_signals"] for r in records], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone, rtol=1e-4, atol=1e-5)
    signals, sure, ids = signals_from(together, lm.n_layers)
    assert ids == ["0", "1", "2"]
    assert signals.top.shape == (3, signals.tokens)
    assert np.bincount(signals.question).tolist() == [len(r.token_ids) for r in records]
    assert ((sure > 0) & (sure <= 1)).all()


def test_signals_stand_on_the_tokens_that_were_written_not_on_their_text_read_again() -> None:
    """Letter by letter, as a model may write it; the tokenizer would make fewer tokens of the same text."""
    lm = model()
    letters = tuple(lm.encode(letter)[0] for letter in " statement")
    assert len(lm.encode(lm.decode(letters))) < len(letters)
    table = ExitStage((1, 2)).run(lm, [AnswerRecord("a", "Q: a\nA:", letters)])["exit_signals"]
    assert table["step"].nunique() == len(letters)
    ids = [*lm.encode("Q: a\nA:"), *letters]
    top = lm.logits(lm.forward(torch.tensor([ids]), layers=[3]).hidden[3][0], 3).argmax(-1)
    assert table[table["layer"] == 3]["top"].tolist() == top[-len(letters) :].tolist()
    written = study_answers()
    assert all(
        lm.decode(written.token_ids[row.question_id]).strip() == row.answer for row in written.answers.itertuples()
    )


def study_answers() -> Any:
    engine = LocalEngine(model(), None, None)
    return answer_all(engine, QUESTIONS, DecoderSpec.parse("vanilla"), max_new_tokens=8, batch_size=2)


def made_up(answers: int, tokens: int = 10) -> Signals:
    """Signals of a head that knows what it knows: right with the probability that it gives."""
    rng = np.random.default_rng(0)
    total = answers * tokens
    p = rng.beta(4, 1, size=(2, total))
    top = np.zeros((3, total), dtype=np.int64)
    top[:2] = rng.random((2, total)) >= p
    question = np.repeat(np.arange(answers), tokens)
    return Signals((1, 2), 3, top, {"probability": p}, question, np.tile(np.arange(1, tokens + 1), answers))


def test_calibrated_thresholds_hold_on_the_other_half() -> None:
    table = calibration_table(made_up(600), Cost(1.0, 0.1), deltas=(0.05, 0.2)).set_index("delta")
    assert (table["outcome"] == "threshold").all()
    assert (table["test_risk"] <= table.index.to_numpy() + 0.01).all()
    assert table.loc[0.2, "threshold"] < table.loc[0.05, "threshold"]
    assert table.loc[0.2, "layers_saved"] > table.loc[0.05, "layers_saved"] > 0


def test_the_best_of_several_kinds_is_tested_at_a_level_of_its_own() -> None:
    signals = made_up(600)
    signals.values["margin"] = signals.values["probability"] * 0.9
    for control in ("ltt", "anytime"):
        table = calibration_table(signals, Cost(1.0, 0.1), deltas=(0.2,), control=control)  # type: ignore[arg-type]
        assert table["chosen_among"].tolist() == [1, 1, 2]
        assert table["level"].tolist() == [0.05, 0.05, 0.025]
        assert (table["outcome"] == "threshold").all()
        alone = table[table["policy"] == table["policy"].iloc[2]]
        assert alone["threshold"].iloc[0] <= alone["threshold"].iloc[1]  # a stricter test is never looser
        used = table["answers_used"]
        assert (used == 300).all() if control == "ltt" else ((used > 0) & (used <= 300)).all()
    few = calibration_table(made_up(120), Cost(1.0, 0.1), deltas=(0.05,), control="anytime")
    assert few["outcome"].tolist() == ["too few: 84 calibration answers are needed"]


def test_nothing_passes_where_no_head_is_right() -> None:
    signals = made_up(200)
    signals.top[:2] = 1
    signals.values["probability"][:] = 1.0
    table = calibration_table(signals, Cost(1.0, 0.1), deltas=(0.1,))
    assert table["outcome"].tolist() == ["nowhere: no threshold passed"]
    assert table["threshold"].isna().all()


def test_the_oracle_saves_more_where_less_agreement_is_asked() -> None:
    signals = made_up(100)
    saved = [oracle_at(signals, Cost(1.0, 0.1), level) for level in (1.0, 0.9, 0.5)]
    assert saved[0].flops_saved < saved[1].flops_saved <= saved[2].flops_saved
    assert [o.agrees.mean() >= level - 1e-9 for o, level in zip(saved, (1.0, 0.9, 0.5), strict=True)] == [True] * 3


def test_layers_that_cannot_be_left_at_are_refused() -> None:
    for layer in (0, 3):
        with pytest.raises(LayerError, match=f"exit layer {layer}"):
            exits_study(model(), QUESTIONS, layers=[layer], max_new_tokens=4)


def test_a_run_has_the_section_and_the_tables(tmp_path: Path) -> None:
    from exitlens.studies.config import RunConfig
    from exitlens.studies.run import run

    data = tmp_path / "q.jsonl"
    lines = [
        f'{{"question": "{q.question}", "best": "yes", "correct": ["yes"], "incorrect": ["no"]}}' for q in QUESTIONS
    ]
    data.write_text("\n".join(lines))
    out = str(tmp_path / "run")
    config = RunConfig(data=(str(data),), only=("exits",), out=out, max_new_tokens=6, bertscore_model=None,
                       judges=("margin:rouge",), figures=False)  # fmt: skip
    first = run(config, lm=model())
    assert {"exits", "exits_layers", "exits_kinds", "exits_calibration", "answers"} <= set(first.tables)
    page = first.report.read_text(encoding="utf-8")
    assert "Early exit" in page
    exits = first.tables["exits"]
    assert (exits["n"] >= 15).all()  # tokens, of four answers: on these the intervals rest
    assert (exits["n_answers"] == len(QUESTIONS)).all()
    assert first.tables["exits_kinds"]["n_answers"].between(1, len(QUESTIONS)).all()
    assert len(re.findall(r"\[[^\[\]<]*\]†", page)) >= exits["agreement_low"].notna().sum()
    before = {f.name: f.read_bytes() for f in (first.path / "tables").iterdir()}
    again = run(config, lm=model())
    assert {f.name: f.read_bytes() for f in (again.path / "tables").iterdir()} == before

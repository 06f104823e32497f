"""Answers and what is made of them: entropies by group, judges by name, paired differences between decoders."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import tiny

from exitlens.data.records import Question
from exitlens.decoding import generate, parse_decoder
from exitlens.errors import ConfigError, InputError
from exitlens.models import wrap
from exitlens.scoring import Bleu, ExactChoice, RougeL
from exitlens.studies.answers.decoder_spec import DecoderSpec
from exitlens.studies.answers.judging import Scorers, judge_answers
from exitlens.studies.answers.stage import GenerateStage, ask
from exitlens.studies.decoding.analysis import compare, score
from exitlens.studies.decoding.multiple_choice import mc_scores
from exitlens.studies.decoding.study import decoding_study
from exitlens.studies.entropy.analysis import answer_means, entropy_by_layer
from exitlens.studies.entropy.study import entropy_study


def question(name: str, text: str, best: str = "none", wrong: tuple[str, ...] = ("two", "four")) -> Question:
    return Question(name, text, best, (best,), wrong, (best, *wrong))


QUESTIONS = [
    question("a", "How many whiskers does a human have?"),
    question("b", "<script>alert('🦔')</script> \x00 שלום?"),
    question("c", "What is the capital of France?", "Paris", ("Rome", "Lima")),
]


@pytest.fixture(scope="module")
def lm() -> Any:
    model = tiny.model("llama", spread=0.15)
    model.config.max_position_embeddings = 4096
    return wrap(model, tiny.tokenizer())


def tokens(spec: dict[str, list[float]]) -> pd.DataFrame:
    """Entropy at one layer of each token of each answer."""
    rows = [
        {"question_id": q, "position": i, "token_id": 1, "token": "x", "layer": layer, "entropy": e + layer}
        for q, values in spec.items()
        for i, e in enumerate(values)
        for layer in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_group_means_weigh_tokens_and_divide_by_their_own_group() -> None:
    table = tokens({"r1": [1.0], "r2": [2.0, 4.0, 6.0], "w1": [8.0, 10.0], "none": [99.0]})
    right = {"r1": True, "r2": True, "w1": False}
    found = entropy_by_layer(table, "me", right, estimators=("per-group", "pooled-weights"))
    own = found[found["estimator"] == "per-group"].set_index("layer")
    assert own.loc[0, "correct"] == pytest.approx(13 / 4)
    assert own.loc[1, "correct"] == pytest.approx(13 / 4 + 1)
    assert own.loc[0, "incorrect"] == pytest.approx(9.0)
    assert own.loc[0, "difference"] == pytest.approx(9 - 13 / 4)
    assert (own.loc[0, "n_correct"], own.loc[0, "n_incorrect"]) == (2, 1)
    assert own.loc[0, "auroc"] == 1.0
    pooled = found[found["estimator"] == "pooled-weights"].set_index("layer")
    assert pooled.loc[0, "correct"] == pytest.approx(13 / 6)
    assert math.isnan(pooled.loc[0, "p"])


def test_answers_without_tokens_have_no_mean() -> None:
    ids, counts, layers, values = answer_means(tokens({"b": [1.0, 3.0], "a": [5.0]}))
    assert (ids, counts.tolist(), layers) == (["a", "b"], [1, 2], [0, 1])
    assert values.tolist() == [[5.0, 6.0], [2.0, 3.0]]


def test_the_entropies_are_those_of_the_distributions_that_chose_the_tokens(lm: Any) -> None:
    records = ask(QUESTIONS)
    tables = GenerateStage(DecoderSpec.parse("vanilla"), max_new_tokens=5, entropy=True).run(lm, records)
    answers, found = tables["answers"], tables["entropy_tokens"]
    assert answers["question"].tolist() == [q.question for q in QUESTIONS]
    for record, n in zip(records, answers["n_tokens"], strict=True):
        mine = found[found["question_id"] == record.id]
        assert len(mine) == n * (lm.n_layers + 1)
        ids = mine[mine["layer"] == 0].sort_values("position")["token_id"].tolist()
        prompt = lm.encode(record.prompt)
        hidden = lm.forward(torch.tensor([prompt + ids]), layers="all").hidden
        for layer in range(lm.n_layers + 1):
            at = hidden[layer][0, len(prompt) - 1 : len(prompt) - 1 + n]
            log_p = lm.logits(at, layer).double().log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            kept = mine[mine["layer"] == layer].sort_values("position")["entropy"].to_numpy()
            np.testing.assert_allclose(kept, entropy.numpy(), atol=1e-3)


def test_a_study_is_the_same_in_any_batches(lm: Any) -> None:
    judges = [ExactChoice()]
    one = entropy_study(lm, QUESTIONS, judges, max_new_tokens=4, batch_size=1)
    all_of = entropy_study(lm, QUESTIONS, judges, max_new_tokens=4, batch_size=8)
    assert one.answers["answer"].tolist() == all_of.answers["answer"].tolist()
    np.testing.assert_allclose(one.entropy_tokens["entropy"], all_of.entropy_tokens["entropy"], atol=1e-3)


def test_decoders_are_compared_with_the_first_by_question(lm: Any) -> None:
    study = decoding_study(
        lm, QUESTIONS, ["vanilla", "dola:high", "vanilla@1.5"], metrics=[Bleu(), RougeL()], max_new_tokens=4
    )
    assert study.decoding.groupby("decoder", sort=False)["repetition_penalty"].first().to_dict() == {
        "vanilla": 1.0,
        "dola:high": 1.0,
        "vanilla@1.5": 1.5,
    }
    first = study.decoding[study.decoding["decoder"] == "vanilla"]
    assert first["difference"].isna().all()
    assert set(study.answers["decoder"]) == {"vanilla", "dola:high", "vanilla@1.5"}
    assert study.decoding_layers.groupby("decoder")["count"].sum().to_dict() == {
        "dola:high": int(study.answers.groupby("decoder")["n_tokens"].sum()["dola:high"])
    }


def test_where_a_decoder_leaves_the_first_one_every_candidate_layer_has_its_divergence(lm: Any) -> None:
    decoders = ["vanilla", "dola:0/1/2", "vanilla@1.5"]
    study = decoding_study(lm, QUESTIONS, decoders, metrics=[RougeL()], max_new_tokens=6)
    found = study.decoding_partings
    texts = study.answers.pivot_table(index="question_id", columns="decoder", values="answer", aggfunc="first")
    differ = texts.index[texts["vanilla"] != texts["dola:0/1/2"]]
    assert len(differ)
    assert set(differ) <= set(found["question_id"])  # tokens may differ where stripped texts do not
    assert set(found["decoder"]) == {"dola:0/1/2"}  # a penalty chooses no layer
    candidates = parse_decoder("dola:0/1/2").layers(lm.n_layers, lm.tied)
    for _, rows in found.groupby("question_id"):
        assert tuple(rows["layer"]) == candidates
        # The layer contrasted with is the one furthest from the final layer.
        assert rows.loc[rows["chosen"], "layer"].tolist() == [rows.loc[rows["divergence"].idxmax(), "layer"]]
        assert rows["token"].nunique() == 1
        assert rows["token"].iloc[0] != rows["first_token"].iloc[0]
        question = next(q for q in QUESTIONS if q.id == rows["question_id"].iloc[0])
        prompt = ask([question])[0].prompt
        [one] = generate(lm, [prompt], decoder="dola:0/1/2", max_new_tokens=6, stop=("\nQ:",), trace=True)
        at = int(rows["position"].iloc[0])
        assert one.tokens[at] == rows["token"].iloc[0]
        np.testing.assert_allclose(rows["divergence"], one.steps["divergence"][at], atol=1e-5)


@pytest.mark.parametrize("mc", ["softmax", "scores"])
def test_multiple_choice_stands_beside_the_written_answers(lm: Any, mc: str) -> None:
    decoders = ["vanilla", "dola:0/2,top=0"]
    study = decoding_study(lm, QUESTIONS, decoders, metrics=[RougeL()], max_new_tokens=2, mc=mc)
    end = "" if mc == "softmax" else "_scores"
    both = [q for q in QUESTIONS if q.correct and q.incorrect]
    for decoder in decoders:
        want = mc_scores(lm, both, decoder, mc == "softmax")
        rows = study.decoding[study.decoding["decoder"] == decoder].set_index("metric")
        assert rows.loc[f"mc1{end}", "mean"] == pytest.approx(want.mc1.mean())
        assert rows.loc[f"mc2{end}", "mean"] == pytest.approx(want.mc2.mean(), abs=1e-4)
        assert rows.loc[f"mc3{end}", "n"] == len(both) > 0
        assert "rouge_max" in rows.index


def test_differences_are_paired_and_missing_values_leave_for_all() -> None:
    rows = [
        ("one", "a", 0.1), ("one", "b", 0.5), ("one", "c", 0.9),
        ("two", "a", 0.3), ("two", "b", 0.7), ("two", "c", float("nan")),
    ]  # fmt: skip
    scores = pd.DataFrame([{"decoder": d, "question_id": q, "metric": "m", "value": v} for d, q, v in rows])
    table = compare(scores, {}).set_index("decoder")
    assert table.loc["one", "mean"] == pytest.approx(0.3)
    assert table.loc["two", "difference"] == pytest.approx(0.2)
    assert (table["n"] == 2).all()
    assert pd.isna(table.loc["two", "difference_low"])  # of two questions nothing can be said


def test_the_best_answer_scores_full_marks() -> None:
    long = score("x", [q.best for q in QUESTIONS], QUESTIONS, [RougeL()])
    wide = long.pivot(index="question_id", columns="metric", values="value")
    assert wide["rouge_max"].tolist() == [1, 1, 1]
    assert wide["rouge_acc"].tolist() == [1, 1, 1]


def test_judges_by_name() -> None:
    scorers = Scorers(encoder=None)
    table = judge_answers(
        [scorers.judge("margin:rouge"), scorers.judge("choice")], "d", QUESTIONS, ["none", "", "Rome"]
    )
    margin, choice = (rows["correct"].tolist() for _, rows in table.groupby("judge", sort=False))
    assert margin == [True, False, False]
    assert choice[::2] == [True, False]
    assert pd.isna(choice[1])
    for name in ("nobody", "margin:me", "similarity", "similarity:high", "choice:x"):
        with pytest.raises(ConfigError):
            scorers.judge(name)


@pytest.mark.parametrize("text", ["vanilla@x", "vanilla@0", "vanilla@-1", "nothing", "dola:high,chioce=jsd"])
def test_decoders_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        DecoderSpec.parse(text)


def test_intervals_of_scores_end_at_their_bounds() -> None:
    """Eight questions, one of them low: the studentised interval alone reaches beyond 1."""
    value = [1.0, 1.0, 1.0, 1.0, 1.0, 0.98, 1.0, 0.3]
    rows = [
        {"decoder": decoder, "question_id": str(i), "metric": metric, "value": each if decoder == "a" else 1 - each}
        for metric in ("bleu_max", "rouge_diff", "own")
        for decoder in ("a", "b")
        for i, each in enumerate(value)
    ]
    table = compare(pd.DataFrame(rows), {}).set_index(["metric", "decoder"])
    assert table.loc[("own", "a"), "high"] > 1
    assert table.loc[("bleu_max", "a"), "high"] == 1
    assert table.loc[("bleu_max", "b"), "low"] == 0
    assert table.loc[("bleu_max", "b"), "difference_low"] == -1
    assert table.loc[("rouge_diff", "a"), "high"] == 1
    assert table.loc[("rouge_diff", "b"), "low"] == table.loc[("own", "b"), "low"]

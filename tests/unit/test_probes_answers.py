"""Probes on the model's own answers: which tokens are the answer, what the model tells of them, and the study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import tiny

from exitlens.errors import ConfigError, ExitlensError, ProbeError
from exitlens.models import wrap
from exitlens.probes import calibrated, load_probe, make_data, make_split
from exitlens.report.frames import Results
from exitlens.runs.engine import LocalEngine
from exitlens.studies.answers.judge_names import judge_legend, short_judges
from exitlens.studies.config import RunConfig
from exitlens.studies.probes.answer_scores import AnsweredQuestion, ScoreAnswersStage
from exitlens.studies.probes.answers import answer_probes
from exitlens.studies.probes.chapter import ProbesChapter
from exitlens.studies.probes.exact_answer import answer_span, exact_answer
from exitlens.studies.run import Finished, run


@pytest.fixture(scope="module")
def lm() -> Any:
    model = tiny.model("llama", spread=0.15)
    model.config.max_position_embeddings = 4096
    return wrap(model, tiny.tokenizer())


@pytest.mark.parametrize(
    ("question", "answer", "wanted", "found_by"),
    [
        ("What is the capital of Australia?", " The capital of Australia is Sydney.", "Sydney", "alignment"),
        (
            "Who wrote Hamlet?",
            "Hamlet was written by William Shakespeare.",
            "written by William Shakespeare",
            "alignment",
        ),
        ("Can people fly?", " No, people cannot fly.", "No", "verdict"),
        ("What part is spiciest?", "The spiciest part is the placenta. It is white inside.", "placenta", "alignment"),
        ("Where is the arch?", "The arch is in St. Louis.", "St. Louis", "alignment"),
        ("How much is it?", "It is 3.5 dollars", "3.5 dollars", "alignment"),
        ("Which falls faster, a hammer or a feather?", "A feather falls faster.", "A feather falls faster", "sentence"),
        ("Why?", "...", "...", "sentence"),
        ("Why?", "", "", "sentence"),
    ],
)
def test_the_exact_answer_is_what_the_question_does_not_say(
    question: str, answer: str, wanted: str, found_by: str
) -> None:
    start, end, how = exact_answer(question, answer)
    assert (answer[start:end], how) == (wanted, found_by)


def test_the_tokens_of_the_exact_answer_hold_it_and_little_more(lm: Any) -> None:
    text = " The capital of Österreich is Wien – Vienna."
    ids = lm.encode("Q: A:" + text)[len(lm.encode("Q: A:")) :]
    span = answer_span(lm, "What is the capital of Österreich?", ids)
    assert span.text == "Wien – Vienna"
    assert lm.decode(ids[span.first : span.end]).strip() == "Wien – Vienna"
    assert 0 < span.first < span.end < len(ids)  # the full stop stays outside
    alone = answer_span(lm, "Why?", lm.encode("."))
    assert (alone.first, alone.end, alone.found_by) == (0, 1, "sentence")


def record(lm: Any, number: int, answer: str = " It is two.", topic: str = "t") -> AnsweredQuestion:
    prompt = f"Q: What is {number} + 1?\nA:"
    whole, start = lm.encode(prompt + answer), lm.encode(prompt)
    return AnsweredQuestion(
        f"q{number}", f"What is {number} + 1?", prompt, tuple(whole[len(start) :]), answer.strip(), topic
    )


def test_scores_are_those_of_the_plain_pass(lm: Any) -> None:
    records = [record(lm, 1), record(lm, 22, " Who knows? Nobody.")]
    tables = ScoreAnswersStage().run(lm, records)
    for each in records:
        ids = [*lm.encode(each.prompt), *each.ids]
        hidden = lm.forward(torch.tensor([ids]), layers=(lm.n_layers,), positions="all").hidden[lm.n_layers]
        log_p = lm.logits(hidden, lm.n_layers)[0].double().log_softmax(-1)[-len(each.ids) - 1 : -1]
        mine = tables["tokens"][tables["tokens"]["question_id"] == each.id]
        wanted = log_p[torch.arange(len(each.ids)), torch.tensor(each.ids)]
        assert mine["log_probability"].to_numpy() == pytest.approx(wanted.numpy(), abs=1e-4)
        assert mine["entropy"].to_numpy() == pytest.approx(-(log_p.exp() * log_p).sum(-1).numpy(), abs=1e-4)
    assert tables["asked"]["p_true"].between(0, 1).all()


def judged(lm: Any, count: int = 60) -> tuple[list[AnsweredQuestion], dict[str, bool]]:
    """Answers of two words, one of them correct: the state at the answer says which."""
    words = [" It is red.", " It is blue."]
    records = [record(lm, i, words[i % 2], f"topic {i % 3}") for i in range(count)]
    return records, {each.id: i % 2 == 0 for i, each in enumerate(records)}


def test_what_the_state_at_the_answer_holds_is_found(lm: Any, tmp_path: Path) -> None:
    records, correct = judged(lm)
    alike = dict.fromkeys(correct, True)
    few = {name: i > 0 for i, name in enumerate(correct)}
    done = answer_probes(
        LocalEngine(lm), records, {"J": correct, "K": alike, "L": few}, tmp_path, kinds=("mass-mean",), resamples=100
    )
    best = done.tables["answer_probe_best"].set_index("kind")
    assert best.loc["mass-mean", "auroc"] > 0.95
    assert best.loc["mass-mean", "n_test"] == 60
    assert set(best[best["role"] == "lm"].index) == {
        "p(true)", "entropy, whole answer", "entropy, exact answer", "log-probability, whole answer",
        "log-probability, exact answer",
    }  # fmt: skip
    assert set(done.tables["answer_probe_spans"]["exact_answer"]) == {"red", "blue"}
    by_judge = done.tables["answer_probe_judges"].set_index("judge")
    assert by_judge["n_correct"].to_dict() == {"J": 30, "K": 60, "L": 59}
    assert by_judge.loc["J", "reason"] == ""
    assert by_judge.loc["K", "reason"] == "all 60 answers are judged alike"
    assert "leaves one class only" in by_judge.loc["L", "reason"]
    assert set(done.fitted) == {"J"}
    layers = done.tables["answer_probe_layers"]
    assert layers[layers["role"] == "probe"]["layer"].tolist() == [1, 2, 3]


def test_every_answer_token_is_a_row_and_a_question_stays_on_one_side(lm: Any, tmp_path: Path) -> None:
    records, correct = judged(lm, 20)
    done = answer_probes(
        LocalEngine(lm), records, {"J": correct}, tmp_path, kinds=("mass-mean",), layers=(2,), resamples=20,
        position="every-answer-token",
    )  # fmt: skip
    study = done.fitted["J"].study
    assert len(study.labels) == sum(len(each.ids) for each in records)
    assert study.n_groups == 20
    for fitted in study.runs:
        for fold in range(len(fitted.fold_names)):
            inside = study.groups[fitted.folds == fold]
            assert not set(inside) & set(study.groups[fitted.folds != fold])


def test_a_baseline_is_fitted_on_training_folds_alone() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    data = make_data(rng.normal(size=(1, 200, 2)).astype(np.float32), labels, groups=np.arange(200))
    split = make_split(data, "grouped-k-fold")
    telling = calibrated("low is true", -10.0 * labels + rng.normal(size=200), labels, split).probability
    assert ((telling > 0.5) == (labels == 1)).all()
    silent = calibrated("noise", rng.normal(size=200), labels, split).probability
    assert abs(silent - 0.5).max() < 0.25
    with pytest.raises(ProbeError, match="'gap' needs a finite number for each of 200 rows"):
        calibrated("gap", [float("nan")] * 200, labels, split)


def questions(folder: Path, count: int = 30) -> str:
    rows = [
        {"question": f"What is {i} + 1?", "best": "two", "correct": ["two"], "incorrect": ["no", f"n{i}"]}
        for i in range(count)
    ]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "q.jsonl")


def asked(lm: Any, folder: Path, **settings: Any) -> Finished:
    settings = {"judges": ("margin:rouge",), "position": "exact-answer", "kinds": ("mass-mean",), **settings}
    config = RunConfig(
        data=(questions(folder),), only=("probes",), out=str(folder / "run"), max_new_tokens=4, bertscore_model=None,
        figures=False, probe_seeds=1, **settings,
    )  # fmt: skip
    return run(config, lm=lm)


def test_a_run_reads_generated_answers_and_goes_on_where_it_stopped(lm: Any, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("question_id,label\n" + "\n".join(f"q{i:04d},{i % 2}" for i in range(1, 31)))
    done = asked(lm, tmp_path, judges=(f"labels:{labels}",))
    facts = done.tables["answer_probe_judges"]
    assert facts[["n_correct", "n_incorrect"]].to_numpy().tolist() == [[15, 15]]
    assert {"answers", "judgements", "answer_probe_spans", "answer_probe_gaps"} <= set(done.tables)
    saved = load_probe(done.path / "probe.safetensors")
    assert saved.position == "exact-answer"
    answer, *_ = done.findings()["probes"]
    assert "15 correct, 15 incorrect answers by labels from labels.csv" in answer
    again = asked(lm, tmp_path, judges=(f"labels:{labels}",))
    for name, frame in done.tables.items():
        pd.testing.assert_frame_equal(frame, again.tables[name])


def test_answers_that_are_judged_alike_are_told_and_nothing_is_fitted(lm: Any, tmp_path: Path) -> None:
    done = asked(lm, tmp_path)
    (fact,) = done.tables["answer_probe_judges"].to_dict("records")
    assert fact["reason"]
    assert "answer_probe_best" not in done.tables
    assert done.findings()["probes"][0].startswith("Nothing can be told by judge ROUGE-L")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judges": ()}, "needs a judge of the answers"),
        ({"kinds": ()}, "needs a kind of probe"),
        ({"kinds": ("ttpd",)}, "kind 'ttpd' is fitted on negated statements"),
        ({"protocol": "transfer"}, "protocol 'transfer' is for statements"),
        ({"setting": "zero-shot"}, "not statements in the setting 'zero-shot'"),
    ],
)
def test_settings_that_answers_cannot_have_are_refused(
    lm: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, ProbeError), match=message) as caught:
        asked(lm, tmp_path, **settings)
    assert isinstance(caught.value, ExitlensError)
    assert not (tmp_path / "run").exists()


def told(auroc: tuple[float, float | None, float | None], gap: tuple[float, float, float] | None = None) -> str:
    value, low, high = auroc
    kinds = [("logistic", "probe", "2,3", value, low, high), ("entropy, whole answer", "lm", "", 0.6, 0.5, 0.7)]
    best = pd.DataFrame(
        [
            {"judge": "J", "position": "exact-answer", "kind": kind, "role": role, "layers": layers, "auroc": a,
             "auroc_low": b, "auroc_high": c, "n_test": 40}
            for kind, role, layers, a, b, c in kinds
        ]
    )  # fmt: skip
    fact = {"judge": "J", "position": "exact-answer", "n_correct": 18, "n_incorrect": 22, "reason": ""}
    tables = {"answer_probe_judges": pd.DataFrame([fact]), "answer_probe_best": best}
    if gap is not None:
        names = {"judge": "J", "probe": "logistic", "rival": "entropy, whole answer"}
        tables["answer_probe_gaps"] = pd.DataFrame([{**names, "difference": gap[0], "low": gap[1], "high": gap[2]}])
    return ProbesChapter().answer(Results(tables))


def test_the_verdict_on_answers_is_true_of_its_numbers() -> None:
    yes = told((0.8, 0.7, 0.88), (0.2, 0.1, 0.3))
    assert yes.startswith(
        "Yes: the logistic probe at the exact answer, layers 2–3 ranks correct above incorrect answers with AUROC 0.80 "
        "[0.70, 0.88] (18 correct, 22 incorrect answers by J); the best of what costs less is entropy, whole answer"
    )
    assert yes.endswith("use the probe as a warning, on questions like these.")
    assert told((0.8, 0.7, 0.88), (0.2, -0.1, 0.3)).endswith(
        "not significantly less: use entropy, whole answer, it costs less."
    )
    assert told((0.8, 0.7, 0.88), (-0.2, -0.3, -0.1)).endswith("use entropy, whole answer instead, it is better.")
    assert "no more than chance (0.5): do not take" in told((0.55, 0.4, 0.7))
    assert "without an interval: do not take" in told((1.0, None, None))
    assert "compare it with the answer's own log-probability" in told((0.8, 0.7, 0.88))


def test_an_auroc_rests_on_the_smaller_class_and_an_accuracy_on_all_answers() -> None:
    row = {"judge": "J", "kind": "logistic", "n_test": 400, "accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8,
           "auroc": 0.7, "auroc_low": 0.6, "auroc_high": 0.8}  # fmt: skip
    fact = {"judge": "J", "n_correct": 4, "n_incorrect": 30}
    results = Results({"answer_probe_judges": pd.DataFrame([fact]), "answer_probe_best": pd.DataFrame([row])})
    sheet = next(sheet for sheet in ProbesChapter().tables(results) if sheet.source == "answer_probe_best")
    assert [sheet.rows[0][sheet.headers.index(name)] for name in ("AUROC", "accuracy")] == [
        "0.700 [0.600, 0.800]†", "0.700 [0.600, 0.800]"
    ]  # fmt: skip


def test_judges_have_short_names_that_differ_and_a_legend() -> None:
    rouge = "ROUGE-L (F-measure): nearest correct minus nearest incorrect answer > 0, TruthfulQA's published protocol"
    names = ["BERTScore F1 (mini) with the best answer ≥ 0.85", rouge, rouge + ", plain", "labels from x.csv"]
    assert list(short_judges(names).values()) == [
        "BERTScore F1 ≥ 0.85", "ROUGE-L margin", "ROUGE-L margin (2)", "labels from x.csv"
    ]  # fmt: skip
    assert judge_legend(names).startswith("BERTScore F1 ≥ 0.85: BERTScore F1 (mini) with")
    assert "labels" not in judge_legend(names)

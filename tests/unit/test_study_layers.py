"""The layer study: what stands for a choice, its probability at every layer, and which answers are interesting."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from tests import tiny

from exitlens.data.records import Question
from exitlens.errors import InputError, LayerError
from exitlens.models import wrap
from exitlens.studies.layers.choices import plan_choices, spellings
from exitlens.studies.layers.look import look
from exitlens.studies.layers.records import LookRecord, question_record
from exitlens.studies.layers.stage import LayersStage, accuracy_by_layer, pick_interesting
from exitlens.studies.layers.study import layers_study

PROMPT = "Q: How many whiskers does a human have?\nA:"


@pytest.fixture(scope="module")
def lm() -> Any:
    return wrap(tiny.model("llama-tied"), tiny.tokenizer())


def record(*choices: str, right: str = "", name: str = "q", prompt: str = PROMPT) -> LookRecord:
    return LookRecord(name, prompt, prompt, choices, tuple(c == right for c in choices))


def log_p(lm: Any, ids: tuple[int, ...], layer: int, lens: Any) -> torch.Tensor:
    """Log-probabilities [positions, vocab] the plain way: one text, no cache, no readout."""
    hidden = lm.forward(torch.tensor([ids]), layers=[layer]).hidden[layer][0]
    return lm.logits(hidden, layer, lens).double().log_softmax(-1)


def test_choices_that_begin_alike_are_told_apart_by_their_next_token(lm: Any) -> None:
    plan = plan_choices(lm, PROMPT, ["the capital", "the France"])
    assert plan.rule == "first-token"
    whole = [lm.encode(f"{PROMPT} the {word}") for word in ("capital", "France")]
    at = len(plan.context)
    assert all(tuple(ids[:at]) == plan.context for ids in whole)
    assert plan.targets == ((whole[0][at],), (whole[1][at],))


def test_choices_that_no_token_tells_apart_are_read_whole_or_refused(lm: Any) -> None:
    choices = ["true", "true and false", "none"]
    assert plan_choices(lm, PROMPT, choices).rule == "sequence"
    with pytest.raises(InputError, match=r"'true' and 'true and false' collide.*--rule sequence"):
        plan_choices(lm, PROMPT, choices, "first-token")


@pytest.mark.parametrize(
    ("choices", "expected"),
    [(["two", "two "], "'two' is given twice"), (["two"], "at least two"), (["two", " "], "choice number 2 is empty")],
)
def test_choices_that_collide_are_one_line(lm: Any, choices: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        plan_choices(lm, PROMPT, choices)


@pytest.mark.parametrize("lens", ["logit", "raw"])
def test_first_token_probabilities_are_those_of_the_plain_pass(lm: Any, lens: str) -> None:
    found = LayersStage((lens,)).run(lm, [record("none", "is", "4", right="none")])["layers"]
    plan = plan_choices(lm, PROMPT, ["none", "is", "4"])
    assert set(found["rule"]) == {"first-token"}
    for layer, rows in found.groupby("layer"):
        p = log_p(lm, plan.context, int(str(layer)), lens)[-1].exp()
        tokens = spellings(lm, PROMPT, ["none", "is", "4"], plan)
        assert [len(ids) for ids in tokens] == [1, 2, 2]
        expected = torch.tensor([float(p[list(ids)].sum()) for ids in tokens], dtype=torch.float64)
        assert rows["probability"].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        assert rows["share"].tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-4)
        assert rows["mass"].tolist() == pytest.approx([float(expected.sum())] * 3, rel=1e-4)


def texts(lm: Any, choices: list[str], prompt: str = PROMPT) -> list[list[str]]:
    found = spellings(lm, prompt, choices, plan_choices(lm, prompt, choices))
    assert len({token for tokens in found for token in tokens}) == sum(map(len, found)), "a token is counted once"
    return [[lm.decode([token]) for token in tokens] for tokens in found]


def test_spellings_of_a_choice_differ_in_case_and_leading_space_alone(lm: Any) -> None:
    assert texts(lm, ["a", "is"]) == [[" a", "A", "a", " A"], [" is", "is"]]
    assert texts(lm, ["a true story", "4"]) == [[" a", "A", "a", " A"], [" 4", "4"]]


def test_a_part_of_a_word_is_no_spelling_of_it(lm: Any) -> None:
    # " no" stands for "none" and " Pa" for "Paris"; "No" or "PA" would be other words.
    assert texts(lm, ["none", "Paris"]) == [[" no"], [" Pa"]]


def test_a_spelling_that_two_choices_could_claim_counts_for_neither(lm: Any) -> None:
    assert texts(lm, ["a", "A"]) == [[" a"], [" A"]]
    assert texts(lm, ["a", "A and", "4"]) == [[" a"], [" A"], [" 4", "4"]]
    assert texts(lm, ["No", "4"]) == [[" No", "No", "no", " no"], [" 4", "4"]]
    # Every spelling of "none" begins with a token that is a spelling of "No".
    assert texts(lm, ["No", "none"]) == [[" No"], [" no"]]


def test_after_a_shared_beginning_and_for_sequences_no_spelling_is_guessed(lm: Any) -> None:
    assert [len(tokens) for tokens in texts(lm, ["the a", "the 4"])] == [1, 1]
    assert texts(lm, ["true", "true and false", "none"]) == []


def test_look_names_the_spellings_and_mass_counts_a_choice_within_a_choice_once(lm: Any) -> None:
    assert look(lm, record("is", "4")).spellings == {"is": [" is", "is"], "4": [" 4", "4"]}
    nested = look(lm, record("true", "true and false", "4"))
    assert nested.spellings == {}
    last = nested.layers[nested.layers["layer"] == lm.n_layers].set_index("choice")
    assert last["mass"].tolist() == pytest.approx([last.loc[["true", "4"], "probability"].sum()] * 3)


def test_sequence_probabilities_are_products_over_the_tokens(lm: Any) -> None:
    choices = ("A true statement.", "A false statement", "Paris 🦔")
    found = LayersStage(("logit",), rule="sequence").run(lm, [record(*choices)])["layers"]
    plan = plan_choices(lm, PROMPT, choices, "sequence")
    for (layer, choice), rows in found.groupby(["layer", "choice"]):
        target = plan.targets[choices.index(str(choice))]
        table = log_p(lm, (*plan.context, *target[:-1]), int(str(layer)), "logit")
        at = len(plan.context) - 1
        total = sum(float(table[at + i, token]) for i, token in enumerate(target))
        assert float(torch.tensor(rows["probability"].iloc[0]).log()) == pytest.approx(total, abs=2e-3)


def test_neighbours_in_a_batch_change_nothing(lm: Any) -> None:
    records = [
        record("none", "two", name="a"),
        record("true", "true and false", "none", name="b"),
        record("Paris", "Rome", name="c", prompt="Q: What is the capital of France?\nA:"),
    ]
    stage = LayersStage(("logit", "raw"))
    together = stage.run(lm, records)
    for name in ("layers", "layers_top"):
        alone = pd.concat([stage.run(lm, [r])[name] for r in records], ignore_index=True)
        pd.testing.assert_frame_equal(together[name], alone, rtol=1e-4, atol=1e-6)


def test_every_lens_is_the_model_itself_at_the_last_layer(lm: Any) -> None:
    found = LayersStage(("logit", "raw")).run(lm, [record("none", "two")])["layers"]
    last = found[found["layer"] == lm.n_layers]
    by_lens = [rows["probability"].tolist() for _, rows in last.groupby("lens")]
    assert by_lens[0] == by_lens[1]
    early = found[found["layer"] == 0]
    by_lens = [rows["probability"].tolist() for _, rows in early.groupby("lens")]
    assert by_lens[0] != by_lens[1]


def layers_table(question: str, shares: list[float], right: bool = True) -> pd.DataFrame:
    """Two choices; ``shares`` of the right one by layer."""
    rows = []
    for layer, share in enumerate(shares):
        for choice, value, correct in (("good", share, right), ("bad", 1 - share, False)):
            rows.append(
                {"question_id": question, "question": question, "lens": "logit", "layer": layer, "choice": choice,
                 "correct": correct, "rule": "first-token", "spellings": "[]", "probability": value / 2, "share": value,
                 "mass": 0.5}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_interest_is_how_far_the_right_share_moves() -> None:
    table = pd.concat(
        [
            layers_table("steady", [0.9, 0.9, 0.9]),
            layers_table("learned", [0.1, 0.2, 0.8]),
            layers_table("lost", [0.1, 0.9, 0.2]),
            layers_table("never", [0.1, 0.1, 0.1]),
            layers_table("unknown", [0.1, 0.9, 0.1], right=False),
        ]
    )
    picks = pick_interesting(table, most=1).set_index("question_id")
    assert picks["verdict"].to_dict() == {"learned": "correct", "lost": "incorrect"}
    assert picks.loc["learned", "interest"] == pytest.approx(0.7)
    assert picks.loc["lost", "interest"] == pytest.approx(0.7)
    assert picks.loc["lost", "answer"] == "bad"
    assert len(pick_interesting(table, most=9)) == 4


def test_accuracy_counts_questions_whose_best_choice_is_right() -> None:
    table = pd.concat([layers_table("a", [0.1, 0.9]), layers_table("b", [0.2, 0.3]), layers_table("c", [0.6, 0.7])])
    found = accuracy_by_layer(table).set_index("layer")
    assert found["accuracy"].to_dict() == {0: pytest.approx(1 / 3), 1: pytest.approx(2 / 3)}
    assert found.loc[0, "correct_share"] == pytest.approx(0.3)
    assert found["mass"].tolist() == [0.5, 0.5]
    assert (found["low"] <= found["accuracy"]).all()


def test_look_marks_the_right_choice_and_refuses_what_is_none(lm: Any) -> None:
    found = look(lm, question_record("How many?", ["two", "none"], "none", plain=True), layers=[0, 3], top_k=2)
    assert found.layers.groupby("choice")["correct"].first().to_dict() == {"none": True, "two": False}
    assert len(found.top) == 2 * 2
    with pytest.raises(InputError, match="'five' is not among the choices"):
        question_record("How many?", ["two"], "five")
    with pytest.raises(LayerError, match="layer 9 is out of range"):
        look(lm, question_record("How many?", ["two", "none"], plain=True), layers=[9])


def test_the_study_as_a_function_gives_what_look_gives_and_counts_it() -> None:
    lm = wrap(tiny.model("llama"), tiny.tokenizer())
    lm.context = 1024  # its rotary positions have no end, and the few-shot prompt is long in its tokens
    questions = [Question(str(i), f"Which {i}?", "red", ("red",), ("blue",), ("red", "blue")) for i in range(3)]
    found = layers_study(lm, questions, layers=[0, 2])
    one = look(lm, "Which 1?", ("red", "blue"), layers=[0, 2]).layers
    mine = found.layers[found.layers["question_id"] == "1"].sort_values(["layer", "choice"])
    assert mine["probability"].to_numpy() == pytest.approx(
        one.sort_values(["layer", "choice"])["probability"].to_numpy()
    )
    assert found.accuracy[["layer", "n"]].to_numpy().tolist() == [[0, 3], [2, 3]]
    with pytest.raises(InputError, match="none of 1 question has choices"):
        layers_study(lm, [Question("0", "Why?", "red", ("red",), ())])

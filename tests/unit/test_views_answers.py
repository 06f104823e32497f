"""Each chapter's answer: true in null cases, of one question and of one layer; nouns agree with their numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from tests.unit.test_views_figures import decoding, entropy, probes

from exitlens.report.frames import Results
from exitlens.report.page import render
from exitlens.report.words import share_text
from exitlens.studies.decoding.chapter import DecodingChapter
from exitlens.studies.entropy.chapter import EntropyChapter
from exitlens.studies.exits.chapter import ExitsChapter
from exitlens.studies.layers.chapter import LayersChapter
from exitlens.studies.probes.chapter import ProbesChapter
from exitlens.studies.registry import chapters


def accuracy(values: dict[int, tuple[float, float | None, float | None]], n: int = 40) -> Results:
    rows = [
        {"lens": "logit", "layer": layer, "n": n, "accuracy": value, "low": low, "high": high, "chance": 0.25,
         "correct_share": value, "mass": 0.5}
        for layer, (value, low, high) in values.items()
    ]  # fmt: skip
    return Results({"layers_accuracy": pd.DataFrame(rows)}, {"model": {"name": "m"}})


UP, FLAT = (0.55, 0.4, 0.7), (0.3, 0.2, 0.4)


@pytest.mark.parametrize(
    ("values", "n", "told"),
    [
        (
            {0: FLAT, 1: FLAT, 2: UP, 3: FLAT, 4: UP, 5: UP},
            40,
            (
                "Layers 0–1, 3 rank the correct choice first no more often than chance (25%); layer 5 ranks it first "
                "in 55% [40, 70] of 40 questions (logit lens): read answers from layer 4 on."
            ),
        ),
        (
            {0: FLAT, 1: UP},
            40,
            (
                "Layer 0 ranks the correct choice first no more often than chance (25%); layer 1 ranks it first in 55% "
                "[40, 70] of 40 questions (logit lens): read answers from layer 1 only."
            ),
        ),
        (
            {0: UP, 1: UP},
            8,
            (
                "Every layer read ranks the correct choice first more often than chance (25%); layer 1 in "
                "55% [40, 70] of 8 questions (interval too narrow: n = 8) (logit lens): read answers from "
                "any layer read."
            ),
        ),
        (
            {3: FLAT},
            40,
            "Read with the logit lens, the one layer read does not rank the correct choice first more often than",
        ),
        (
            {0: FLAT, 1: FLAT},
            40,
            (
                "Read with the logit lens, none of 2 layers ranks the correct choice first more often than "
                "chance (25%): "
                "layer 1 ranks it first in 30% [20, 40] of 40 questions: do not read answers off the layers"
            ),
        ),
        (
            {0: UP, 1: FLAT},
            40,
            (
                "Only layer 0 ranks the correct choice first more often than chance (25%), layer 0 in 55% "
                "[40, 70]; the "
                "last layer ranks it first in 30% [20, 40] of 40 questions, no more than chance"
            ),
        ),
        (
            {0: (1.0, None, None)},
            1,
            (
                "Too few questions to tell any layer from chance: at layer 0 the correct choice ranks first in 100% of "
                "1 question (no interval: n = 1) (logit lens): ask more questions."
            ),
        ),
    ],
)
def test_layers_are_told_apart_from_chance(values: dict[int, Any], n: int, told: str) -> None:
    said = LayersChapter().answer(accuracy(values, n))
    assert said.startswith(told)
    assert said.endswith(".")


def test_the_layers_chapter_has_accuracy_as_a_table_and_a_figure() -> None:
    results = accuracy({0: FLAT, 1: UP})
    (sheet,) = LayersChapter().tables(results)
    assert [row[:4] for row in sheet.rows] == [
        [0, "logit", "30% [20, 40]", "25%"], [1, "logit", "55% [40, 70]", "25%"]
    ]  # fmt: skip
    (plate,) = LayersChapter().figures(results)
    assert plate.name == "layers-accuracy"
    assert plate.caption.endswith("Model m, logit lens, n = 40 questions.")


def exits(*rows: tuple[str, float, float, float]) -> Results:
    names = ["policy", "threshold", "agreement", "flops_saved"]
    frame = pd.DataFrame(rows, columns=names)
    frame = frame.assign(agreement_low=frame["agreement"] - 0.01, agreement_high=frame["agreement"] + 0.005, n=900)
    return Results({"exits": frame})


def test_an_early_exit_that_saves_little_or_nothing_does_not_pay() -> None:
    never = ("never", float("nan"), 1.0, 0.0)
    bound = ("oracle", 1.0, 1.0, 0.4)
    little = ExitsChapter().answer(exits(never, bound, ("margin", 0.9, 0.984, 0.008)))
    assert little == (
        "Early exit does not pay on this model: at 98% agreement with the full model or more, the best policy saves no "
        "more than 0.8% of the FLOPs (margin at 0.9; agreement 98.4% [97.4, 98.9], 900 tokens): run every layer."
    )
    nothing = ExitsChapter().answer(exits(never, bound, ("margin", 0.9, 0.99, -0.2)))
    assert "no policy saves FLOPs at 98% agreement with the full model or more" in nothing
    assert "20.0% more FLOPs" in nothing
    far = ExitsChapter().answer(exits(never, bound, ("fixed", 3.0, 0.5, 0.3)))
    assert "no policy saves FLOPs" in far
    assert "fixed at 3: 50.0% [49.0, 50.5] agreement, 30.0% fewer FLOPs" in far
    pays = ExitsChapter().answer(exits(never, bound, ("margin", 0.9, 0.984, 0.2)))
    assert pays.startswith("Early exit pays on this model: at 98% agreement with the full model or more, the best")
    assert "saves 20.0% of the FLOPs (margin at 0.9; agreement" in pays
    assert ExitsChapter().answer(exits(never, bound)) == ""


def test_entropy_that_differs_nowhere_is_not_recommended() -> None:
    flat = entropy(("J",)).assign(p_holm=0.6, difference_low=-0.2)
    said = EntropyChapter().answer(Results({"entropy_layers": flat}))
    assert said.startswith("No: no layer's entropy differs significantly between incorrect and correct answers; the")
    assert "judge J; 4 correct, 6 incorrect answers; interval too narrow: n = 4)" in said
    assert said.endswith("do not use entropy to find incorrect answers.")
    two = entropy(("J", "K")).assign(p_holm=0.6)
    assert "correct answers by either judge; the" in EntropyChapter().answer(Results({"entropy_layers": two}))


def test_entropy_is_told_by_the_judges_that_show_it() -> None:
    frame = entropy(("J", "K"))
    frame.loc[(frame["judge"] == "J") | (frame["layer"] == 1), "p_holm"] = 0.7
    said = EntropyChapter().answer(Results({"entropy_layers": frame}))
    assert said.startswith("Yes by 1 of 2 judges: the entropy of incorrect answers is higher at layers 0, 2–3, most by")
    lower = frame.assign(difference=-1.0, difference_low=-1.5, difference_high=-0.5)
    assert EntropyChapter().answer(Results({"entropy_layers": lower})).startswith("No, the reverse by 1 of 2 judges")
    frame.loc[frame["layer"] == 2, "difference"] = -1.0
    assert (
        EntropyChapter().answer(Results({"entropy_layers": frame})).startswith("Mixed by 1 of 2 judges: the entropy of")
    )


def test_an_empty_group_is_named_and_no_judge_says_nothing() -> None:
    empty = entropy(("J",)).assign(difference=None, difference_low=None, n_correct=0, n_incorrect=40)
    said = EntropyChapter().answer(Results({"entropy_layers": empty}))
    assert said.startswith("Nothing can be compared (0 correct, 40 incorrect by J)")
    assert EntropyChapter().answer(Results({})) == ""


def test_decoders_without_a_significant_difference_leave_the_baseline() -> None:
    covering = decoding().assign(difference_low=-0.1)
    said = DecodingChapter().answer(Results({"decoding": covering}))
    assert said == (
        "No: dola:low is not significantly better than vanilla on any of 2 metrics; the largest difference is BLEU max "
        "+0.050 [−0.100, 0.090] of dola:low relative to vanilla, 10 questions (interval too narrow: n = 10): keep "
        "vanilla."
    )
    both = pd.concat([covering, covering.iloc[2:].assign(decoder="sled")], ignore_index=True)
    assert "none of 2 contrasting decoders is" in DecodingChapter().answer(Results({"decoding": both}))
    one = covering.assign(n=1, difference_low=None, difference_high=None)
    said = DecodingChapter().answer(Results({"decoding": one}))
    assert said.startswith("Too few questions to compare the decoders")
    assert "1 question (no interval: n = 1)" in said
    assert DecodingChapter().answer(Results({"decoding": covering.iloc[:2]})) == ""


def test_decoders_that_are_better_or_worse_are_named() -> None:
    better = decoding()
    said = DecodingChapter().answer(Results({"decoding": better}))
    assert said.startswith("Perhaps: dola:low is significantly better than vanilla on 2 of 2 metrics; its largest gain")
    assert "not corrected for the 2 comparisons" in said
    mixed = better.assign(difference_low=[None, None, 0.01, -0.09], difference_high=[None, None, 0.09, -0.01])
    said = DecodingChapter().answer(Results({"decoding": mixed}))
    assert "better than vanilla on 1 of 2 metrics and worse on 1; its largest gain is" in said
    worse = better.assign(difference=-0.05, difference_low=-0.09, difference_high=-0.01)
    said = DecodingChapter().answer(Results({"decoding": worse.where(better["difference"].notna(), better)}))
    assert said.startswith("No: dola:low is significantly worse than vanilla")
    assert said.endswith("none is better: keep vanilla.")


def probed(low: float, gaps: dict[str, tuple[float, float]], value: float = 0.8) -> Results:
    """A logistic probe beside rivals; ``gaps``: difference and Holm's p to each."""
    rows: list[dict[str, Any]] = [
        {"kind": "logistic", "role": "probe", "protocol": "leave-one-topic-out", "layers": "12,14,12", "n_test": 300,
         "accuracy": value, "accuracy_low": low, "accuracy_high": value + 0.03}
    ]  # fmt: skip
    roles = {"text only (TF-IDF)": "floor", "LM next token": "lm"}
    rows += [
        {**rows[0], "kind": name, "role": roles[name], "layers": "", "accuracy": value - gap, "accuracy_low": 0.5}
        for name, (gap, _) in gaps.items()
    ]
    pairs = [
        {"a": "logistic", "b": name, "difference": gap, "low": gap - 0.05, "high": gap + 0.05, "p_holm": p}
        for name, (gap, p) in gaps.items()
    ]
    return Results({"probe_best": pd.DataFrame(rows), "probe_comparisons": pd.DataFrame(pairs)})


@pytest.mark.parametrize(
    ("low", "gaps", "begin", "end"),
    [
        (0.77, {"text only (TF-IDF)": (0.2, 0.001), "LM next token": (0.1, 0.01)}, ("Yes: the logistic probe at layers "
         "12, 14 is correct on 80% [77, 83] of 300 statements on unseen topics"), ("use the probe, on statements like "
         "these.")),
        (0.48, {"text only (TF-IDF)": (0.2, 0.001)}, "Not shown: the logistic probe at layers 12, 14",
         "no more than chance (50%): do not use it."),
        (0.77, {"text only (TF-IDF)": (0.01, 0.6), "LM next token": (0.1, 0.01)}, "Not shown", ("for knowledge of "
         "truth.")),
        (0.77, {"text only (TF-IDF)": (0.2, 0.001), "LM next token": (0.01, 0.7)}, "Yes, but", ("asking the model is "
         "as good.")),
        (0.77, {"text only (TF-IDF)": (0.2, 0.001), "LM next token": (-0.1, 0.01)}, "Yes, but", ("ask the model "
         "instead of probing it.")),
        (0.77, {}, "Yes: ", "compare it with the words alone and with the model's own answer before using it."),
    ],
)  # fmt: skip
def test_a_probe_is_recommended_only_where_it_beats_its_rivals(
    low: float, gaps: dict[str, tuple[float, float]], begin: str, end: str
) -> None:
    said = ProbesChapter().answer(probed(low, gaps))
    assert said.startswith(begin)
    assert said.endswith(end)


def test_without_such_a_probe_the_original_s_table_answers_and_says_that_it_chose_after_looking() -> None:
    chance = probes().assign(test_accuracy=0.51, test_accuracy_low=0.45, test_accuracy_high=0.57)
    said = ProbesChapter().answer(Results({"probes": chance}))
    assert said.startswith(
        "Not shown: MLP, layer 3 (few-shot) is correct on 51% [45, 57] of 100 statements of one held"
    )
    assert "the best of 2, chosen after looking" in said
    left = Results({"probes": probes()}, {"probe_left_out": "topic 'rare' has 1 rows"})
    assert ProbesChapter().answer(left).endswith("The standardised probe was left out: topic 'rare' has 1 rows.")
    assert ProbesChapter().answer(Results({"probes": probes().query("method != 'MLP'")})) == ""


def test_the_report_begins_each_chapter_with_its_answer_and_repeats_it_in_short() -> None:
    results = accuracy({0: FLAT, 1: UP})
    text = render(results, chapters(), {})
    answer = LayersChapter().answer(results)
    assert text.count(answer) == 2
    assert f'<p class="answer">{answer}</p>' in text
    assert [answer] == LayersChapter().findings(results)


def test_a_share_is_in_per_cent_and_without_an_interval_alone() -> None:
    assert share_text(0.553, 0.4, 0.7) == "55% [40, 70]"
    assert share_text(0.9837, 0.97, 0.99, 1) == "98.4% [97.0, 99.0]"
    assert share_text(0.5, None, 0.7) == "50%"
    assert share_text(None) == "–"

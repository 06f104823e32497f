"""The report: escaped, self-contained, honest about uncertainty, silent about what was not run."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.cells import cell_len
from tests.unit.test_views_figures import EXITS, NASTY, decoding, entropy, layers, probes

from exitlens.errors import RunError
from exitlens.report import page as pages
from exitlens.report.chapter import Chapter, Plate
from exitlens.report.figure_style import svg_text
from exitlens.report.frames import Results
from exitlens.report.gallery import plates as all_plates
from exitlens.report.page import write_report
from exitlens.report.token_map import token_map
from exitlens.report.view_data import parse_view
from exitlens.report.words import cell, counted, narrow_tables, set_text, units
from exitlens.studies.decoding.chapter import DecodingChapter
from exitlens.studies.entropy.chapter import EntropyChapter
from exitlens.studies.exits.chapter import ExitsChapter
from exitlens.studies.layers.chapter import LayersChapter
from exitlens.studies.probes.chapter import ProbesChapter
from exitlens.studies.registry import chapters

MANIFEST: dict[str, Any] = {
    "version": "1",
    "command": "exitlens run --limit 5 '<script>'",
    "config": {"seed": 7, "nested": {"a": [1, 2]}},
    "model": {"name": "tiny <b>model</b>", "fingerprint": "f" * 64},
    "data": [
        {"name": "TruthfulQA", "source": "x.csv", "sha256": "d" * 64, "n": 5, "notes": ["18 duplicates: dropped"]}
    ],
    "seed": 7,
    "versions": {"torch": "2.13"},
    "hardware": {"cpu": "2 cores"},
    "stages": {"entropy": {"state": "done", "seconds": 1.5, "batches": 2}},
}


def render(manifest: dict[str, Any], tables: dict[str, pd.DataFrame], figures: dict[str, str]) -> str:
    return pages.render(Results(tables, manifest), chapters(), figures)


def plates(tables: dict[str, pd.DataFrame]) -> list[Plate]:
    return all_plates(Results(tables, MANIFEST), chapters())


class Reader(HTMLParser):
    """Collects tags, ids and links, and checks that tags close in order."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def answers(n: int = 2) -> pd.DataFrame:
    return pd.DataFrame(
        {"decoder": d, "question_id": f"q{i}", "question": NASTY, "answer": f"{d} {NASTY}", "n_tokens": 3}
        for d in ("vanilla", "dola:low") for i in range(n)
    )  # fmt: skip


def every_table() -> dict[str, pd.DataFrame]:
    return {
        "layers": layers(NASTY, (NASTY, "none")),
        "entropy_layers": entropy((NASTY, "judge B")),
        "answers": answers(),
        "judgements": pd.DataFrame([{"decoder": "vanilla", "question_id": "q0", "judge": NASTY, "correct": True}]),
        "probes": probes(),
        "decoding": decoding(),
        "exits": EXITS,
    }


@pytest.fixture(scope="module")
def full() -> str:
    tables = every_table()
    return render(MANIFEST, tables, {plate.name: svg_text(plate.draw()) for plate in plates(tables)})


def test_a_full_report_is_well_formed_self_contained_and_escaped(full: str) -> None:
    text = full
    reader = read(text)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == sum(tag == "script" for tag, _ in reader.tags)
    policy = next(str(a["content"]) for _, a in reader.tags if a.get("http-equiv"))
    run = [script for kind, script in scripts if "application/json" not in kind]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in run]
    assert sorted(re.findall(r"sha256-([^']+)", policy)) == sorted(hashes), "only our own scripts run"
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    assert {parse_view(script).kind for kind, script in scripts if "application/json" in kind} >= {"choices", "exits"}
    text = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    assert "alert(" in text, "the awkward text is there, escaped"
    assert "&lt;script&gt;" in text
    for character in ("\x00", "\x1b", "\u202e", "\ud800"):
        assert character not in text
    for _, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), "nothing is fetched"
    assert not re.search(r"url\((?!#)|@import", text)
    ids = [attributes["id"] for _, attributes in reader.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in reader.tags if a.get("href")}
    assert links <= set(ids)
    for used in re.findall(r"url\(#([^)]+)\)", text):
        assert used in ids


def test_figures_and_tables_are_named_for_a_screen_reader(full: str) -> None:
    reader = read(full)
    drawings = [attributes for tag, attributes in reader.tags if tag == "svg"]
    assert len(drawings) == len(plates(every_table()))
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in drawings)
    heads = [attributes for tag, attributes in reader.tags if tag == "th"]
    assert heads
    assert {attributes.get("scope") for attributes in heads} == {"col", "row"}


def test_only_what_was_run_has_a_section_and_a_refused_stage_says_why() -> None:
    manifest = {**MANIFEST, "stages": {"probes": {"state": "refused", "reason": f"one class only: '{NASTY}'"}}}
    text = render(manifest, {"decoding": decoding(), "layers": layers().iloc[:0]}, {})
    ids = {attributes.get("id") for _, attributes in read(text).tags}
    assert {"decoding", "probes", "provenance"} <= ids
    assert not {"layers", "entropy", "exits"} & ids
    assert "Stage probes was refused: one class only: &#39;&lt;script&gt;" in text


def test_a_run_that_is_not_finished_says_so_and_shows_what_is_there() -> None:
    started = {**MANIFEST, "started": "2026-11-27T18:39:05+00:00"}
    started.pop("finished", None)
    text = render(started, {"decoding": decoding()}, {})
    assert "This run is not finished: what is there is shown." in text
    assert "Started: 2026-11-27 18:39 UTC" in text
    assert 'id="decoding"' in text
    assert "not finished" not in render({**started, "finished": "2026-11-27T18:41:05+00:00"}, {}, {})


def test_what_a_sentence_quotes_keeps_its_direction_and_a_length_that_can_be_read() -> None:
    long = "האם " * 1200
    frame = layers().assign(question=long)
    first = frame.iloc[0]
    pick = {"question_id": first["question_id"], "question": long, "answer": "لا", "correct_choice": "b",
            "verdict": "incorrect", "lens": first["lens"]}  # fmt: skip
    text = render(MANIFEST, {"layers": frame, "layers_picks": pd.DataFrame([pick])}, {})
    said = text.partition('class="said"')[2].partition("</div>")[0]
    assert "“<bdi>האם" in said
    assert "“<bdi>لا</bdi>” ranks first" in said
    shown = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    assert 0 < shown.count("האם") < 600, "cut where it is shown, whole in the data of the view"


def test_a_stage_that_two_versions_made_says_so() -> None:
    stage = {"state": "done", "seconds": 1.5, "batches": 3}
    alone, both = (
        render({**MANIFEST, "stages": {"entropy": {**stage, "made_by": made}}}, {}, {})
        for made in ({"0.1.0": 3}, {"0.1.0": 2, "0.2.0": 1})
    )
    assert "continued by another version" not in alone
    assert "continued by another version of exitlens: 2 of 3 batches by 0.1.0, 1 by 0.2.0." in both


def test_every_table_whose_intervals_rest_on_few_units_is_named() -> None:
    few = pd.DataFrame({"n_test": [200, 8], "n": [9, 9], "accuracy": [0.7, 0.6], "accuracy_low": [0.6, 0.2]})
    enough = few.assign(n_test=[200, 15])
    without = few.drop(columns="accuracy_low")
    told = narrow_tables(Results({"few": few, "enough": enough, "without": without}), ["few", "enough", "without"])
    assert "so few cases (the fewest: 8 in few) that they are too narrow" in told
    assert narrow_tables(Results({"enough": enough}), ["enough", "none"]) == ""
    groups = pd.DataFrame({"n_correct": [40], "n_incorrect": [3], "low": [0.1]})
    assert "3 in groups" in narrow_tables(Results({"groups": groups}), ["groups"])


@pytest.mark.parametrize(("n", "sign"), [(2, " (no interval: n = 2)"), (14, "†"), (15, "")])
def test_a_too_narrow_interval_is_marked_in_its_row(n: int, sign: str) -> None:
    ends = (None, None) if n < 3 else (0.5, 0.7)
    row = {"x": 0.6, "x_low": ends[0], "x_high": ends[1], "n": 99, "n_answers": n}  # tokens, and their answers
    assert units(row) == n
    assert units(row, ("n",)) == 99
    assert cell(row, "x") == ("0.600" if n < 3 else "0.600 [0.500, 0.700]") + sign
    assert cell(row, "x", n=("unknown",)) == cell({**row, "n_answers": 15}, "x", n=("n",))


def test_tables_mark_too_narrow_intervals_and_say_so_below_once() -> None:
    legend = "† interval too narrow: fewer than 15 units."
    few = decoding().assign(n=14)
    page = render({}, {"decoding": few}, {})
    marked = re.findall(r"\[[^\[\]<]*\]†", page)
    assert len(marked) == 2 * len(few) - few["difference"].isna().sum()
    assert page.count(legend) == 1
    for tables in ({"decoding": few.assign(n=15)}, {"answers": pd.DataFrame({"answer": ["see the note†"]})}):
        assert legend not in render({}, tables, {})


def test_a_table_shown_as_it_is_has_marks_too() -> None:
    class Own(Chapter):
        title = question = how = ""
        own = ("own",)

    frame = pd.DataFrame({"n": [14, 15], "x": [0.6, 0.6], "x_low": [0.5, 0.5], "x_high": [0.7, 0.7]})
    page = pages.render(Results({"own": frame}), {"own": Own()}, {})
    assert page.count("0.700†") == 1
    assert "† interval too narrow" in page
    (part,) = Own().terminal(Results({"own": frame}), False)
    assert part.n == [14, 15]


def test_an_empty_run_still_gives_a_page_without_any_script() -> None:
    text = render({}, {}, {})
    assert "script" not in {tag for tag, _ in read(text).tags}
    assert "script-src 'none'" in html.unescape(text)
    assert "No study of this run has results yet" in text


def test_provenance_names_model_data_seed_versions_hardware_and_command() -> None:
    text = render(MANIFEST, {}, {})
    for wanted in (
        "f" * 64,
        "d" * 64,
        "18 duplicates: dropped",
        "2.13",
        "2 cores",
        "exitlens run --limit 5",
        "nested.a",
    ):
        assert wanted in text


def test_a_long_table_is_cut_collapsed_and_says_where_the_rest_lies() -> None:
    rows = pd.DataFrame({"decoder": "d", "metric": [f"m{i}" for i in range(100)], "n": 1, "mean": 0.1, "low": 0.0,
                         "high": 0.2})  # fmt: skip
    text = render({}, {"decoding": rows}, {})
    (marked,) = re.findall(r"<details><summary>Scores.*?</details>", text, re.DOTALL)
    assert marked.count("<tr>") == 41
    assert "First 40 of 100 rows; the whole table: tables/decoding.parquet" in marked
    assert "Scores (100 rows; tables/decoding.parquet)" in marked


def test_a_figure_that_holds_a_script_is_left_out() -> None:
    text = render(MANIFEST, {"decoding": decoding()}, {"decoding-scores": "<svg><script>alert(1)</script></svg>"})
    assert "was left out" in text
    assert "alert(1)" not in text


def test_the_same_run_gives_the_same_bytes_and_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    tables = every_table()
    one = write_report(Results(tables, MANIFEST), chapters(), {}, tmp_path / "a" / "report.html").read_bytes()
    two = write_report(Results(tables, MANIFEST), chapters(), {}, tmp_path / "b.html").read_bytes()
    assert one == two
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/report\.html"):
        write_report(Results(tables, MANIFEST), chapters(), {}, tmp_path / "file" / "report.html")


def frame_of(low: float, high: float, p: float) -> pd.DataFrame:
    frame = entropy(("J",))
    middle = (low + high) / 2
    return frame.assign(difference=middle, difference_low=low, difference_high=high, p_holm=p)


@pytest.mark.parametrize(
    ("low", "high", "p", "wanted", "unwanted"),
    [
        (0.2, 0.4, 0.01, "is higher at layers 0–3", "no significant difference"),
        (-0.4, -0.2, 0.01, "is lower at layers 0–3", "no significant difference"),
        (-0.1, 0.3, 0.8, "no significant difference", "is higher"),
        (0.01, 0.3, 0.2, "does not survive the correction", "is higher"),
    ],
)
def test_entropy_is_told_as_significant_only_after_correction(
    low: float, high: float, p: float, wanted: str, unwanted: str
) -> None:
    (said,) = EntropyChapter().headline(Results({"entropy_layers": frame_of(low, high, p)}))
    assert wanted in said
    assert unwanted not in said


def test_the_largest_difference_is_looked_for_among_significant_layers_only() -> None:
    # Layer 2 differs most, but only layers 0 and 1 survive the correction: the larger of these two is named.
    frame = entropy(("J",))
    frame = frame[frame["estimator"] == "per-group"].assign(
        difference=[0.3, 0.5, 9.0, -7.0], difference_low=0.1, difference_high=9.5, p_holm=[0.01, 0.02, 0.3, 0.9]
    )
    (said,) = EntropyChapter().headline(Results({"entropy_layers": frame}))
    assert "higher at layers 0–1" in said
    assert "the largest difference is 0.50 [0.10, 9.50] nats at layer 1 (interval too narrow: n = 4)." in said
    assert "9.00" not in said
    (said,) = EntropyChapter().headline(Results({"entropy_layers": frame.assign(p_holm=0.3)}))
    assert "no significant difference at any of 4 layers" in said
    assert "the largest is 9.00 [0.10, 9.50] nats at layer 2" in said


def test_auroc_that_covers_half_is_no_significant_ranking() -> None:
    frame = entropy(("J",)).assign(auroc=0.55, auroc_low=0.45, auroc_high=0.65)
    assert "covers 0.5: no significant ranking" in EntropyChapter().headline(Results({"entropy_layers": frame}))[0]


def test_numbers_of_pooled_weights_carry_their_warning_wherever_they_stand() -> None:
    results = Results({"entropy_layers": entropy(("J",))})
    warning = "the smaller group looks lower at every layer whatever its entropy"
    parts = EntropyChapter().terminal(results, True)
    assert [(part.title, warning in (part.note or "")) for part in parts] == [
        ("J (per-group)", False), ("J (pooled-weights)", True)
    ]  # fmt: skip
    captions = [sheet.caption for sheet in EntropyChapter().tables(results) if sheet.source == "entropy_layers"]
    assert [warning in caption for caption in captions] == [False, True]


def test_two_answers_have_no_interval_and_the_report_says_so() -> None:
    few = entropy(("J",)).assign(n_correct=1, n_incorrect=5, auroc=1.0, auroc_low=None, auroc_high=None)
    few = few.assign(difference=0.4, difference_low=None, difference_high=None, p_holm=0.5)
    results = Results({"entropy_layers": few})
    (said,) = EntropyChapter().headline(results)
    assert "0.40 nats at layer 0 (no interval: n = 1)." in said
    assert "AUROC furthest from chance: 1.00 at layer 0 (no interval: n = 1)." in said
    cells = [cell for sheet in EntropyChapter().tables(results)[:1] for row in sheet.rows for cell in row]
    assert "1.00 (no interval: n = 1)" in cells


def test_an_empty_group_is_not_compared() -> None:
    frame = entropy(("J",)).assign(difference=None, n_correct=0)
    assert "nothing can be compared" in EntropyChapter().headline(Results({"entropy_layers": frame}))[0]


def test_decoding_tells_significant_differences_and_unequal_penalties() -> None:
    (said,) = DecodingChapter().headline(Results({"decoding": decoding()}))
    assert "BLEU max +0.050 [0.010, 0.090]" in said
    covering = decoding().assign(difference_low=-0.1)
    (said,) = DecodingChapter().headline(Results({"decoding": covering}))
    assert "every 95% CI covers 0" in said
    both = pd.concat([covering, covering.iloc[2:].assign(decoder="sled")], ignore_index=True)
    (said,) = DecodingChapter().headline(Results({"decoding": both}))
    assert said.startswith("dola:low and sled relative to vanilla")
    unequal = decoding()
    unequal.loc[unequal["decoder"] != "vanilla", "repetition_penalty"] = 1.2
    assert "different repetition penalties" in DecodingChapter().headline(Results({"decoding": unequal}))[-1]


def test_quality_stands_beside_cost() -> None:
    cost = pd.DataFrame({"decoder": ["vanilla", "dola:low"], "extra_unembeddings": [0, 7]})
    results = Results(
        {"decoding": decoding(), "decoding_cost": cost}, {"tokens_per_second": {"vanilla": 50, "dola:low": 40}}
    )
    table = DecodingChapter().tables(results)[0]
    assert table.headers[:5] == ["decoder", "ms a token", "extra unembeddings", "BLEU max", "ROUGE-L acc"]
    assert table.rows == [
        ["vanilla", "20.0", "0", "0.300", "0.300"],
        ["dola:low", "25.0", "7", "0.300 ▲", "0.300 ▲"],
    ]


def test_the_noun_agrees_with_its_number_and_what_was_set_is_shown_as_it_was_set() -> None:
    assert [counted(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]
    assert [set_text(value) for value in (3.0, 0.999, 0.5, None, float("nan"))] == ["3", "0.999", "0.5", "–", "–"]
    fixed = pd.DataFrame(
        {"policy": ["fixed", "cosine"], "threshold": [3.0, 0.999], "agreement": [0.99, 0.96], "flops_saved": [0.1, 0.2]}
    )
    # A cosine of 0.999 once read as 1.00, and a layer as 3.00.
    first, second = ExitsChapter().headline(Results({"exits": fixed}))
    assert "fixed at 3 saves most" in first
    assert "cosine at 0.999 saves most" in second
    assert [row[1] for row in ExitsChapter().tables(Results({"exits": fixed}))[0].rows] == ["3", "0.999"]
    one = entropy(("J",))
    one = one[one["layer"] == 0].assign(p_holm=0.9, difference_low=-1.0)
    assert "at the one layer read after" in EntropyChapter().headline(Results({"entropy_layers": one}))[0]
    alone = decoding().assign(difference_low=-0.1).groupby("decoder", sort=False).head(1)
    assert "on the one metric: its 95% CI covers 0." in DecodingChapter().headline(Results({"decoding": alone}))[0]


def test_a_guarantee_is_said_to_hold_for_one_kind_of_policy() -> None:
    """Choosing the best of several kinds afterwards is covered where it is said to be, at a level of its own."""
    assert "best of K kinds is named, each was tested at epsilon / K (Bonferroni)" in ExitsChapter.how
    exits = pd.DataFrame([{"policy": "never", "threshold": None, "agreement": 1.0, "agreement_low": 1.0,
                           "agreement_high": 1.0, "layers_saved": 0.0, "flops_saved": 0.0, "n": 5}])  # fmt: skip
    columns = dict.fromkeys(["outcome", "threshold", "calibration_risk", "test_risk", "flops_saved"])
    shared = {"delta": 0.1, "epsilon": 0.05, "control": "ltt", "chosen_among": 1, "level": 0.05, **columns}
    best = {**shared, "policy": "margin", "chosen_among": 2, "level": 0.025, "outcome": "threshold", "threshold": 0.9,
            "calibration_risk": 0.01, "test_risk": 0.02, "test_risk_low": 0.01, "test_risk_high": 0.03,
            "flops_saved": 0.12}  # fmt: skip
    kept = pd.DataFrame([*({**shared, "policy": kind} for kind in ("margin", "cosine")), best])
    results = Results({"exits": exits, "exits_calibration": kept})
    parts = ExitsChapter().terminal(results, True)
    assert "epsilon 0.05 for each kind; 0.05/2 for the best of these 2" in parts[-1].title
    assert [row[0] for row in parts[-1].rows] == ["margin", "cosine", "margin (best of 2)"]
    (said,) = [line for line in ExitsChapter().headline(results) if "guarantee" in line]
    assert "margin at 0.9000 saves most of 2 kinds, each tested at 0.025: 12.0% of the FLOPs" in said
    assert "at one look" in said


def test_the_first_of_the_choices_is_not_called_the_models_answer() -> None:
    picks = pd.DataFrame([{
        "question_id": "q1", "question": "Which city?", "verdict": "incorrect", "answer": "two",
        "correct_choice": "none", "interest": 0.4, "lens": "logit",
    }])  # fmt: skip
    top = pd.DataFrame(
        {"question_id": "q1", "lens": "logit", "layer": layer, "rank": 0, "token": " Japan", "probability": 0.3}
        for layer in (5, 6)
    )
    results = Results({"layers": layers(), "layers_picks": picks, "layers_top": top})
    [said] = LayersChapter().headline(results)
    assert "“two” ranks first among the choices (incorrect: the correct choice is “none”)" in said
    assert "all choices together have 0.32 of the probability. The model's own top-1 token is “·Japan” (0.30)." in said
    assert "answers" not in said
    sheet = LayersChapter().tables(results)[0]
    layer_names = [int(head.removeprefix("layer ")) for head in sheet.headers[1:-1]]
    masses = [f"{0.2 + 0.02 * layer:.3f}" for layer in layer_names]
    assert sheet.rows[-1] == ["all choices, of the vocabulary", *masses, masses[-1]]


def test_a_probe_within_the_models_interval_is_not_called_better() -> None:
    said = ProbesChapter().headline(Results({"probes": probes()}))
    assert all("no significant difference" in line for line in said)
    apart = probes()
    apart.loc[apart["method"] == "MLP", ["test_accuracy", "test_accuracy_low", "test_accuracy_high"]] = [
        0.9,
        0.85,
        0.95,
    ]
    assert all("the probe is better" in line for line in ProbesChapter().headline(Results({"probes": apart})))
    chance = probes().assign(test_accuracy=0.51, test_accuracy_low=0.45, test_accuracy_high=0.57)
    assert all(
        "not significantly better than chance" in line for line in ProbesChapter().headline(Results({"probes": chance}))
    )


@pytest.mark.parametrize(("train_accuracy", "told"), [(0.5, True), (0.9, False)])
def test_networks_that_learned_nothing_are_called_that(train_accuracy: float, told: bool) -> None:
    probes = pd.DataFrame(
        {
            "setting": ["few-shot"],
            "method": ["MLP"],
            "layer": [15],
            "n_test": [80],
            "train_accuracy": [train_accuracy],
            "test_accuracy": [0.5],
            "test_accuracy_low": [0.4],
            "test_accuracy_high": [0.6],
        }
    )
    [text] = ProbesChapter().headline(Results({"probes": probes}))
    assert ("learned even its training statements" in text) is told


def test_exits_that_cost_more_than_they_save_are_said_to_save_nothing() -> None:
    lines = [line for line in ExitsChapter().headline(Results({"exits": EXITS})) if not line.startswith("The bound")]
    assert lines
    assert all("no policy measured saves compute" in line for line in lines)


def test_exits_say_the_bound_and_name_one_policy_once() -> None:
    table = pd.DataFrame(
        {
            "policy": ["oracle", "cosine", "margin"],
            "threshold": [1.0, 0.99, 0.5],
            "agreement": [1.0, 0.985, 0.91],
            "agreement_low": [1.0, 0.97, 0.90],
            "agreement_high": [1.0, 0.99, 0.93],
            "flops_saved": [0.3, 0.01, 0.2],
        }
    )
    bound, careful, bold = ExitsChapter().headline(Results({"exits": table}))
    assert "30.0%" in bound
    assert careful.startswith("At 98% and 95% agreement or more, cosine")
    assert "reaches below 98%" in careful
    assert bold.startswith("At 90% agreement or more, margin")


def test_the_map_of_tokens_fits_the_width_and_obeys_no_escape() -> None:
    frame = pd.DataFrame(
        {"position": p, "layer": layer, "token": " tok\x1b[0m", "probability": 0.9, "context": " ctx"}
        for p in range(20) for layer in (0, 1)
    )  # fmt: skip
    text = token_map(frame, width=50, colour=False)
    assert max(map(len, text.splitlines())) <= 50
    assert "█" in text
    assert "\x1b" not in text
    assert "\x1b[38;5;" in token_map(frame, width=50)
    # Right-to-left letters would turn the order of the cells.
    turned = token_map(frame.assign(token="שלום", context="مرحبا"), width=50, colour=False)
    assert "⟨U+05E9⟩"[:7] in turned
    assert "⟨U+0645⟩"[:7] in turned
    assert not set("שלוםمرحبا") & set(turned)


@pytest.mark.parametrize(
    ("token", "share", "inside"),
    [(" abcdefgh", 1.0, "·abcdefgh"), (" abcdefgh", 0.5, "·abc"), (" abc", 0.0, None), ("日本語日本", 0.5, "日本")],
)
def test_a_cell_of_the_map_is_a_bar_as_long_as_its_token_is_probable(
    token: str, share: float, inside: str | None
) -> None:
    frame = pd.DataFrame([{"position": 0, "layer": 0, "token": token, "probability": share}])
    line = token_map(frame, width=50).splitlines()[1]
    found = re.findall(r"\x1b\[38;5;16;48;5;31m(.*?)\x1b\[0m", line)
    assert found == ([] if inside is None else [inside])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
    assert cell_len(plain) <= 6 + 9


def test_times_of_the_manifest_stand_beside_the_tables_they_belong_to() -> None:
    cost = pd.DataFrame(
        {
            "decoder": ["vanilla", "sled"],
            "repetition_penalty": [1.0, 1.0],
            "extra_unembeddings": [0, 29],
            "tokens": [7, 9],
        }
    )
    exits = pd.DataFrame({"policy": ["never", "margin"], "threshold": [None, 0.5], "agreement": [1.0, 0.9]})
    manifest = {
        "tokens_per_second": {"sled": 12.34},
        "exit_times": [
            {"policy": "margin", "threshold": 0.5, "predicted_time": 0.789},
            {"policy": "never", "threshold": None, "predicted_time": 1.0},
        ],
    }
    page = render(manifest, {"decoding_cost": cost, "exits": exits}, {})
    assert "12.3" in page
    assert "0.789" in page
    assert "12.3" not in render({}, {"decoding_cost": cost, "exits": exits}, {})

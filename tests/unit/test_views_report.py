"""The report: escaped, self-contained, honest about uncertainty, silent about what was not run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.unit.test_views_figures import EXITS, NASTY, decoding, entropy, layers, probes

from exitlens.errors import RunError
from exitlens.report import html, sections, terminal, words
from exitlens.report.figure_style import svg_text
from exitlens.report.gallery import plates
from exitlens.report.page import headlines, render, write_report

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
        "judgements": pd.DataFrame([{"decoder": "vanilla", "question_id": "q0", "judge": NASTY, "right": True}]),
        "probes": probes(),
        "decoding": decoding(),
        "exits": EXITS,
    }


@pytest.fixture(scope="module")
def full() -> str:
    tables = every_table()
    return render(MANIFEST, tables, {plate.name: svg_text(plate.draw()) for plate in plates(MANIFEST, tables)})


def test_a_full_report_is_well_formed_self_contained_and_escaped(full: str) -> None:
    text = full
    reader = read(text)
    names = {tag for tag, _ in reader.tags}
    assert "script" not in names
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
    assert len(drawings) == len(plates(MANIFEST, every_table()))
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
    assert "Stage probes was refused: one class only: &#x27;&lt;script&gt;" in text


def test_an_empty_run_still_gives_a_page() -> None:
    text = render({}, {}, {})
    read(text)
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
    marked = html.table(["a", "b"], [[i, i] for i in range(100)], caption="C", where="tables/c.parquet", collapsed=True)
    assert marked.startswith("<details>")
    assert marked.count("<tr>") == 41
    assert "First 40 of 100 rows; the whole table: tables/c.parquet" in marked


def test_a_figure_that_holds_a_script_is_left_out() -> None:
    text = render(MANIFEST, {"decoding": decoding()}, {"decoding-scores": "<svg><script>alert(1)</script></svg>"})
    assert "was left out" in text
    assert "alert(1)" not in text


def test_the_same_run_gives_the_same_bytes_and_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    tables = every_table()
    one = write_report(MANIFEST, tables, {}, tmp_path / "a" / "report.html").read_bytes()
    two = write_report(MANIFEST, tables, {}, tmp_path / "b.html").read_bytes()
    assert one == two
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/report\.html"):
        write_report(MANIFEST, tables, {}, tmp_path / "file" / "report.html")


def frame_of(low: float, high: float, p: float) -> pd.DataFrame:
    frame = entropy(("J",))
    middle = (low + high) / 2
    return frame.assign(difference=middle, difference_low=low, difference_high=high, p_holm=p)


@pytest.mark.parametrize(
    ("low", "high", "p", "wanted", "unwanted"),
    [
        (0.2, 0.4, 0.01, "is higher at layers 0–3", "no certain difference"),
        (-0.4, -0.2, 0.01, "is lower at layers 0–3", "no certain difference"),
        (-0.1, 0.3, 0.8, "no certain difference", "is higher"),
        (0.01, 0.3, 0.2, "does not survive the correction", "is higher"),
    ],
)
def test_entropy_is_told_as_certain_only_after_correction(
    low: float, high: float, p: float, wanted: str, unwanted: str
) -> None:
    (said,) = words.entropy({"entropy_layers": frame_of(low, high, p)})
    assert wanted in said
    assert unwanted not in said


def test_auroc_that_covers_half_is_no_certain_ranking() -> None:
    frame = entropy(("J",)).assign(auroc=0.55, auroc_low=0.45, auroc_high=0.65)
    assert "covers 0.5: no certain ranking" in words.entropy({"entropy_layers": frame})[0]


def test_an_empty_group_is_not_compared() -> None:
    frame = entropy(("J",)).assign(difference=None, n_right=0)
    assert "nothing can be compared" in words.entropy({"entropy_layers": frame})[0]


def test_decoding_tells_certain_differences_and_unequal_penalties() -> None:
    (said,) = words.decoding({"decoding": decoding()})
    assert "BLEU max +0.050 [0.010, 0.090]" in said
    covering = decoding().assign(difference_low=-0.1)
    (said,) = words.decoding({"decoding": covering})
    assert "every interval covers zero" in said
    both = pd.concat([covering, covering.iloc[2:].assign(decoder="sled")], ignore_index=True)
    (said,) = words.decoding({"decoding": both})
    assert said.startswith("dola:low and sled beside vanilla")
    unequal = decoding()
    unequal.loc[unequal["decoder"] != "vanilla", "repetition_penalty"] = 1.2
    assert "different repetition penalties" in words.decoding({"decoding": unequal})[-1]


def test_quality_stands_beside_cost() -> None:
    cost = pd.DataFrame(
        {"decoder": ["vanilla", "dola:low"], "extra_unembeddings": [0, 7], "tokens_per_second": [50, 40]}
    )
    (table, *_) = sections.decoding({"decoding": decoding(), "decoding_cost": cost})
    text = re.sub(r"<[^>]+>", " ", table)
    assert re.search(r"vanilla\s+20.0\s+0\s+0.300\s+0.300", text)
    assert re.search(r"dola:low\s+25.0\s+7\s+0.300 ▲\s+0.300 ▲", text)


def test_a_probe_within_the_models_interval_is_not_called_better() -> None:
    said = words.probes({"probes": probes()})
    assert all("no certain difference" in line for line in said)
    apart = probes()
    apart.loc[apart["method"] == "MLP", ["test_accuracy", "test_accuracy_low", "test_accuracy_high"]] = [
        0.9,
        0.85,
        0.95,
    ]
    assert all("the probe is better" in line for line in words.probes({"probes": apart}))
    chance = probes().assign(test_accuracy=0.51, test_accuracy_low=0.45, test_accuracy_high=0.57)
    assert all("not certainly better than chance" in line for line in words.probes({"probes": chance}))


@pytest.mark.parametrize(("train_accuracy", "told"), [(0.5, True), (0.9, False)])
def test_networks_that_learned_nothing_are_called_that(train_accuracy: float, told: bool) -> None:
    probes = pd.DataFrame(
        {
            "setting": ["prompted"],
            "method": ["MLP"],
            "layer": [15],
            "n_test": [80],
            "train_accuracy": [train_accuracy],
            "test_accuracy": [0.5],
            "test_accuracy_low": [0.4],
            "test_accuracy_high": [0.6],
        }
    )
    [text] = headlines({"probes": probes})["probes"]
    assert ("learned even its training statements" in text) is told


def test_exits_that_cost_more_than_they_save_are_said_to_save_nothing() -> None:
    lines = [line for line in words.exits({"exits": EXITS}) if not line.startswith("The bound")]
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
    bound, careful, bold = words.exits({"exits": table})
    assert "30.0%" in bound
    assert careful.startswith("At 98% and 95% agreement or more, cosine")
    assert "reaches below 98%" in careful
    assert bold.startswith("At 90% agreement or more, margin")


def test_terminal_tables_fit_the_width_and_obey_no_escape() -> None:
    from rich.cells import cell_len

    frame = layers(NASTY, (NASTY, "中文 answer", *(f"choice {i}" for i in range(12))))
    for width in (40, 80, 200):
        plain = terminal.choice_table(frame, width=width, colour=False)
        assert max(cell_len(line) for line in plain.splitlines()) <= width
        assert "\x1b" not in plain
        assert plain.count("layer ") >= 14 * 11 // width
    coloured = terminal.choice_table(frame, width=80, colour=True)
    assert re.sub(r"\x1b\[(38;5;\d+(;48;5;\d+)?|0)m", "", coloured).count("\x1b") == 0


def test_terminal_map_and_headlines() -> None:
    frame = pd.DataFrame(
        {"position": p, "layer": layer, "token": " tok\x1b[0m", "probability": 0.9, "context": " ctx"}
        for p in range(20) for layer in (0, 1)
    )  # fmt: skip
    text = terminal.token_map(frame, width=50, colour=False)
    assert max(map(len, text.splitlines())) <= 50
    assert "█" in text
    assert "\x1b" not in text
    assert "\x1b[38;5;" in terminal.token_map(frame, width=50)
    # Right-to-left letters would turn the order of the cells.
    turned = terminal.token_map(frame.assign(token="שלום", context="مرحبا"), width=50, colour=False)
    assert "⟨U+05E9⟩"[:7] in turned
    assert "⟨U+0645⟩"[:7] in turned
    assert not set("שלוםمرحبا") & set(turned)
    tables = every_table()
    told = terminal.headline_tables(tables, width=78)
    assert set(headlines(tables)) == {"layers", "entropy", "probes", "decoding", "exits"} - {"layers"}
    assert "MLP, layer 3 (prompted)" in told
    assert terminal.headline_tables({}, width=78) == ""


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

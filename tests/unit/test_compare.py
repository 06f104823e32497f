"""Runs side by side: differences that were worked out by hand, what is refused, and the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.commands import call, done
from tests.unit.run_folders import QUESTIONS, decoding_tables, layer_tables, run_folder

import exitlens
from exitlens.errors import InputError, RunError
from exitlens.report.chapter import Chapter
from exitlens.report.comparable import Number, Unit
from exitlens.stats import Interval, independent_difference
from exitlens.studies.base import Study
from exitlens.studies.compare.chapter import CHAPTERS
from exitlens.studies.compare.figures import significant
from exitlens.studies.context import Context
from exitlens.studies.registry import STUDIES, register
from exitlens.studies.tables import Field, TableSpec, with_interval

FIVE = QUESTIONS[:5]
BASE = [0.1, 0.2, 0.3, 0.4, 0.3]
HIGHER = [0.2, 0.4, 0.6, 0.8, 0.8]  # by 0.1, 0.2, 0.3, 0.4, 0.5


def number(found: exitlens.studies.compare.comparison.Comparison, name: str, run: str) -> dict[str, Any]:
    rows = found.tables["compare_numbers"]
    rows = rows[(rows["number"] == name) & (rows["run"] == run)]
    assert len(rows) == 1
    return dict(rows.iloc[0])


@pytest.fixture
def five(tmp_path: Path) -> tuple[Path, Path]:
    one = run_folder(tmp_path / "one", decoding_tables(BASE, questions=FIVE))
    other = run_folder(
        tmp_path / "two", decoding_tables(HIGHER, questions=FIVE, decoder="sled"), config={"decoders": ["sled"]}
    )
    return one, other


def test_a_paired_difference_is_that_of_the_questions(five: tuple[Path, Path]) -> None:
    row = number(exitlens.compare_runs(five), "ROUGE-L max", "two")
    assert row["difference"] == pytest.approx(0.3)
    # All five differences have one sign: of the 32 sign flips two reach their sum.
    assert row["p"] == pytest.approx(2 / 32)
    assert row["n_paired"] == 5
    assert row["pairing"] == "paired by question (interval too narrow: n = 5)"
    found = exitlens.compare_runs(five)
    (part,) = CHAPTERS["numbers"].terminal(found.results, False)
    line = next(line for line in part.rows if str(line[0]).startswith("ROUGE-L max"))
    assert [str(cell).count("]†") for cell in line[1:4]] == [1, 1, 1]  # both values, and the difference
    assert row["difference_low"] < 0.3 < row["difference_high"]
    assert row["own"] == "decoder sled"


def test_a_paired_difference_of_verdicts_has_the_interval_of_agresti_and_min(tmp_path: Path) -> None:
    before = [0.9] * 8 + [0.1] * 12
    after = [0.1] + [0.9] * 7 + [0.9] * 6 + [0.1] * 6  # 1 lost, 6 gained
    runs = [run_folder(tmp_path / name, decoding_tables(v)) for name, v in (("a", before), ("b", after))]
    found = exitlens.compare_runs(runs)
    row = number(found, "answers judged correct", "b")
    assert row["value"] == pytest.approx(13 / 20)
    assert row["difference"] == pytest.approx(5 / 20)
    # (6.5 − 1.5)/22 ± 1.959964 · √((8/22 − (5/22)²)/22)
    assert row["difference_low"] == pytest.approx(-0.0061, abs=1e-4)
    assert row["difference_high"] == pytest.approx(0.4607, abs=1e-4)
    # Seven changes, of which at most one goes against the others: 2 · (1 + 7) / 2⁷, estimated by random flips.
    assert row["p"] == pytest.approx(0.125, abs=0.015)
    changes = found.tables["compare_changes"]
    assert len(changes) == 7
    assert changes["correct"].sum() == 6
    lost = changes[~changes["correct"]].iloc[0]
    assert (lost["question_id"], lost["first_answer"], lost["answer"]) == ("q0001", "It is 0.9.", "It is 0.1.")
    assert bool(lost["first_correct"])


def test_equal_ids_with_other_texts_are_not_paired(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "a", decoding_tables([0.5] * 20))
    other = run_folder(
        tmp_path / "b", decoding_tables([0.7] * 20, questions=[(i, text.upper()) for i, text in QUESTIONS])
    )
    found = exitlens.compare_runs([one, other])
    row = number(found, "ROUGE-L max", "b")
    assert row["pairing"] == "unpaired: no question is in both runs"
    assert row["n_paired"] == 0
    # Both means have ± 0.1: MOVER gives 0.2 ± √(0.1² + 0.1²).
    assert row["difference_low"] == pytest.approx(0.2 - 0.02**0.5)
    assert row["difference_high"] == pytest.approx(0.2 + 0.02**0.5)
    assert row["p"] == pytest.approx(0.005574, abs=1e-5)
    assert not len(found.tables["compare_changes"])


def test_the_shared_questions_are_paired_where_they_are_half_of_the_smaller_run(tmp_path: Path) -> None:
    values = [i / 20 for i in range(20)]
    runs = [
        run_folder(tmp_path / "a", decoding_tables(values)),
        run_folder(tmp_path / "b", decoding_tables(values[:8], questions=QUESTIONS[:8])),
        run_folder(
            tmp_path / "c",
            decoding_tables([0.4] * 10, questions=[*QUESTIONS[:4], *((f"r{i}", f"Other {i}?") for i in range(6))]),
        ),
    ]
    found = exitlens.compare_runs(runs)
    assert number(found, "ROUGE-L max", "b")["n_paired"] == 8
    assert number(found, "ROUGE-L max", "b")["difference"] == 0
    row = number(found, "ROUGE-L max", "c")
    assert row["pairing"] == "unpaired: only 4 of 20 and 10 questions are in both runs"


def test_independent_estimates_differ_by_mover() -> None:
    found = independent_difference(Interval(0.7, 0.6, 0.8, 30), Interval(0.5, 0.4, 0.6, 20))
    assert (found.low, found.high) == pytest.approx((0.2 - 0.1 * 2**0.5, 0.2 + 0.1 * 2**0.5))
    assert found.p == pytest.approx(0.005574, abs=1e-5)
    assert found.n == 20
    skewed = independent_difference(Interval(0.1, 0.05, 0.3, 30), Interval(0.1, 0.1, 0.1, 30))
    assert (skewed.low, skewed.high, skewed.p) == pytest.approx((-0.05, 0.2, 1.0))
    assert independent_difference(Interval(1, 1, 1, 9), Interval(0, 0, 0, 9)).p == 0
    nothing = independent_difference(Interval(0.7, float("nan"), 0.8, 2), Interval(0.5, 0.4, 0.6, 20))
    assert nothing.value == pytest.approx(0.2)
    assert nothing.p != nothing.p


def test_layers_of_models_of_other_depths_are_shares_of_the_depth(tmp_path: Path) -> None:
    hits = [[False, i % 2 == 0, True] for i in range(20)]
    deeper = [[False, False, i % 2 == 0, True, i > 4] for i in range(20)]
    runs = [
        run_folder(tmp_path / "a", layer_tables(hits), layers=2),
        run_folder(tmp_path / "b", layer_tables(deeper, lens="tuned"), layers=4),
    ]
    found = exitlens.compare_runs(runs)
    curves = found.tables["compare_curves"]
    assert set(curves["axis"]) == {"share of the depth"}
    assert list(curves[curves["run"] == "b"]["x"]) == [0, 0.25, 0.5, 0.75, 1]
    assert set(curves[curves["run"] == "b"]["own"]) == {"lens tuned"}
    row = number(found, "correct choice first at the last layer", "b")
    assert row["difference"] == pytest.approx(-0.25)
    means = number(found, "correct choice first, mean over layers", "a")
    assert means["value"] == pytest.approx(0.5)
    same = exitlens.compare_runs([runs[0], run_folder(tmp_path / "c", layer_tables(hits), layers=2)])
    assert set(same.tables["compare_curves"]["axis"]) == {"layer"}


def test_a_decoder_that_both_runs_have_is_compared_with_itself(tmp_path: Path) -> None:
    def both(first: str, values: list[float], other: str, more: list[float]) -> dict[str, pd.DataFrame]:
        one, two = decoding_tables(values, decoder=first), decoding_tables(more, decoder=other)
        return {name: pd.concat([one[name], two[name]], ignore_index=True) for name in one}

    runs = [
        run_folder(tmp_path / "a", both("vanilla", [0.1] * 20, "sled", [0.3] * 20)),
        run_folder(tmp_path / "b", both("sled", [0.4] * 20, "acd", [0.9] * 20)),
    ]
    table = exitlens.compare_runs(runs).tables["compare_numbers"]
    table = table[table["number"] == "ROUGE-L max"]
    sled = table[table["of"].str.startswith("decoder sled")]
    assert list(sled["difference"].dropna()) == pytest.approx([0.1])
    # What is left of each is alone on its side: compared, and said to be another decoder.
    rest = table[table["of"].str.startswith("decoder vanilla") & (table["run"] == "b")].iloc[0]
    assert (rest["own"], round(rest["difference"], 6)) == ("decoder acd", 0.8)


def test_p_values_are_corrected_over_the_whole_table(five: tuple[Path, Path]) -> None:
    table = exitlens.compare_runs(five).tables["compare_numbers"]
    tested = table.dropna(subset=["p"])
    assert len(tested) == 2
    smallest = tested.sort_values("p").iloc[0]
    assert smallest["p_holm"] == pytest.approx(min(1, 2 * smallest["p"]))


def test_settings_that_differ_are_named_and_equal_ones_are_not(five: tuple[Path, Path]) -> None:
    found = exitlens.compare_runs(five)
    table = found.tables["compare_settings"]
    assert set(table["setting"]) == {"decoders"}, "neither the seed, which is equal, nor the folder"
    assert table["value"].isna().tolist() == [True, False]
    assert table["value"].iloc[1] == "sled"
    assert found.findings()["runs"][0] == "1 setting differs: decoders."


class LengthChapter(Chapter):
    title = "Length"
    question = "How long?"
    how = "Counted."
    own = ("lengths",)


class LengthStudy(Study):
    name = "lengths"
    tables = (
        TableSpec(
            "lengths", "a kind", (Field("kind", "of text"), *with_interval("words", "mean"), Field("n", "texts"))
        ),
    )
    chapter = LengthChapter()

    def run(self, ctx: Context) -> None:
        raise NotImplementedError


@pytest.fixture
def lengths() -> Iterator[None]:
    register(LengthStudy())
    yield
    STUDIES.remove("lengths")


@pytest.mark.usefixtures("lengths")
def test_a_study_of_a_users_own_is_compared_by_its_intervals(tmp_path: Path) -> None:
    runs = [
        run_folder(
            tmp_path / str(i),
            {
                "lengths": pd.DataFrame(
                    {"kind": ["a"], "words": [5.0 + i], "words_low": [4.0], "words_high": [7.0], "n": 9}
                )
            },
        )
        for i in range(2)
    ]
    row = number(exitlens.compare_runs(runs), "words", "1")
    assert (row["of"], row["difference"], row["n"]) == ("kind a", 1.0, 9)
    assert row["pairing"].startswith("unpaired")


def test_what_cannot_be_compared_is_refused(five: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = five
    with pytest.raises(InputError, match="is one run: name two or more run directories"):
        exitlens.compare_runs([one])
    with pytest.raises(InputError, match="no run is given"):
        exitlens.compare_runs([])
    with pytest.raises(InputError, match="is given twice"):
        exitlens.compare_runs([one, tmp_path / "two" / ".." / "one"])
    (tmp_path / "link").symlink_to(one)
    with pytest.raises(InputError, match="is given twice"):
        exitlens.compare_runs([one, tmp_path / "link"])
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "empty", tmp_path / "nowhere", one / "manifest.json"):
        with pytest.raises(RunError, match="holds no run"):
            exitlens.compare_runs([one, missing])
    layers = run_folder(tmp_path / "layers", layer_tables([[True, False]] * 20))
    with pytest.raises(RunError, match="no study in common: one has decoding; layers has layers; run the same studies"):
        exitlens.compare_runs([one, layers])
    old = run_folder(tmp_path / "old", decoding_tables(BASE, questions=FIVE), version=1)
    with pytest.raises(RunError, match="a run of format 1, this version reads 2"):
        exitlens.compare_runs([one, old])
    for out in (one, one / "inside", tmp_path):
        with pytest.raises(InputError, match="lie in each other"):
            exitlens.compare_runs([one, other], out)


def test_a_damaged_table_is_refused_and_one_of_other_columns_left_out(five: tuple[Path, Path]) -> None:
    one, other = five
    frame = pd.read_parquet(other / "tables" / "judgements.parquet")
    frame.assign(confidence=1).to_parquet(other / "tables" / "judgements.parquet")
    found = exitlens.compare_runs(five)
    assert len(found.notes) == 1
    assert "two: table judgements was written by exitlens 0.1 with other columns" in found.notes[0]
    assert "answers judged correct" not in set(found.tables["compare_numbers"].query("run == 'two'")["number"])
    (one / "tables" / "scores.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(RunError, match=r"tables/scores.parquet of .* is damaged: remove it and run the"):
        exitlens.compare_runs(five)


def test_an_unfinished_run_is_compared_by_what_it_has(tmp_path: Path) -> None:
    whole = {**decoding_tables(BASE, questions=FIVE), **layer_tables([[True, False]] * 5, questions=FIVE)}
    one = run_folder(tmp_path / "one", whole)
    part = run_folder(
        tmp_path / "part", layer_tables([[True, True]] * 5, questions=FIVE), finished=None,
        stages={"layers": {"state": "done"}, "generate-vanilla": {"state": "running"}},
    )  # fmt: skip
    found = exitlens.compare_runs([one, part])
    assert found.notes == (
        "part: the run is not finished (stage generate-vanilla): only its finished tables are compared",
    )
    rows = found.tables["compare_numbers"]
    assert set(rows[rows["run"] == "part"]["study"]) == {"layers"}
    assert "part: the run is not finished" in " ".join(found.findings()["runs"])


def test_the_command_writes_a_report_with_escaped_texts_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nasty = [(i, f"<script>alert({i})</script>\x1b[2J {text}") for i, text in QUESTIONS]
    values = [0.9, 0.1] * 10
    tables = [{**decoding_tables(v, questions=nasty), **layer_tables([[v[0] > 0.5, True]] * 20, questions=nasty)}
              for v in (values, values[::-1])]  # fmt: skip
    runs = [run_folder(tmp_path / name, each, layers=1) for name, each in zip("ab", tables, strict=True)]
    code, out, err = call(capsys, "compare", *runs, "--out", tmp_path / "out")
    assert code == 0, err
    assert "\x1b" not in out
    assert "answers judged correct (similarity, vanilla)" in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<figure") >= 3
    assert "<h1><bdi>Runs side by side</bdi></h1>" in page
    for name in ("curves-layers-correct-choice-first", "numbers-decoding"):
        assert (tmp_path / "out" / "figures" / f"{name}.pdf").stat().st_size > 1000
    assert len(pd.read_parquet(tmp_path / "out" / "tables" / "compare_changes.parquet")) == 20
    again = done(capsys, "compare", *runs, "--out", tmp_path / "out")
    assert again["tables"]["compare_changes"][0]["first"] == "a"
    assert sorted(again) == ["findings", "notes", "report", "tables"]


def test_a_folder_holds_a_run_or_a_comparison(
    five: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "compare", *five, "--out", tmp_path / "out", "-q")[0] == 0
    with pytest.raises(RunError, match="holds a comparison and no run"):
        exitlens.compare_runs([five[0], tmp_path / "out"])
    shutil.copytree(five[0], tmp_path / "third")
    code, _, err = call(capsys, "compare", five[0], tmp_path / "third", "--out", tmp_path / "out")
    assert code == 2
    assert f"'{tmp_path / 'out'}' holds a comparison of '" in err
    assert "choose another folder" in err
    assert "--fresh" not in err, "exitlens compare has no such option"
    code, _, err = call(capsys, "run", "--out", tmp_path / "out", "--only", "layers")
    assert code == 2
    assert "holds a comparison and no run: choose another folder with --out" in err


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / side / "run", decoding_tables(BASE, questions=FIVE)) for side in ("x", "y")]
    found = exitlens.compare_runs(runs)
    assert list(found.tables["compare_runs"]["run"]) == ["x/run", "y/run"]
    assert found.findings()["runs"][0].startswith("No setting differs")
    manifest = json.loads((runs[0] / "manifest.json").read_text())
    assert manifest["model"]["name"] == "tiny"


def test_a_decoder_compared_with_another_is_named_wherever_the_difference_is_told(five: tuple[Path, Path]) -> None:
    found = exitlens.compare_runs(five)
    changed = found.tables["compare_changes"]
    assert set(changed["own"]) == {"decoder sled"}
    told = " ".join(found.findings()["changes"])
    assert (
        "answers judged correct (similarity, vanilla; two: sled): 3 questions correct only in two, 0 only in one."
        in told
    )


def test_a_table_of_another_kind_of_values_is_refused_in_one_line(tmp_path: Path) -> None:
    tables = layer_tables([[True, False]] * 20)
    one = run_folder(tmp_path / "one", tables)
    words = {**tables, "layers": tables["layers"].assign(layer="deep")}
    other = run_folder(tmp_path / "two", words)
    with pytest.raises(RunError, match=r"tables of study layers in .* hold values that cannot be read"):
        exitlens.compare_runs([one, other])


def test_last_digits_are_no_difference_and_one_question_no_significance(tmp_path: Path) -> None:
    values = [i / 40 for i in range(20)]
    one = run_folder(tmp_path / "a", decoding_tables(values))
    noisy = run_folder(tmp_path / "b", decoding_tables([v + 1e-8 * (-1) ** i for i, v in enumerate(values)]))
    row = number(exitlens.compare_runs([one, noisy]), "ROUGE-L max", "b")
    assert (row["difference"], row["p"]) == (0, 1)
    assert not significant({"difference_low": -0.3, "difference_high": 0.1, "p_holm": 0.004})
    assert not significant({"difference_low": 0.1, "difference_high": 0.3, "p_holm": 0.2})
    assert significant({"difference_low": 0.1, "difference_high": 0.3, "p_holm": 0.004})


def test_the_interval_of_a_share_stays_a_share() -> None:
    """Few skewed values give a studentised interval that passes 0 and 1; a share cannot."""
    from exitlens import stats
    from exitlens.studies.compare.analysis import _interval

    values = [0.0] * 11 + [1.0]
    values[3] = 0.05
    assert stats.mean_interval(values, seed=0).low < 0
    units = [Unit(f"q{i}", f"question {i}", value) for i, value in enumerate(values)]
    found = _interval(Number("share", units=units), 0)
    assert found.low == 0
    assert found.high <= 1
    free = _interval(Number("nats", units=units, unit="nats"), 0)
    assert free.low < 0

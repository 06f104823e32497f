"""A study of ten lines: registered, it is run, printed, given as JSON and shown in the report as the built-in ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from tests import tiny

from exitlens.cli import main
from exitlens.errors import ConfigError, RunError
from exitlens.report.chapter import Chapter, Plate
from exitlens.report.figure_style import new_figure
from exitlens.report.frames import Results
from exitlens.studies.base import Study
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Context
from exitlens.studies.registry import STUDIES, register
from exitlens.studies.tables import Field, TableSpec

# typer hands its own context class over.
pytestmark = pytest.mark.wrong_types


class LengthChapter(Chapter):
    title = "Length of the questions"
    question = "How many words has a question?"
    how = "Words are counted at white space."
    own = ("lengths",)

    def figures(self, results: Results) -> list[Plate]:
        return [Plate("lengths-bars", "Words of each question.", "Bars of the number of words", drawn)]


class LengthStudy(Study):
    name = "lengths"
    fields = (Field("question_id", "its id"), Field("words", "its length", "words"))
    tables = (TableSpec("lengths", "a question", fields, printed=True),)
    chapter = LengthChapter()

    def run(self, ctx: Context) -> None:
        rows = [(q.id, len(q.question.split())) for q in ctx.inputs.questions]
        ctx.write("lengths", pd.DataFrame(rows, columns=["question_id", "words"]))


def drawn() -> Figure:
    figure = new_figure(2.0)
    figure.subplots().bar([0, 1], [5, 3])
    return figure


@pytest.fixture
def lengths() -> Iterator[None]:
    register(LengthStudy())
    yield
    STUDIES.remove("lengths")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    tiny.model("llama").save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    rows = [{"question": f"What is{' really' * i} {i}?", "best": "yes", "incorrect": ["no"]} for i in range(3)]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.usefixtures("lengths")
def test_it_appears_in_the_terminal_in_json_and_in_the_report(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", "-m", str(work / "model"), "--data", str(work / "q.jsonl"), "--only", "lengths", "-q"]
    asked += ["--out", str(work / "run")]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "Length of the questions: lengths" in out
    assert [line.split()[-1] for line in out.splitlines() if line.split()[-1:] in (["3"], ["4"], ["5"])] == [
        "3",
        "4",
        "5",
    ]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["words"] for row in found["tables"]["lengths"]] == [3, 4, 5]
    report = (work / "run/report.html").read_text(encoding="utf-8")
    assert '<section id="lengths"><h2>Length of the questions</h2>' in report
    assert 'id="figure-lengths-bars"' in report
    assert "tables/lengths.parquet" in report
    assert "Words are counted at white space." in report
    assert (work / "run/figures/lengths-bars.pdf").stat().st_size > 1000


@pytest.mark.usefixtures("lengths")
def test_a_run_without_only_runs_it_last() -> None:
    assert RunConfig().only[-1] == "lengths"
    assert "lengths" not in STUDIES["layers"].chapter.own


def test_a_name_that_is_taken_or_no_word_is_refused() -> None:
    class Twice(LengthStudy):
        name = "layers"

    class Odd(LengthStudy):
        name = "two words"

    class SameTable(LengthStudy):
        tables = STUDIES["layers"].tables

    for study, message in ((Twice(), "'layers' is there already"), (Odd(), "'two words' cannot name"),
                           (SameTable(), "writes a table 'layers' already")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            register(study)
    assert list(STUDIES) == ["layers", "entropy", "probes", "decoding", "exits", "lenses"]


def test_a_table_is_written_only_as_it_was_declared() -> None:
    table = TableSpec("t", "a row", (Field("a", "one"), Field("b", "two", optional=True)))
    table.check(pd.DataFrame({"a": [1]}))
    table.check(pd.DataFrame({"a": [1], "b": [2]}))
    table.check(pd.DataFrame())
    with pytest.raises(RunError, match=r"'t' is not as its study declares it \(without a; undeclared c\)"):
        table.check(pd.DataFrame({"b": [1], "c": [2]}))

"""docs/tables.md says what the records say, and the records say what is written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from tests import tiny

from exitlens.models import wrap
from exitlens.studies.compare.columns import COMPARE_TABLES
from exitlens.studies.config import RunConfig
from exitlens.studies.registry import STUDIES
from exitlens.studies.run import run
from exitlens.studies.tables import NARROW, Field, TableSpec, with_interval

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables_page", ROOT / "scripts/tables_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_records(script: ModuleType) -> None:
    told = (ROOT / "docs/tables.md").read_text(encoding="utf-8")
    assert told == script.page(), "run python scripts/tables_page.py"


def test_every_column_of_every_table_is_on_the_page(script: ModuleType) -> None:
    page = script.page()
    for study in STUDIES.values():
        for table in study.tables:
            (part,) = [p for p in page.split("### ")[1:] if p.startswith(f"`{table.name}`")]
            for field in table.fields:
                assert f"| `{field.name}` |" in part
                assert field.meaning
    assert "| `entropy` | " in page.split("## `exitlens read`")[1]


def test_every_table_with_intervals_marks_those_that_are_too_narrow() -> None:
    for spec in [*COMPARE_TABLES, *(table for study in STUDIES.values() for table in study.tables)]:
        ends = any(field.name == "low" or field.name.endswith("_low") for field in spec.fields)
        # A curve's points have no count of their own.
        assert (NARROW in spec.fields) is (ends and spec.name != "compare_curves"), spec.name


def test_a_row_is_marked_by_the_least_of_its_units() -> None:
    fields = (Field("n", "n"), Field("n_shuffled", "n"), *with_interval("x", "x"), NARROW)
    spec = TableSpec("t", "a row", fields, rests_on=("n", "n_shuffled"))
    nan = float("nan")
    frame = pd.DataFrame(
        {
            "n": [20, 20, 2, 20, nan],
            "n_shuffled": [20, 14, 20, 3, nan],
            "x": [0.5] * 5,
            "x_low": [0.1, 0.1, nan, nan, 0.1],
            "x_high": [0.9, 0.9, nan, nan, 0.9],
        }
    )
    marked = spec.marked(frame)
    assert marked["too_narrow"].tolist() == [False, True, False, False, None]
    assert spec.fits(frame)  # of an earlier version
    assert spec.marked(marked) is marked
    assert spec.marked(frame, [14, 15, 14, 14, 2])["too_narrow"].tolist() == [True, False, False, False, False]
    assert spec.marked(frame, 60)["too_narrow"].tolist() == [False] * 5
    plain = TableSpec("t", "a row", fields[:-1])
    assert plain.marked(frame) is frame


def test_a_run_of_every_study_writes_only_declared_tables(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {i} + 1?", "best": "two", "correct": ["two"], "incorrect": ["no", f"{i}"]}
        for i in range(4)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    statements = [
        {"statement": f"The thing{i // 2} has {i % 2 + 3} legs.", "label": i % 2, "topic": f"t{i // 30}",
         "pair": f"p{i // 2}"}
        for i in range(60)
    ]  # fmt: skip
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, statements)))
    config = RunConfig(
        data=(str(tmp_path / "q.jsonl"),), statements=(str(tmp_path / "s.jsonl"),), out=str(tmp_path / "run"),
        max_new_tokens=4, bertscore_model=None, judges=("margin:rouge",), figures=False, kinds=("mass-mean",),
        mc="softmax", probe_seeds=1,
    )  # fmt: skip
    model = tiny.model("llama", spread=0.15)
    model.config.max_position_embeddings = 4096
    lm = wrap(model, tiny.tokenizer())
    done = run(config, lm=lm)
    # The same probes at the model's own answers, of which every second is called correct.
    labels = tmp_path / "labels.csv"
    labels.write_text("question_id,label\n" + "\n".join(f"q{i:04d},{i % 2}" for i in range(1, 31)))
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({**rows[0], "question": f"Is {i}?"}) for i in range(30)))
    more = {
        "only": ("probes",), "position": "exact-answer", "judges": (f"labels:{labels}",), "out": str(tmp_path / "own"),
        "data": (str(tmp_path / "more.jsonl"),),
    }  # fmt: skip
    own = run(config.model_copy(update=more), lm=lm)
    concepts = {"items": [{"prompt": f"It is {i}", "intermediates": ["true", "a"]} for i in range(4)]}
    (tmp_path / "typo.json").write_text(json.dumps(concepts))
    sets = {"only": ("lenses",), "data": (str(tmp_path / "typo.json"),), "out": str(tmp_path / "sets")}
    read = run(config.model_copy(update=sets), lm=lm)
    specs = {table.name: table for study in STUDIES.values() for table in study.tables}
    assert set(specs) - set(done.tables) - set(own.tables) - set(read.tables) == set(), (
        "every declared table is written"
    )
    for name, frame in [*done.tables.items(), *own.tables.items(), *read.tables.items()]:
        # In the same order, so that whoever reads the page finds the column where it stands.
        have = [field.name for field in specs[name].fields if not field.optional or field.name in frame]
        assert list(map(str, pd.DataFrame(frame).columns)) == have, name

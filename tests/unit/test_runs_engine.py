"""The engine: jobs taken as they are asked for, tables through the disk, batches kept and counted."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
from tests.unit.lens_model import SmallModel

from exitlens.runs.directory import RunDirectory
from exitlens.runs.engine import Engine, LocalEngine, Progress, batches
from exitlens.storage.atomic import write_json
from exitlens.version import __version__

LM = SmallModel()


@dataclass(frozen=True)
class Doubled:
    name: ClassVar[str] = "doubled"
    version: ClassVar[int] = 1

    factor: int = 2
    ran: list[list[int]] = field(default_factory=list, compare=False)

    def settings(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def identify(self, record: int) -> Any:
        return record

    def run(self, lm: Any, batch: Sequence[int]) -> dict[str, pd.DataFrame]:
        self.ran.append(list(batch))
        tables = {"values": pd.DataFrame({"n": batch, "value": [self.factor * n for n in batch]})}
        if batch[0] > 2:
            tables["large"] = pd.DataFrame({"n": batch})
        return tables


def mapped(engine: Engine, stage: Doubled, records: Sequence[int] = range(7)) -> Any:
    return engine.map(stage, records, batch_size=3)


def test_batches() -> None:
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([], 3)) == []


@pytest.mark.parametrize("kept", [False, True])
def test_tables_are_in_the_order_of_the_records(tmp_path: Path, kept: bool) -> None:
    directory = RunDirectory.open(tmp_path, {}) if kept else None
    stage = Doubled()
    done = mapped(LocalEngine(LM, directory), stage)
    assert stage.ran == [[0, 1, 2], [3, 4, 5], [6]]
    assert done.tables["values"].to_dict("list") == {"n": list(range(7)), "value": [2 * n for n in range(7)]}
    assert done.tables["large"]["n"].tolist() == [3, 4, 5, 6]
    assert done.tables.get("none") is None
    assert (done.batches, done.resumed) == (3, 0)
    assert done.seconds >= 0
    if directory is not None:
        stages = directory.manifest["stages"]
        made = {"batches": 3, "seconds": round(done.seconds, 3), "made_by": {__version__: 3}}
        assert stages == {"doubled": {"state": "done", **made}}
        directory.close()


def test_without_a_directory_the_files_end_with_the_tables() -> None:
    done = mapped(LocalEngine(LM), Doubled())
    folder = done.tables.files("values")[0].parent
    assert folder.is_dir()
    del done
    gc.collect()
    assert not folder.exists()


def test_a_stage_that_another_version_continued_says_which_made_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with RunDirectory.open(tmp_path, {}) as directory:
        mapped(LocalEngine(LM, directory), Doubled(), range(6))
        monkeypatch.setattr("exitlens.runs.engine.__version__", "9.9")
        mapped(LocalEngine(LM, directory), Doubled())
        assert directory.manifest["stages"]["doubled"]["made_by"] == {__version__: 2, "9.9": 1}
        mapped(LocalEngine(LM, directory), Doubled())
    assert [record.getMessage() for record in caplog.records] == [
        f"Stage doubled was continued by another version of exitlens: 2 of 3 batches by {__version__}, 1 by 9.9."
    ]


def test_only_what_is_not_finished_is_run(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path, {}) as directory:
        first = mapped(LocalEngine(LM, directory), Doubled())
        again = Doubled()
        done = mapped(LocalEngine(LM, directory), again)
        assert again.ran == []
        assert (done.resumed, done.seconds) == (3, first.seconds)
        pd.testing.assert_frame_equal(done.tables["values"], first.tables["values"])
        file = first.tables.files("values")[1]
        file.write_bytes(b"half")
        assert mapped(LocalEngine(LM, directory), again).resumed == 2
        assert again.ran == [[3, 4, 5]]
        assert mapped(LocalEngine(LM, directory), again).resumed == 3


@pytest.mark.parametrize("seconds", ["1", None, True, [1.0]])
def test_a_unit_whose_facts_make_no_sense_is_run_again(tmp_path: Path, seconds: Any) -> None:
    with RunDirectory.open(tmp_path, {}) as directory:
        mapped(LocalEngine(LM, directory), Doubled())
        seal = sorted((tmp_path / "work" / "doubled").glob("*.seal.json"))[0]
        held = json.loads(seal.read_bytes())
        write_json(seal, {**held, "facts": {"seconds": seconds}})
        stage = Doubled()
        assert mapped(LocalEngine(LM, directory), stage).resumed == 2
        assert stage.ran == [[0, 1, 2]]


def test_other_settings_records_models_and_versions_are_other_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory.open(tmp_path, {}) as directory:
        engine = LocalEngine(LM, directory)
        assert mapped(engine, Doubled()).resumed == 0
        assert mapped(engine, Doubled(factor=3)).tables["values"]["value"].tolist() == [3 * n for n in range(7)]
        assert mapped(engine, Doubled(), [0, 1, 2, 9]).resumed == 1
        monkeypatch.setattr(LM, "fingerprint", "f1")
        assert mapped(engine, Doubled()).resumed == 0
        monkeypatch.setattr(LM, "fingerprint", "small-0")
        monkeypatch.setattr(Doubled, "version", 2)
        assert mapped(engine, Doubled()).resumed == 0
        monkeypatch.setattr(Doubled, "version", 1)
        assert mapped(engine, Doubled()).resumed == 3
        other = engine.map(Doubled(), range(7), batch_size=3, label="other")
        assert other.resumed == 0
        assert sorted(directory.manifest["stages"]) == ["doubled", "other"]


def test_jobs_are_taken_one_at_a_time_and_no_result_is_kept() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(3):
            taken.append(job)
            yield job

    class Squared:
        def run(self, lm: Any, job: int, /) -> int:
            assert lm is LM
            return job * job

    found = LocalEngine(LM).stream(Squared(), jobs())
    assert taken == []
    for number in range(3):
        assert next(found) == (number, number * number)
        assert taken == list(range(number + 1))


def test_a_batch_that_fails_leaves_those_before_it(tmp_path: Path) -> None:
    class Fails(Doubled):
        def run(self, lm: Any, batch: Sequence[int]) -> dict[str, pd.DataFrame]:
            if batch[0] == 3:
                raise KeyboardInterrupt
            return super().run(lm, batch)

    with RunDirectory.open(tmp_path, {}) as directory:
        with pytest.raises(KeyboardInterrupt):
            mapped(LocalEngine(LM, directory), Fails())
        assert directory.manifest["stages"]["doubled"]["state"] == "running"
        stage = Doubled()
        assert mapped(LocalEngine(LM, directory), stage).resumed == 1
        assert stage.ran == [[3, 4, 5], [6]]


def test_progress_counts_what_was_there_and_rates_what_was_done(tmp_path: Path) -> None:
    said: list[Progress] = []
    with RunDirectory.open(tmp_path, {}) as directory:
        mapped(LocalEngine(LM, directory, said.append), Doubled())
        assert [(p.stage, p.done, p.total) for p in said] == [("doubled", n, 7) for n in (0, 3, 6, 7)]
        assert said[0].rate is said[0].left is None
        assert said[1].rate is not None
        assert said[1].left == pytest.approx(4 / said[1].rate)
        said.clear()
        mapped(LocalEngine(LM, directory, said.append), Doubled(), [0, 1, 2, 9])
        assert [p.done for p in said] == [0, 3, 4]
        assert said[1].rate is None
        assert said[2].rate is not None

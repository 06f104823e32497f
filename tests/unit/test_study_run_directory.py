"""Run directories: whole files, sealed units, one process at a time, one run a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

from exitlens.errors import RunError
from exitlens.runs.directory import FORMAT, RunDirectory
from exitlens.storage import atomic

TABLE = pd.DataFrame({"id": ["b", "a"], "value": [1.5, 2.5], "text": ["<script>\x00", "\u202eשלום 🦔"]})


def opened(path: Path, **identity: object) -> RunDirectory:
    return RunDirectory.open(path, {"seed": 1, **identity})


def kept(run: RunDirectory, number: int = 0, key: str = "key") -> None:
    run.units("stage").write(
        number, key, {"t.parquet": lambda file: atomic.write_parquet(file, TABLE)}, {"seconds": 2.0}
    )


def test_a_unit_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        units = run.units("stage")
        assert units.whole(0, "key") is None
        kept(run)
        seal = units.whole(0, "key")
        assert seal is not None
        assert seal.facts == {"seconds": 2.0}
        pd.testing.assert_frame_equal(pd.read_parquet(units.path(0, "key", "t.parquet")), TABLE)
        assert units.whole(0, "other key") is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "no seal", "half a seal", "missing"])
def test_a_damaged_unit_does_not_exist(tmp_path: Path, damage: str) -> None:
    with opened(tmp_path / "run") as run:
        kept(run, 3)
        table = tmp_path / "run/work/stage/00003-key.t.parquet"
        seal = tmp_path / "run/work/stage/00003-key.seal.json"
        content = table.read_bytes()
        if damage == "truncate":
            table.write_bytes(content[: len(content) // 2])
        elif damage == "flip":
            table.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
        elif damage == "no seal":
            seal.unlink()
        elif damage == "half a seal":
            seal.write_bytes(seal.read_bytes()[:20])
        else:
            table.unlink()
        assert run.units("stage").whole(3, "key") is None


def test_equal_tables_give_equal_bytes_whatever_their_order(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as a, opened(tmp_path / "b") as b:
        a.write_table("t", TABLE, ["id"])
        b.write_table("t", TABLE.iloc[::-1], ["id"])
    assert (tmp_path / "a/tables/t.parquet").read_bytes() == (tmp_path / "b/tables/t.parquet").read_bytes()


def test_tables_without_rows_or_without_the_columns_of_the_order_stay_as_they_are(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        assert run.manifest["command"] == ""
        run.write_table("t", TABLE, ["none"])
        run.write_table("none", TABLE.iloc[:0], ["id"])
        found, none = run.table("t"), run.table("none")
    assert found is not None
    assert found["id"].tolist() == ["b", "a"]
    assert none is not None
    assert list(none.columns) == list(TABLE.columns)


def test_half_a_surrogate_pair_is_stored_as_a_replacement_character(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        run.write_table("t", pd.DataFrame({"text": pd.Series(["a\ud800b", "whole"], dtype=object)}))
        table = run.table("t")
    assert table is not None
    assert "\ufffd" in table["text"][0]
    assert table["text"][1] == "whole"


def test_a_second_holder_is_refused_and_a_dead_one_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with opened(folder), pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        opened(folder)
    script = (
        "import os, signal, sys; sys.path.insert(0, 'src')\n"
        "from exitlens.runs.directory import RunDirectory\n"
        f"RunDirectory.open({str(folder)!r}, {{'seed': 1}}); print('held', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "held" in done.stdout, done.stderr
    opened(folder).close()


def test_another_run_is_refused_with_what_differs_and_the_remedy(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        kept(run)
    with pytest.raises(RunError, match=r"its seed is 1, this one's is 2.*--out.*--fresh"):
        RunDirectory.open(tmp_path / "run", {"seed": 2})
    (tmp_path / "run/tables").mkdir()
    (tmp_path / "run/mine.txt").write_text("kept")
    RunDirectory.open(tmp_path / "run", {"seed": 2}, fresh=True).close()
    assert (tmp_path / "run/mine.txt").read_text() == "kept"
    assert not (tmp_path / "run/tables").exists()


def test_a_folder_of_other_files_is_refused_also_with_fresh(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(RunError, match=r"not a run directory.*thesis\.tex.*--out"):
            RunDirectory.open(tmp_path, {"seed": 1}, fresh=fresh)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/run.*--out") as caught:
        opened(tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot write"):
        opened(tmp_path / "run")
    tmp_path.chmod(0o700)


def test_a_full_disk_says_so_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.json"
    atomic.write_json(file, {"old": True})

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(RunError, match=r"no space left.*finished work is kept"):
        atomic.write_json(file, {"new": True})
    assert atomic.read_json(file) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def test_leftovers_of_a_kill_are_swept(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    left = tmp_path / "run" / "work" / "stage" / ".00001-key.t.parquet.77.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    opened(tmp_path / "run").close()
    assert not left.exists()


def test_a_lost_manifest_keeps_the_units(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        kept(run)
    (tmp_path / "run/manifest.json").write_text("{ half")
    with opened(tmp_path / "run") as run:
        assert run.units("stage").whole(0, "key") is not None


def test_reading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        RunDirectory.read(tmp_path)


def test_a_run_of_another_format_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        kept(run)
    manifest = tmp_path / "run" / "manifest.json"
    held = json.loads(manifest.read_bytes())
    atomic.write_json(manifest, {**held, "version": FORMAT + 1})
    with pytest.raises(RunError, match=rf"a run of format {FORMAT + 1}, this version writes {FORMAT}: .*--fresh"):
        opened(tmp_path / "run")
    opened_again = RunDirectory.open(tmp_path / "run", {"seed": 1}, fresh=True)
    assert opened_again.manifest["version"] == FORMAT
    opened_again.close()


@pytest.mark.parametrize("place", ["tables", "work", "work/stage", "states/few-shot", "figures"])
def test_nothing_is_written_through_a_link(tmp_path: Path, place: str) -> None:
    with opened(tmp_path / "run") as run:
        kept(run)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "run" / place
    if link.exists():
        link.rename(tmp_path / "moved")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(RunError, match=rf"'{link}' is a symbolic link.*--out"):
        opened(tmp_path / "run")
    assert list(elsewhere.iterdir()) == []
    (elsewhere / "mine").write_text("kept")
    # With --fresh, links to whole folders of ours are removed, never what they point to.
    if "/" not in place:
        RunDirectory.open(tmp_path / "run", {"seed": 1}, fresh=True).close()
        assert not link.is_symlink()
    assert (elsewhere / "mine").read_text() == "kept"


def test_links_of_files_are_replaced_and_links_of_the_users_own_are_left(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    with opened(tmp_path / "run") as run:
        kept(run)
        (run.path / "tables").mkdir()
        (run.path / "tables" / "t.parquet").symlink_to(precious)
        (run.path / "report.html").symlink_to(precious)
        (run.path / "mine").symlink_to(tmp_path)
        run.write_table("t", TABLE)
    with opened(tmp_path / "run") as run:
        assert not (run.path / "tables" / "t.parquet").is_symlink()
    assert precious.read_text() == "kept"


def test_a_table_is_assembled_from_units(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        for number in range(2):
            kept(run, number)
        units = run.units("stage")
        run.assemble("t", [units.path(number, "key", "t.parquet") for number in range(2)])
        found = run.table("t")
        assert found is not None
        pd.testing.assert_frame_equal(found, pd.concat([TABLE, TABLE], ignore_index=True))
        assert list(run.tables()) == ["t"]
        assert run.table("u") is None


def test_what_the_manifest_says_of_a_stage_adds_up(tmp_path: Path) -> None:
    with opened(tmp_path / "run", data="d") as run:
        kept(run)
        run.stage_state("generate", "running", batches=2)
        assert RunDirectory.read(run.path).manifest["stages"] == {"generate": {"state": "running", "batches": 2}}
        run.stage_state("generate", "done", seconds=1.5)
        run.note(finished="now")
    with RunDirectory.open(tmp_path / "run", {"seed": 1, "statements": "s"}, command="again") as run:
        assert run.manifest["stages"] == {"generate": {"state": "done", "batches": 2, "seconds": 1.5}}
        assert run.manifest["identity"] == {"seed": 1, "data": "d", "statements": "s"}
        assert (run.manifest["command"], run.manifest["finished"]) == ("again", "now")
    finished = RunDirectory.read(tmp_path / "run")
    assert finished.manifest["command"] == "again"
    finished.close()  # it holds no lock
    run.close()  # and neither does a run that was closed


@pytest.mark.parametrize("left", ["nothing", "work/stage/00000-key.seal.json", "seals/00000.seal.json",
                                  "states/zero-shot/shards/00000.seal.json", "tables/t.parquet"])  # fmt: skip
def test_only_finished_work_belongs_to_another_run(tmp_path: Path, left: str) -> None:
    # The first try misspelt the model: it wrote its manifest and then could not load anything.
    RunDirectory.open(tmp_path / "run", {"model": "smolm"}).close()
    if left != "nothing":
        atomic.write_bytes(tmp_path / "run" / left, b"{}")
        with pytest.raises(RunError, match="its model is 'smolm', this one's is 'smollm2'"):
            RunDirectory.open(tmp_path / "run", {"model": "smollm2"})
        return
    with RunDirectory.open(tmp_path / "run", {"model": "smollm2"}, command="again") as run:
        assert run.manifest["identity"] == {"model": "smollm2"}
        assert run.manifest["command"] == "again"


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"}, {"version": True}, {"version": None}, {"identity": []}, {"stages": {"generate": 7}},
        {"stages": []}, {"data": "d"}, {"data": [1]}, {"made": "answers"}, {"made": [1]}, {"model": []},
        {"notes": {}}, {"config": None}, {"exit_times": {}}, {"tokens_per_second": []}, {"probe_verdict": 3},
    ],
)  # fmt: skip
def test_a_wrongly_typed_manifest_is_not_believed(tmp_path: Path, change: dict[str, object]) -> None:
    with opened(tmp_path / "run") as run:
        kept(run)
        run.stage_state("stage", "done")
    manifest = tmp_path / "run" / "manifest.json"
    atomic.write_json(manifest, {**json.loads(manifest.read_bytes()), **change})
    with pytest.raises(RunError, match="holds no run"):
        RunDirectory.read(tmp_path / "run")
    with opened(tmp_path / "run") as run:  # the units are found again by their keys
        assert run.manifest["stages"] == {}
        assert run.manifest["version"] == FORMAT
        assert run.units("stage").whole(0, "key") is not None


@pytest.mark.parametrize("content", ["7", "null", "[]", '"x"', "{}", "[" * 100_000])
def test_a_manifest_that_is_none_is_somebody_elses(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunError, match="holds no run"):
        RunDirectory.read(tmp_path)
    for fresh in (False, True):
        with pytest.raises(RunError, match=r"not a run directory .*manifest\.json"):
            RunDirectory.open(tmp_path, {}, fresh=fresh)
    assert (tmp_path / "manifest.json").read_text() == content


@pytest.mark.parametrize("content", [b"", b"PAR1 half", b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_a_damaged_table_counts_as_not_made(tmp_path: Path, content: bytes) -> None:
    with opened(tmp_path / "run") as run:
        run.write_table("a", TABLE)
        run.write_table("b", TABLE)
        (run.path / "tables" / "a.parquet").write_bytes(content)
        assert run.table("a") is None
        assert list(run.tables()) == ["b"]


def test_what_clearing_left_behind_is_still_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "run") as run:
        kept(run)
        run.write_table("t", TABLE)
        (run.path / "report.html").write_text("old")
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "report.html":
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            RunDirectory.open(tmp_path / "run", {"seed": 2}, fresh=True)
    RunDirectory.open(tmp_path / "run", {"seed": 2}).close()


def test_fresh_removes_what_a_run_makes_and_nothing_else(tmp_path: Path) -> None:
    ours = ("work", "shards", "seals", "tables", "states", "figures")
    with opened(tmp_path / "run") as run:
        for name in (*ours, "mine"):
            atomic.write_bytes(run.path / name / "deep" / "file", b"x")
        for name in ("report.html", "probe.safetensors", "mine.txt"):
            atomic.write_bytes(run.path / name, b"x")
    RunDirectory.open(tmp_path / "run", {"seed": 2}, fresh=True).close()
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", "manifest.json", "mine", "mine.txt"}


def test_a_new_manifest_says_who_made_it_and_with_what(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", {"seed": 1}, command="exitlens run") as run:
        found = run.manifest
    assert set(found) == {
        "version", "command", "config", "identity", "versions", "hardware", "stages", "started", "finished",
    }  # fmt: skip
    assert (found["command"], found["config"], found["stages"], found["finished"]) == ("exitlens run", {}, {}, None)
    packages = (
        "exitlens",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "pandas",
        "pyarrow",
        "python",
    )
    assert set(found["versions"]) == set(packages)
    assert "not installed" not in found["versions"].values()
    assert datetime.fromisoformat(found["started"]).tzinfo is not None

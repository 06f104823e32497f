"""Storage: files whole or not at all, no leftovers, checked seals, joined tables, a lock that follows no link."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from exitlens.errors import InputError, ProbeError, RunError
from exitlens.models.checkpoint import unpacked
from exitlens.storage import atomic, joined_tables
from exitlens.storage.atomic import (
    aside,
    check_writable,
    sweep,
    write_bytes,
    write_file,
    write_folder,
    write_json,
    write_parquet,
    write_tensors,
)
from exitlens.storage.joined_tables import JoinedTables, write_joined
from exitlens.storage.lock import DirectoryLock
from exitlens.storage.sealed import Sealed
from exitlens.storage.tensors import json_header, read_tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def left_by(folder: Path, pid: int, host: str = atomic.HOST, name: str = "heads.safetensors") -> Path:
    """What a process of that id would have left when it was killed."""
    left = folder / f".{name}.{host}-{pid}-0123abcd.tmp"
    left.write_bytes(b"half")
    return left


def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# atomic


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_bytes(file, b"old")

    def fail(part: Path) -> None:
        part.write_bytes(b"new")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_file(file, fail)
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_file_is_flushed_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    rename, fsync = Path.replace, os.fsync

    def flushed(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(atomic.os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    write_bytes(tmp_path / "a", b"x")
    assert done[0].startswith(".a.")
    assert done[1:] == ["rename", tmp_path.name]


def test_a_folder_takes_its_place_whole(tmp_path: Path) -> None:
    with aside(tmp_path / "model") as part:
        (part / "deep").mkdir(parents=True)
        (part / "deep" / "weights").write_bytes(b"w")
        assert names(tmp_path) == [part.name]
    assert (tmp_path / "model" / "deep" / "weights").read_bytes() == b"w"
    assert names(tmp_path) == ["model"]


def test_two_writers_never_share_a_name(tmp_path: Path) -> None:
    with aside(tmp_path / "lens") as one, aside(tmp_path / "lens") as two:
        assert one != two
        one.write_bytes(b"1")
        two.write_bytes(b"2")
    assert (tmp_path / "lens").read_bytes() == b"1"


def test_a_name_of_the_longest_kind_can_be_written(tmp_path: Path) -> None:
    write_bytes(tmp_path / ("n" * 255), b"x")
    assert names(tmp_path) == ["n" * 255]


def test_what_a_dead_process_left_is_swept_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    gone = left_by(tmp_path, dead())
    live = left_by(tmp_path, os.getppid())
    mine = left_by(tmp_path, os.getpid(), name="other")  # of an earlier process of this id
    foreign = left_by(tmp_path, dead(), host="ffffff" if atomic.HOST != "ffffff" else "000000")
    other = tmp_path / ".draft.tmp"
    other.write_text("not ours")
    with aside(tmp_path / "now") as part:
        part.write_bytes(b"x")
        assert not gone.exists()
        assert not mine.exists()
        assert live.exists()
        assert foreign.exists()
        assert other.exists()
        sweep(tmp_path)
        assert part.exists(), "a writer of this process lost its file"
    a_day = time.time() - 86400.5
    os.utime(foreign, (a_day, a_day))
    sweep(tmp_path)
    assert not foreign.exists()
    sweep(tmp_path, alone=True)
    assert names(tmp_path) == ["now"]


def test_a_half_unpacked_folder_is_swept_too_and_links_in_it_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    left = tmp_path / "cache" / f".gguf.{atomic.HOST}-{dead()}-0123abcd.tmp"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"half")
    (left / "link").symlink_to(tmp_path / "kept")
    link = tmp_path / "cache" / f".x.{atomic.HOST}-{dead()}-0123abcd.tmp"
    link.symlink_to(tmp_path / "kept")
    sweep(tmp_path)
    assert len(names(tmp_path / "cache")) == 2
    sweep(tmp_path, below=True)
    assert names(tmp_path / "cache") == []
    assert names(tmp_path / "kept") == ["file"]


def test_a_half_unpacked_model_is_swept_when_the_next_one_is_looked_for(tmp_path: Path) -> None:
    left = tmp_path / f".abc-t5.{atomic.HOST}-{dead()}-0123abcd.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    with unpacked.alone(tmp_path / "other-t5"):
        assert not left.exists()


def test_writing_to_a_link_replaces_the_link(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / "link").symlink_to(target)
    write_bytes(tmp_path / "link", b"new")
    assert target.read_text() == "kept"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_check_writable_leaves_nothing_and_refuses_folders(tmp_path: Path) -> None:
    assert check_writable(tmp_path / "new" / "lens") == tmp_path / "new" / "lens"
    assert names(tmp_path / "new") == []
    (tmp_path / "file").write_text("")
    for path, says in ((tmp_path, "it is a folder"), (tmp_path / "file" / "x", "cannot write")):
        with pytest.raises(RunError, match=says):
            check_writable(path)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"1" * 5_000 + b"}"])
def test_json_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert atomic.read_json(tmp_path / "a.json") is None


def test_keys_are_of_contents_and_not_of_order() -> None:
    assert atomic.canonical({"b": [1, "ü"], "a": Path("x")}) == '{"a":"x","b":[1,"\\u00fc"]}'
    assert atomic.key_of({"b": 1, "a": 2}, "x") == atomic.key_of({"a": 2, "b": 1}, "x") == "7567bd486e64baf5"
    assert atomic.key_of("x", "y") != atomic.key_of("xy")
    assert atomic.text_hash("abc") == "ba7816bf8f01cfea"
    assert atomic.text_hash("\ud800") != atomic.text_hash("\ud801")


def test_a_folder_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(atomic, "sweep", looked.append)
    for name in ("a", "b", "very/deep/c"):
        write_bytes(tmp_path / name, b"x")
    assert looked == [tmp_path, tmp_path / "very" / "deep"]


def test_a_folder_is_filled_file_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "notes").write_text("mine")
    (folder / "weights").write_text("old")

    def make(part: Path) -> None:
        (part / "deep").mkdir(parents=True)
        (part / "weights").write_text("new")
        (part / "deep" / "config").write_text("c")
        assert (folder / "weights").read_text() == "old"

    write_folder(folder, make)
    assert names(folder) == ["deep", "notes", "weights"]
    assert ((folder / "weights").read_text(), (folder / "deep" / "config").read_text()) == ("new", "c")

    def fail(part: Path) -> None:
        make_none = part / "weights"
        part.mkdir()
        make_none.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="no space left"):
        write_folder(folder, fail)
    assert (folder / "weights").read_text() == "new"
    assert names(folder) == ["deep", "notes", "weights"]


def test_odd_values_are_stored(tmp_path: Path) -> None:
    column = pd.Series(["a\ud800", None, pd.NA, float("nan"), "b"], dtype=object)
    write_parquet(tmp_path / "t", pd.DataFrame({"text": column, "flag": [True] * 5, "n": range(5)}))
    table = pq.read_table(tmp_path / "t")
    assert table["text"].to_pylist() == ["a\ufffd\ufffd\ufffd", None, None, None, "b"]
    assert table.schema.metadata is None
    lists, flags = pd.Series([[1, 2], None], dtype=object), pd.Series([True, None], dtype=object)
    mixed = pd.DataFrame({"lists": lists, "flags": flags})
    write_parquet(tmp_path / "t", mixed)
    assert pq.read_table(tmp_path / "t").to_pydict() == {"lists": [[1, 2], None], "flags": [True, None]}
    write_parquet(tmp_path / "t", pd.DataFrame({"text": pd.array(["a", None], dtype="str")}))
    assert str(pq.read_table(tmp_path / "t").schema.field("text").type) == "string"
    write_json(tmp_path / "j", {"path": Path("x"), "word": "ü\ud800"})
    assert (tmp_path / "j").read_text("utf-8") == '{\n  "path": "x",\n  "word": "ü?"\n}\n'
    assert atomic.read_json(tmp_path / "j") == {"path": "x", "word": "ü?"}


def test_tables_are_written_in_one_way(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "n": [1, 2]})
    assert write_parquet(tmp_path / "t", frame) == write_parquet(tmp_path / "u", frame.set_index(pd.Index(["x", "y"])))
    assert (tmp_path / "t").read_bytes() == (tmp_path / "u").read_bytes()
    column = pq.ParquetFile(tmp_path / "t").metadata.row_group(0).column(0)
    assert (column.compression, column.has_dictionary_page, column.is_stats_set) == ("ZSTD", True, True)


def test_floats_take_a_third_less_than_with_a_dictionary(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    values = chance.normal(size=4000).astype(np.float32)
    top = list(chance.normal(size=(4000, 4)).astype(np.float32))
    frame = pd.DataFrame({"z": values, "w": ["a", "b"] * 2000, "top": top})
    write_parquet(tmp_path / "t", frame)
    columns = pq.ParquetFile(tmp_path / "t").metadata.row_group(0)
    kinds = {columns.column(i).path_in_schema: columns.column(i) for i in range(columns.num_columns)}
    assert {name: "BYTE_STREAM_SPLIT" in column.encodings for name, column in kinds.items()} == {
        "z": True, "w": False, "top.list.element": True,
    }  # fmt: skip
    assert kinds["z"].total_compressed_size < 3.7 * len(values)
    table = pq.read_table(tmp_path / "t")
    pq.write_table(table, tmp_path / "before", compression="zstd")  # as earlier versions wrote
    assert pq.read_table(tmp_path / "before").equals(table)
    assert (tmp_path / "before").stat().st_size > 1.4 * (tmp_path / "t").stat().st_size
    assert np.array_equal(table["z"].to_numpy(), values)


# tensors


def test_tensors_and_their_header_come_back(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3).T  # not contiguous
    write_tensors(tmp_path / "t", {"w": weight.requires_grad_()}, {"about": '{"a": 1}'})
    tensors, header = read_tensors(tmp_path / "t")
    assert torch.equal(tensors["w"], weight)
    assert json_header(header, "about") == {"a": 1}
    assert json_header(header, "else") is None
    assert json_header({"about": "[1]"}, "about") is None
    assert json_header({"about": "[" * 100_000}, "about") is None


@pytest.mark.parametrize(
    ("content", "says"), [(None, "no such file: .*; fit it"), (b"junk", "readable safetensors file .*; again")]
)
def test_what_is_no_tensor_file_is_one_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "t").write_bytes(content)
    with pytest.raises(ProbeError, match=says) as caught:
        read_tensors(tmp_path / "t", error=ProbeError, missing="fit it", damaged="again")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is a folder"):
        read_tensors(tmp_path)


# sealed


def write(text: str) -> Callable[[Path], str]:
    return lambda file: write_bytes(file, text.encode())


def test_a_unit_counts_only_with_its_seal_its_key_and_its_files(tmp_path: Path) -> None:
    units = Sealed(tmp_path)
    made = units.write(3, "key", {"b": write("b"), "a": write("a")}, {"n": 1})
    assert list(made.files) == ["a", "b"]
    assert units.whole(3, "key") == units.claimed(3, "key") == made
    assert names(tmp_path) == ["00003.a", "00003.b", "00003.seal.json"]
    assert units.whole(3, "other") is None
    assert units.claimed(3, "other") is None
    assert units.whole(4, "key") is None
    (tmp_path / "00003.b").write_bytes(b"c")
    assert units.whole(3, "key") is None
    assert units.claimed(3, "key") == made


def test_the_seal_is_written_last(tmp_path: Path) -> None:
    def fail(_file: Path) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sealed(tmp_path).write(0, "key", {"a": write("a"), "b": fail}, {})
    assert names(tmp_path) == ["00000.a"]


def test_files_that_are_there_already_belong_to_the_unit(tmp_path: Path) -> None:
    units = Sealed(tmp_path / "files", seals=tmp_path / "seals", keyed=True)
    first = units.write(0, "k", {"a": write("a")}, {})
    both = units.write(0, "k", {"b": write("b")}, {}, beside=first.files)
    assert set(both.files) == {"a", "b"}
    assert names(tmp_path / "files") == ["00000-k.a", "00000-k.b"]
    assert names(tmp_path / "seals") == ["00000-k.seal.json"]
    (tmp_path / "files" / "00000-k.a").unlink()
    assert units.whole(0, "k") is None


@pytest.mark.parametrize(
    "change",
    [
        {"key": 7}, {"files": ["a"]}, {"files": {"a": 1}}, {"files": {"../00000.a": "0"}},
        {"files": {"/etc/passwd": "0"}}, {"files": {"": "0"}}, {"facts": []}, {"facts": None}, {"more": 1},
    ],
)  # fmt: skip
def test_a_wrongly_typed_seal_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    units = Sealed(tmp_path)
    units.write(0, "key", {"a": write("a")}, {})
    seal = json.loads((tmp_path / "00000.seal.json").read_bytes())
    write_json(tmp_path / "00000.seal.json", {**seal, **change})
    assert units.claimed(0, "key") is None
    assert units.whole(0, "key") is None


# joined tables


def parts(folder: Path, *frames: pd.DataFrame) -> list[Path]:
    files = [folder / f"{i}.parquet" for i in range(len(frames))]
    for file, frame in zip(files, frames, strict=True):
        write_parquet(file, frame)
    return files


def test_tables_are_joined_with_the_types_of_those_that_have_rows(tmp_path: Path) -> None:
    files = parts(
        tmp_path,
        pd.DataFrame({"id": [], "n": [], "x": []}),
        pd.DataFrame({"id": ["a"], "n": [1], "x": [None]}),
        pd.DataFrame({"id": ["b"], "n": [2.5], "x": ["s"], "new": [True]}),
    )
    want = {"id": ["a", "b"], "n": [1.0, 2.5], "x": [None, "s"], "new": [None, True]}
    joined = JoinedTables({"t": files})["t"]
    assert joined.astype(object).where(joined.notna(), None).to_dict("list") == want
    write_joined(tmp_path / "all.parquet", files)
    assert pq.read_table(tmp_path / "all.parquet").to_pydict() == want
    only_empty = parts(tmp_path, pd.DataFrame({"id": pd.Series(dtype=object), "n": pd.Series(dtype="int64")}))
    write_joined(tmp_path / "none.parquet", only_empty)
    assert pq.read_table(tmp_path / "none.parquet").to_pydict() == {"id": [], "n": []}
    assert list(JoinedTables({"t": only_empty})["t"].columns) == ["id", "n"]


def test_joined_rows_are_written_in_groups_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_tables, "GROUP_ROWS", 5)
    files = parts(tmp_path, *(pd.DataFrame({"n": range(3 * i, 3 * i + 3)}) for i in range(5)))
    first = write_joined(tmp_path / "all.parquet", files)
    found = pq.ParquetFile(tmp_path / "all.parquet")
    assert [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)] == [6, 6, 3]
    assert found.read()["n"].to_pylist() == list(range(15))
    assert write_joined(tmp_path / "again.parquet", files) == first
    exact = parts(tmp_path, *(pd.DataFrame({"n": range(5)}) for _ in range(2)))
    write_joined(tmp_path / "exact.parquet", exact)
    assert pq.ParquetFile(tmp_path / "exact.parquet").num_row_groups == 2


def test_tables_are_read_anew_each_time_and_are_a_mapping(tmp_path: Path) -> None:
    files = parts(tmp_path, pd.DataFrame({"n": [1]}))
    tables = JoinedTables({"t": files})
    assert (list(tables), len(tables), "t" in tables, "u" in tables) == (["t"], 1, True, False)
    assert tables.files("t") == tuple(files)
    write_parquet(files[0], pd.DataFrame({"n": [2]}))
    assert tables["t"]["n"].tolist() == [2]


# lock


def test_a_lock_never_empties_what_a_link_points_to(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").symlink_to(precious)
    with pytest.raises(RunError, match=r"\.lock' is a symbolic link"):
        DirectoryLock(folder).acquire()
    assert precious.read_text() == "years of work"


def test_a_lock_is_held_by_one_and_names_its_holder(tmp_path: Path) -> None:
    lock, other = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    lock.release()
    lock.acquire()
    for _ in range(2):  # asking does not wear it out
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}: wait"):
            other.acquire()
    lock.release()
    other.acquire()
    with pytest.raises(RunError, match="in use"):
        lock.acquire()
    other.release()


def test_a_lock_in_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        DirectoryLock(tmp_path / "file").acquire()

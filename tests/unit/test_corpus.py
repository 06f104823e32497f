"""Reading any amount of text into shards: the right numbers, the same bytes after a kill, flat memory, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.lens_model import SmallModel

from exitlens.data.texts import TextFile
from exitlens.errors import ContextError, DataError, InputError, LayerError, RunError
from exitlens.lenses import read
from exitlens.runs.directory import RunDirectory
from exitlens.runs.engine import LocalEngine
from exitlens.storage import sealed as sealed_units
from exitlens.studies.corpus import read as corpus
from exitlens.studies.corpus.read import CorpusSettings, read_corpus
from exitlens.version import __version__

TEXTS = ["abc", "a", "", "hello worl", "no", "lens of a", "x", "seven of"]
STATS = ("entropy", "top_k", "logprob", "rank", "kl", "agreement", "saturation", "cosine")


def lines(folder: Path, texts: list[str] = TEXTS, name: str = "t.jsonl") -> TextFile:
    path = folder / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TextFile(path)


def settings(**changed: Any) -> CorpusSettings:
    return CorpusSettings(**{"stats": STATS, "shard_tokens": 9, "precision": "exact", "top_k": 3, **changed})


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").glob("*.parquet"))}


def test_every_row_is_what_read_gives(tmp_path: Path) -> None:
    model = SmallModel()
    found = read_corpus(LocalEngine(model), lines(tmp_path), tmp_path / "out", settings())
    frame = pd.read_parquet(tmp_path / "out" / "shards")
    trace = read(model, [t for t in TEXTS if t], stats=STATS, top_k=3)
    want = trace.to_pandas().sort_values(["text", "position", "layer"], kind="stable", ignore_index=True)
    numbers = [i for i, text in enumerate(TEXTS) if text]
    assert frame["text"].tolist() == [numbers[i] for i in want["text"]]
    for name in ("position", "layer", "token_id", "token", "agreement", "saturation"):
        assert frame[name].tolist() == want[name].tolist()
    for name in ("entropy", "logprob", "kl", "cosine"):
        assert np.allclose(frame[name], want[name], atol=1e-5, equal_nan=True)
    assert frame["rank"].isna().sum() == (want["rank"] < 0).sum() == 7 * 5
    assert np.array_equal(np.stack(frame["top_ids"]), want[["top_ids_0", "top_ids_1", "top_ids_2"]])
    assert [list(words) for words in frame["top_tokens"]] == [[model.token(i) for i in ids] for ids in frame["top_ids"]]
    assert found.tokens == sum(trace.lengths) == found.fresh_tokens
    assert found.survey.empty == 1
    means = frame.groupby("layer")[["entropy", "kl", "agreement", "logprob"]].mean()
    assert np.allclose(found.by_layer.set_index("layer")[means.columns], means, atol=1e-5)
    assert found.saturation == pytest.approx(frame["saturation"].mean())


def test_formats_give_the_same(tmp_path: Path) -> None:
    model = SmallModel()
    texts = [t for t in TEXTS if t]
    pq.write_table(pa.table({"text": texts, "other": list(range(7))}), tmp_path / "t.parquet", row_group_size=2)
    (tmp_path / "t.txt").write_text("\n".join(texts))
    (tmp_path / "p.txt").write_text("\n\n \n".join(texts) + "\n")
    files = [lines(tmp_path, texts), TextFile(tmp_path / "t.parquet"), TextFile(tmp_path / "t.txt")]
    files.append(TextFile(tmp_path / "p.txt", split="paragraphs"))
    out = []
    for i, file in enumerate(files):
        read_corpus(LocalEngine(model), file, tmp_path / str(i), settings())
        out.append(shards(tmp_path / str(i)))
    assert out[0]
    assert all(each == out[0] for each in out)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 5, 7])
def test_killed_and_started_again_it_repeats_nothing_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    model, source = SmallModel(), lines(tmp_path)
    options = settings(long="split", overlap=2, shard_tokens=6)
    whole = read_corpus(LocalEngine(model), source, tmp_path / "whole", options)
    assert whole.shards > 3
    calls = 0

    def counted(original: Any, stop: bool) -> Any:
        def write(path: Path, *value: Any, **named: Any) -> str:
            nonlocal calls
            calls += 1
            if stop and calls == after:
                raise Killed
            return str(original(path, *value, **named))

        return write

    # Killed at a shard's table (odd) or at its seal (even).
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "write_table", counted(corpus.write_table, True))
        patch.setattr(sealed_units, "write_json", counted(sealed_units.write_json, True))
        with pytest.raises(Killed):
            read_corpus(LocalEngine(model), source, tmp_path / "killed", options)
    sealed = list((tmp_path / "killed" / "seals").glob("*.json"))
    assert len(sealed) == (after - 1) // 2
    calls = 0
    monkeypatch.setattr(corpus, "write_table", counted(corpus.write_table, False))
    ticks: list[int] = []
    again = read_corpus(LocalEngine(model), source, tmp_path / "killed", options, tick=ticks.append)
    assert calls == whole.shards - len(sealed)
    assert again.tokens == whole.tokens
    assert (again.fresh_tokens < whole.tokens) == bool(sealed)
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    assert sum(ticks) == whole.survey.characters
    pd.testing.assert_frame_equal(again.by_layer, whole.by_layer)
    for name in ("tables/by_layer.parquet", "seals/00001.seal.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_damaged_shard_alone_is_made_again(tmp_path: Path) -> None:
    model, source = SmallModel(), lines(tmp_path)
    first = read_corpus(LocalEngine(model), source, tmp_path / "out", settings())
    before = shards(tmp_path / "out")
    (tmp_path / "out" / "shards" / "00001.parquet").write_bytes(b"half")
    again = read_corpus(LocalEngine(model), source, tmp_path / "out", settings())
    assert 0 < again.fresh_tokens < first.tokens / 2
    assert shards(tmp_path / "out") == before
    assert read_corpus(LocalEngine(model), source, tmp_path / "out", settings()).fresh_tokens == 0


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": "5"}, {"end": [1]}, {"last": 0}, {"notes": "none"}, {"sums": {"entropy": [[1.0, 1]]}},
        {"sums": {"entropy": 7}}, {"sums": {"saturation": []}}, {"split": 1, "overlap": 3}, {"more": 1}, {"end": None},
    ],
)  # fmt: skip
def test_a_seal_that_makes_no_sense_is_made_again(tmp_path: Path, change: dict[str, Any]) -> None:
    model, source = SmallModel(), lines(tmp_path)
    first = read_corpus(LocalEngine(model), source, tmp_path / "out", settings())
    before = shards(tmp_path / "out")
    seal = tmp_path / "out" / "seals" / "00001.seal.json"
    held = json.loads(seal.read_bytes())
    seal.write_text(json.dumps({**held, "facts": {**held["facts"], **change}}))
    again = read_corpus(LocalEngine(model), source, tmp_path / "out", settings())
    assert 0 < again.fresh_tokens < first.tokens
    assert shards(tmp_path / "out") == before
    assert json.loads(seal.read_bytes()) == held
    pd.testing.assert_frame_equal(again.by_layer, first.by_layer)


def test_a_reading_that_another_version_continued_says_which_made_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source, out = SmallModel(), lines(tmp_path), tmp_path / "out"
    first = read_corpus(LocalEngine(model), source, out, settings())
    assert RunDirectory.read(out).manifest["stages"]["read"]["made_by"] == {__version__: first.shards}
    assert not any("another version" in note for note in first.notes)
    seals = sorted((out / "seals").iterdir())
    held = json.loads(seals[0].read_bytes())
    assert held["facts"].pop("version") == __version__
    seals[0].write_text(json.dumps(held))  # as versions wrote it that did not say who they were
    seals[1].unlink()
    monkeypatch.setattr(corpus, "__version__", "9.9")
    again = read_corpus(LocalEngine(model), source, out, settings())
    assert 0 < again.fresh_tokens < first.tokens / 2
    rest = first.shards - 2
    assert RunDirectory.read(out).manifest["stages"]["read"]["made_by"] == {__version__: rest, "9.9": 1, "unknown": 1}
    assert again.notes[-1] == (
        f"Stage read was continued by another version of exitlens: {rest} of {first.shards} shards by {__version__}, "
        "1 by 9.9, 1 by unknown."
    )


def test_shards_of_another_reading_are_not_taken_when_the_manifest_is_lost(tmp_path: Path) -> None:
    model, source = SmallModel(), lines(tmp_path)
    read_corpus(LocalEngine(model), source, tmp_path / "out", settings())
    (tmp_path / "out" / "manifest.json").write_text("{ half")
    again = read_corpus(LocalEngine(model), source, tmp_path / "out", settings())
    assert again.fresh_tokens == 0
    (tmp_path / "out" / "manifest.json").write_text("{ half")
    other = read_corpus(LocalEngine(model), source, tmp_path / "out", settings(lens="raw"))
    assert other.fresh_tokens == other.tokens


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"stats": ("entropy",)}, "its stats are 'entropy', 'top_k'.*this one's are 'entropy'.*--fresh"),
        ({"layers": (4,)}, "its layers are 0, 1, 2, 3, 4, this one's are 4;"),
        ({"lens": "raw"}, "its lens is 'logit', this one's is 'raw'"),
        ({"top_k": 2}, "its top_k is 3, this one's is 2"),
        ({"limit": 3}, "its limit is not set, this one's is 3"),
    ],
)
def test_other_arguments_are_refused_by_name(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    model, source = SmallModel(), lines(tmp_path)
    read_corpus(LocalEngine(model), source, tmp_path / "out", settings())
    before = shards(tmp_path / "out")
    with pytest.raises(RunError, match=says):
        read_corpus(LocalEngine(model), source, tmp_path / "out", settings(**changed))
    assert shards(tmp_path / "out") == before
    read_corpus(LocalEngine(model), source, tmp_path / "out", settings(**changed), fresh=True)
    assert shards(tmp_path / "out") != before


def test_another_model_text_or_run_is_refused(tmp_path: Path) -> None:
    model, source = SmallModel(), lines(tmp_path)
    read_corpus(LocalEngine(model), source, tmp_path / "out", settings())
    other = SmallModel()
    other.fingerprint = "small-1"
    with pytest.raises(RunError, match="its model_hash is 'small-0', this one's is 'small-1'"):
        read_corpus(LocalEngine(other), source, tmp_path / "out", settings())
    with pytest.raises(RunError, match="its text_hash is"):
        read_corpus(LocalEngine(model), lines(tmp_path, [*TEXTS, "more"]), tmp_path / "out", settings())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"version": 1, "identity": {"seed": 1}, "stages": {}}))
    with pytest.raises(RunError, match="belongs to another run, not to exitlens read"):
        read_corpus(LocalEngine(model), source, tmp_path / "run", settings(), fresh=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match=r"thesis\.txt"):
        read_corpus(LocalEngine(model), source, tmp_path / "mine", settings())


def test_a_long_text_is_refused_and_then_split_without_starting_over(tmp_path: Path) -> None:
    model, source = SmallModel(), lines(tmp_path, ["short one", "of", "a text that is over the context of twelve"])
    with pytest.raises(ContextError, match="text 2 has 42 tokens, over the context of 12"):
        read_corpus(LocalEngine(model), source, tmp_path / "out", settings())
    found = read_corpus(LocalEngine(model), source, tmp_path / "out", settings(long="split", overlap=4))
    assert found.fresh_tokens < found.tokens
    assert any("split" in note for note in found.notes)
    frame = pd.read_parquet(tmp_path / "out" / "shards")
    assert frame[frame["text"] == 2]["position"].tolist() == [p for p in range(42) for _ in range(5)]
    with pytest.raises(InputError, match="overlap 12 does not fit"):
        read_corpus(LocalEngine(model), source, tmp_path / "other", settings(long="split", overlap=12))


def test_what_was_refused_leaves_no_trace(tmp_path: Path) -> None:
    model, source = SmallModel(), lines(tmp_path)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"layers": (5,)}, LayerError, "layer 5 is out of range"),
        ({"top_k": 204}, InputError, "top_k 204 .* vocabulary of 203"),
        ({"stats": ("mood",)}, InputError, "unknown statistic 'mood'"),
        ({"stats": ("choices",)}, InputError, "look --choices"),
        ({"stats": ()}, InputError, "no statistic"),
        ({"stats": ("kl",), "layers": (0,)}, LayerError, "layer 4, which was not recorded"),
        ({"lens": "focal"}, InputError, "'focal'"),
        ({"shard_tokens": 0}, InputError, "shard_tokens 0"),
    ]
    for changed, error, says in wrong:
        with pytest.raises(error, match=says):
            read_corpus(LocalEngine(model), source, tmp_path / "out", settings(**changed))
    read_corpus(LocalEngine(model), source, tmp_path / "out", settings())


def test_texts_of_one_token(tmp_path: Path) -> None:
    model = SmallModel()
    model.encode = lambda text, special=True: [5]  # type: ignore[method-assign]
    read_corpus(LocalEngine(model), lines(tmp_path, ["a", "b"]), tmp_path / "out", settings())
    frame = pd.read_parquet(tmp_path / "out" / "shards")
    assert frame["entropy"].notna().all()
    assert frame["logprob"].isna().all()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.jsonl", b'{"text": "a"}\nnot json\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "a"}\n', r"line 1 has no field 'text' \(it has 'body'\).*--field"),
        ("a.jsonl", b'["a"]\n', "line 1 has no field 'text'"),
        ("a.jsonl", b'{"text": 7}\n', "line 1: 'text' is '7', not a text"),
        ("a.txt", b"good\n\xff\xfe", "line 2 is not UTF-8"),
        ("a.parquet", b"PAR1 broken", "not a whole Parquet file"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        TextFile(tmp_path / name).survey()


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none.txt", "no such data file"), (tmp_path, "is a folder")):
        with pytest.raises(DataError, match=says):
            TextFile(path).survey()
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"no column 'text' \(it has 'body'\)"):
        TextFile(tmp_path / "b.parquet").survey()
    assert TextFile(tmp_path / "b.parquet", field="body").survey().texts == 1


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Peak of what Python holds over the file's lines: the same for a file of 20 times the size."""
    import tracemalloc

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as handle:
            for i in range(count):
                handle.write(json.dumps({"text": f"{i} " * 50}) + "\n")
        file = TextFile(path)
        tracemalloc.start()
        assert file.survey().texts == count
        for _ in file.texts():
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small = peak(50)
    assert peak(1_000) < 1.5 * small + 100_000


def test_one_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXITLENS_MAX_LINE_MIB", "1")
    (tmp_path / "a.txt").write_text("x" * (1 << 20) + "yy")
    with pytest.raises(DataError, match=r"line 1 is too long.*the limit is 1 MiB; EXITLENS_MAX_LINE_MIB raises"):
        TextFile(tmp_path / "a.txt").survey()
    (tmp_path / "b.txt").write_text(("x" * 100_000 + "\n") * 12)
    with pytest.raises(DataError, match="too long a paragraph before line"):
        TextFile(tmp_path / "b.txt", split="paragraphs").survey()


def test_a_parquet_file_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    one_long = pa.table({"text": ["x" * 200_000_000]})
    many = pa.table({"text": ["x" * 7_000_000] * 12})
    pq.write_table(one_long, tmp_path / "one.parquet", compression="zstd")
    pq.write_table(many, tmp_path / "many.parquet", compression="zstd", use_dictionary=False)
    for name in ("one", "many"):
        file = TextFile(tmp_path / f"{name}.parquet")
        assert file.path.stat().st_size < 10_000
        assert python_and_arrow_peak(file) < 8 << 20
        with pytest.raises(DataError, match=r"row group 0 unpacks from [\d,]+ to [\d,]+ bytes: write it again"):
            file.survey()
    # The same texts in a group each may be read: no group is large.
    pq.write_table(many, tmp_path / "many.parquet", compression="zstd", use_dictionary=False, row_group_size=1)
    assert TextFile(tmp_path / "many.parquet").survey().characters == 84_000_000


def python_and_arrow_peak(file: TextFile) -> int:
    """Bytes that Arrow took at most while the file was refused, above what it held."""
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(DataError):
            file.survey()
    finally:
        pa.set_memory_pool(before)
    return int(pool.max_memory())


def test_a_text_that_stands_in_many_rows_is_held_once(tmp_path: Path) -> None:
    # 500 bytes on disk, 1.8 GB as 256 rows of Arrow.
    pq.write_table(pa.table({"text": ["x" * 7_000_000] * 256}), tmp_path / "same.parquet", compression="zstd")
    assert (tmp_path / "same.parquet").stat().st_size < 2_000
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert sum(len(text) for _, text in TextFile(tmp_path / "same.parquet").texts()) == 256 * 7_000_000
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 100 << 20


def test_a_text_longer_than_a_line_may_be_is_refused_in_parquet_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXITLENS_MAX_LINE_MIB", "1")
    most = 1 << 20
    for dictionary in (True, False):
        table = pa.table({"text": ["x" * most, None, "x" * (most + 1)]})
        pq.write_table(table, tmp_path / "t", use_dictionary=dictionary)
        (tmp_path / "t").rename(tmp_path / "t.parquet")
        file = TextFile(tmp_path / "t.parquet")
        assert next(file.texts()) == (0, "x" * most)
        with pytest.raises(DataError, match=r"row 2 has a text of 1,048,577 bytes: cut it up .the limit is 1 MiB"):
            file.survey()


def test_large_ordinary_groups_are_read_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exitlens.data.texts.UNPACKED", 10_000)
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(33, 126, 5_000))) for _ in range(40)]
    pq.write_table(pa.table({"other": range(40), "text": texts}), tmp_path / "t.parquet", use_dictionary=False)
    sizes: list[int] = []
    iterate = pq.ParquetFile.iter_batches

    def counted(self: Any, batch_size: int, **options: Any) -> Any:
        sizes.append(batch_size)
        return iterate(self, batch_size=batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert [text for _, text in TextFile(tmp_path / "t.parquet").texts()] == texts
    assert sizes == [1]


def test_parquet_columns_of_other_kinds_and_columns_that_stand_twice(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    for values, says in (
        ([1, 2], "'text' is '1', not a text"),
        ([["a"], ["b"]], "not a text"),
        ([b"\xff"], "not a text"),
    ):
        pq.write_table(pa.table({"text": values}), file)
        with pytest.raises(DataError, match=says):
            TextFile(file).survey()
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), file)
    with pytest.raises(DataError, match="several columns 'text'"):
        TextFile(file).survey()
    wrong = pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"text": wrong}), file)
    with pytest.raises(DataError, match="not a whole Parquet file"):
        TextFile(file).survey()

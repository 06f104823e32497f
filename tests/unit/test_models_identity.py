"""A model is known by all of its bytes, whatever its files are called, and derived copies are never trusted blindly."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import exitlens
from exitlens.models import wrap
from exitlens.models.checkpoint import identity, unpacked
from exitlens.models.hub import catalog
from exitlens.storage.cache_folder import cache_dir

from .. import tiny


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own; hashes of files that were just written are kept, too."""
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_SETTLED", -1.0)


def _mark(folder: Path) -> str:
    return exitlens.load(folder, dtype="float32").fingerprint


def test_the_hash_is_of_all_bytes_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    assert identity.file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(identity, "_hashed", lambda *_: pytest.fail("read again"))
    first = identity.file_hash(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert identity.file_hash(link) == first


def test_blocks_and_readers_give_one_hash_and_see_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_BLOCK", 1000)
    monkeypatch.setattr(identity, "_READ", 64)
    path, payload = tmp_path / "file", bytearray(os.urandom(4500))
    path.write_bytes(payload)
    parts = [hashlib.sha256(payload[i : i + 1000]).digest() for i in range(0, 4500, 1000)]
    want = hashlib.sha256(b"".join(parts)).hexdigest()
    assert identity.file_hash(path) == want
    for place in (0, 999, 1000, 4499):
        payload[place] ^= 1
        path.write_bytes(payload)
        assert identity.file_hash(path) != want
        payload[place] ^= 1


def test_a_change_that_sets_the_time_back_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100)
    before, status = identity.file_hash(path), path.stat()
    time.sleep(0.02)
    with path.open("r+b") as file:
        file.seek(50)
        file.write(b"b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert identity.file_hash(path) != before


def test_a_cache_that_cannot_be_used_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    (tmp_path / "blocked").write_text("a file where the cache should be")
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "blocked"))
    assert identity.file_hash(path) == hashlib.sha256(b"abc").hexdigest()
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "cache"))
    identity.file_hash(path)
    for entry in (tmp_path / "cache" / "hashes").iterdir():
        for said in ("[", '{"state": 3}', '{"hash": "x"}', "[]"):
            entry.write_text(said)
            assert identity.file_hash(path) == hashlib.sha256(b"abc").hexdigest()


def _rows(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"][100:108] += 0.01


def _one_value(tensors: dict[str, torch.Tensor]) -> None:
    flat = tensors["model.layers.1.mlp.up_proj.weight"].view(-1)
    flat[777] = torch.nextafter(flat[777], torch.tensor(9.0))


@pytest.mark.parametrize("change", [_rows, _one_value])
def test_any_change_of_weights_is_another_model(change: Callable[[Any], None], tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    before, model = _mark(folder), tiny.model("llama")
    held = wrap(model, tiny.tokenizer()).fingerprint
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert _mark(folder) != before
    change(dict(model.state_dict()))
    assert wrap(model, tiny.tokenizer()).fingerprint != held


def test_the_configuration_and_the_tokenizer_belong_to_it(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    before = _mark(folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"rms_norm_eps": 1e-3}))
    assert _mark(folder) != before
    (folder / "config.json").write_text(json.dumps(said))
    changed = _mark(folder)
    (folder / "README.md").write_text("says nothing about numbers")
    assert _mark(folder) == changed
    model = tiny.model("llama")
    held = wrap(model, tiny.tokenizer()).fingerprint
    assert wrap(tiny.model("llama"), tiny.tokenizer(), name="other").fingerprint == held
    model.config.rms_norm_eps = 1e-3
    assert wrap(model, tiny.tokenizer()).fingerprint != held


def test_the_same_bytes_elsewhere_are_the_same_model(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    before = _mark(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert _mark(tmp_path / "elsewhere") == before
    (tmp_path / "link").symlink_to(folder)
    assert _mark(tmp_path / "link") == before
    assert exitlens.load(folder, dtype="bfloat16").fingerprint == before


# ---- the unpacked copy of a GGUF file


def _copy(tmp_path: Path) -> Path:
    """A small stand-in: what :func:`unpacked.keep` writes and :func:`unpacked.what_is_wrong` looks at."""
    folder = unpacked.copy_folder("d" * 64, "5")

    def write(place: Path) -> None:
        (place / "model.safetensors").write_bytes(os.urandom(4096) * 3)
        (place / "config.json").write_text('{"rope_theta": 100000.0}')

    assert unpacked.what_is_wrong(folder) == "it is not there"
    assert unpacked.keep(folder, write)
    assert unpacked.what_is_wrong(folder) is None
    return folder


def _flip(path: Path) -> None:
    payload = bytearray(path.read_bytes())
    payload[1234 % len(payload)] ^= 1
    path.write_bytes(payload)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit": (lambda f: _flip(f / "model.safetensors"), "model.safetensors is damaged"),
    "zeros": (lambda f: (f / "model.safetensors").write_bytes(bytes(4096 * 3)), "model.safetensors is damaged"),
    "cut": (lambda f: os.truncate(f / "model.safetensors", 100), "model.safetensors is not as"),
    "a setting": (lambda f: (f / "config.json").write_text('{"rope_theta": 500000.0}'), "config.json is damaged"),
    "gone": (lambda f: (f / "config.json").unlink(), "config.json is not as"),
    "more": (lambda f: (f / "generation_config.json").write_text("{}"), "generation_config.json is not as"),
    "no list": (lambda f: (f / "contents.json").unlink(), "no list"),
    "a bad list": (lambda f: (f / "contents.json").write_text('{"config.json": 3}'), ""),
    "an empty list": (lambda f: (f / "contents.json").write_text("{}"), "is not as"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_copy_is_checked_and_made_again(kind: str, tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    change, message = DAMAGE[kind]
    change(folder)
    wrong = unpacked.what_is_wrong(folder)
    assert wrong is not None
    assert message in wrong
    assert unpacked.keep(folder, lambda place: (place / "config.json").write_text("{}") and None)
    assert unpacked.what_is_wrong(folder) is None


def test_a_killed_or_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    folder = unpacked.copy_folder("d" * 64, "5")

    def fail(place: Path) -> None:
        (place / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "no space")

    assert not unpacked.keep(folder, fail)
    assert not folder.exists()
    assert not list(folder.parent.iterdir())


@pytest.mark.slow
def test_a_damaged_copy_of_the_built_in_model_is_made_again(
    builtin_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = ["The capital of France is"]
    first = exitlens.load(builtin_path, dtype="float32")
    want = first.read(text).to_pandas()
    assert first.fingerprint == catalog.CATALOG["smollm2-135m"].members[0].sha256
    folder = next((cache_dir() / "converted").glob("*-checked"))
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(200_000_000)
        file.write(bytes(4096))
    again = exitlens.load(builtin_path, dtype="float32")
    assert "model.safetensors is damaged" in caplog.text
    assert again.read(text).to_pandas().equals(want)
    assert unpacked.what_is_wrong(folder) is None

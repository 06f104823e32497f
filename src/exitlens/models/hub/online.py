"""Is a name one of the Hub's, and can the Hub be reached?

The Hub is asked once, briefly, so that a machine without a network hears so within seconds.
"""

from __future__ import annotations

import functools
import re
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from exitlens.errors import InputError, ModelNotFound
from exitlens.models.hub import catalog

__all__ = ["hub_answers", "hub_name", "local"]

_WAIT = 3.0  # seconds; transformers itself tries for 50
# Letters, digits, - _ . in both parts, as the Hub has it.
_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")


def local(text: str, what: str) -> Path:
    """``text`` as a path. Raises :class:`ModelNotFound` where no file system could hold it."""
    if "\0" in text or len(text) > 4096:
        raise ModelNotFound(f"no {what} named {text[:80]!r}: it is no name of a file, a folder or a Hub id")
    return Path(text).expanduser()


def hub_name(text: str, revision: str | None, what: str) -> tuple[str, str | None]:
    """``text`` (org/name or org/name@revision), which is no file or folder, as repository and revision.

    Raises:
        ModelNotFound: It is no Hub id: a path that is not there, or is neither a file nor a folder.
        InputError: The repository's name is a folder here, or two revisions are named.
    """
    path = local(text, what)
    try:
        odd = path.exists() or path.is_symlink()
    except OSError:  # a name that the file system does not take
        odd = False
    if odd:
        raise ModelNotFound(f"{text!r} is neither a file nor a folder (a pipe, device, socket or broken link)")
    if path.suffix == ".gguf" or path.is_absolute() or text.startswith((".", "~")):
        raise ModelNotFound(f"no {what} at {text[:80]!r}: no such file or folder")
    repo, _, tag = text.partition("@")
    if _ID.fullmatch(repo) is None or len(repo) > 200 or ".." in repo:
        raise ModelNotFound(
            f"no {what} named {text[:80]!r}: not in the catalogue ({catalog.nearest(text[:80])}), not a folder, not a "
            "Hub id org/name"
        )
    if Path(repo).exists():
        raise InputError(f"{repo!r} is a folder here, which has no revision {tag!r}: give '{repo}', or run elsewhere")
    if revision and tag and revision != tag:
        raise InputError(f"{text!r} and --revision {revision} name two revisions: give one")
    return repo, revision or tag or None


@functools.cache
def hub_answers() -> bool:
    """True when a connection to the Hub (or to the proxy that leads there) can be opened; False when set offline."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    found: list[bool] = []
    # Looking up a name cannot be given a time limit, so it is done aside.
    thread = threading.Thread(target=lambda: found.append(_opens(host, port)), daemon=True)
    thread.start()
    thread.join(_WAIT)
    return bool(found and found[0])


def _opens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_WAIT):
            return True
    except OSError:
        return False

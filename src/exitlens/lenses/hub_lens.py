"""Lens files on the Hub: ``org/name``, ``org/name@revision``, ``org/name/file.pt``."""

from __future__ import annotations

import re
from pathlib import Path

from exitlens.errors import InputError
from exitlens.models.hub.online import hub_answers

__all__ = ["fetch", "is_hub_lens"]

_WORD = re.compile(r"(?P<repo>[A-Za-z0-9][\w.\-]*/[\w.\-]+)(?:@(?P<tag>[\w.\-]+))?(?:/(?P<file>[\w.\-/]+))?")
_ENDINGS = (".safetensors", ".pt", ".pth")


def is_hub_lens(text: str) -> bool:
    """True for what can only be a place on the Hub: no path that leads anywhere here, and in the Hub's spelling."""
    return _WORD.fullmatch(text) is not None and ".." not in text and not Path(text.partition("/")[0]).exists()


def fetch(text: str) -> Path:
    """The lens file at this place, fetched or taken from the Hub's cache.

    Raises:
        InputError: It cannot be reached, there is no such file, or the repository holds several.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    match = _WORD.fullmatch(text)
    assert match is not None
    repo, tag, file = match["repo"], match["tag"], match["file"]
    online = hub_answers()
    try:
        if file is None and online:
            file = _only(
                [name for name in HfApi().list_repo_files(repo, revision=tag) if name.endswith(_ENDINGS)], text
            )
        if file is None:
            folder = Path(snapshot_download(repo, revision=tag, local_files_only=True))
            found = [path for path in sorted(folder.rglob("*")) if path.suffix in _ENDINGS]
            return folder / _only([str(path.relative_to(folder)) for path in found], text)
        return Path(hf_hub_download(repo, file, revision=tag, local_files_only=not online))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = "the Hub cannot be reached" if not online else " ".join(str(error).split())[:80]
        raise InputError(f"no lens '{text[:80]}': no such file or kept name here, and not on the Hub ({why})") from None


def _only(names: list[str], text: str) -> str:
    if len(names) != 1:
        which = (
            f"{len(names)} lens files ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else "none"
        )
        raise InputError(f"'{text[:80]}' holds {which}: name one file, as in {text.partition('@')[0][:60]}/lens.pt")
    return names[0]

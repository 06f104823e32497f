"""Numbered units of work that count only once their seal is written; what is not whole is made again.

    FOLDER/00007.<name>            the unit's files
    SEALS/00007.seal.json          its key, the sha256 of each file, and facts about it; written last

``keyed`` units are called 00007-<key>, so that those of other settings stay beside them. The key hashes what decides a
unit's contents. A unit whose seal is missing, half-written, of another key, or does not match a file, does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exitlens.storage.atomic import sha256_file, write_json

__all__ = ["Seal", "Sealed"]


class Seal(BaseModel):
    """What a seal says. ``files``: sha256 by the name that ends a file's path; a name never leads out of the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")], str]
    facts: dict[str, Any]


class Sealed:
    """A folder of units. ``seals``: where the seals lie (default: beside the files)."""

    def __init__(self, folder: Path, *, seals: Path | None = None, keyed: bool = False) -> None:
        self.folder = folder
        self.seals = seals if seals is not None else folder
        self.keyed = keyed

    def path(self, number: int, key: str, name: str) -> Path:
        """Where a unit's file lies."""
        return self.folder / f"{self._stem(number, key)}.{name}"

    def claimed(self, number: int, key: str) -> Seal | None:
        """The seal of a unit, if it has one of this key; its files are not looked at."""
        try:
            seal = Seal.model_validate_json(self._seal(number, key).read_bytes())
        except (OSError, ValidationError, RecursionError):
            return None
        return seal if seal.key == key else None

    def whole(self, number: int, key: str) -> Seal | None:
        """The seal of a unit whose files are all as it says; None otherwise."""
        seal = self.claimed(number, key)
        if seal is None or any(sha256_file(self.path(number, key, n)) != sha for n, sha in seal.files.items()):
            return None
        return seal

    def write(
        self,
        number: int,
        key: str,
        files: Mapping[str, Callable[[Path], str]],
        facts: Mapping[str, Any],
        *,
        beside: Mapping[str, str] | None = None,
    ) -> Seal:
        """Write a unit's files, in the order of their names, and then the seal that makes them count.

        ``files[name]`` writes a file and returns its sha256; ``beside``: files of the unit that are there already.
        """
        made = {name: files[name](self.path(number, key, name)) for name in sorted(files)}
        seal = Seal(key=key, files={**(beside or {}), **made}, facts=dict(facts))
        write_json(self._seal(number, key), seal.model_dump())
        return seal

    def _stem(self, number: int, key: str) -> str:
        return f"{number:05d}-{key}" if self.keyed else f"{number:05d}"

    def _seal(self, number: int, key: str) -> Path:
        return self.seals / f"{self._stem(number, key)}.seal.json"

"""Numbered units of work that count only once their seal is written; what is not whole is made again.

    FOLDER/00007.<name>            the unit's files
    SEALS/00007.seal.json          its key, the sha256 of each file, and facts about it; written last

``keyed`` units are called 00007-<key>, so that those of other settings stay beside them. The key hashes what decides a
unit's contents. A unit whose seal is missing, half-written, of another key, or does not match a file, does not exist.

A file that was last changed before its seal was written is as it was when its hash was taken, so only younger ones are
read again: 10^5 units of a large job are looked through in seconds, not in the hours that reading them would take.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exitlens.storage.atomic import sha256_file, sweep, write_json
from exitlens.storage.mirror import brought, catch_up, delete, portable, present

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

    def __reduce__(self) -> tuple[Any, ...]:
        # A folder that stands for an address goes to another process as that: what is written there is put there too.
        return _opened, (portable(self.folder), portable(self.seals), self.keyed)

    def path(self, number: int, key: str, name: str) -> Path:
        """Where a unit's file lies."""
        return self.folder / f"{self._stem(number, key)}.{name}"

    def claimed(self, number: int, key: str) -> Seal | None:
        """The seal of a unit, if it has one of this key; its files are not looked at."""
        try:
            seal = Seal.model_validate_json(present(self._seal(number, key)).read_bytes())
        except (OSError, ValidationError, RecursionError):
            return None
        return seal if seal.key == key else None

    def whole(self, number: int, key: str) -> Seal | None:
        """The seal of a unit whose files are all as it says; None otherwise."""
        seal = self.claimed(number, key)
        if seal is None:
            return None
        written = _changed(self._seal(number, key))
        for name, sha in seal.files.items():
            file = present(self.path(number, key, name))
            changed = _changed(file)
            # Equal times are too close to tell, as clocks of file systems tick some hundred times a second.
            if changed is None or ((written is None or changed >= written) and sha256_file(file) != sha):
                return None
        return seal

    def finished(self) -> Callable[[int, str], Seal | None]:
        """:meth:`whole` for many units, by one listing of the folder: what has no seal now is not looked for."""
        try:
            there = frozenset(entry.name for entry in os.scandir(self.seals))
        except OSError:
            there = frozenset()

        def whole(number: int, key: str) -> Seal | None:
            return self.whole(number, key) if self._seal(number, key).name in there else None

        return whole

    def catch_up(self, *, files: bool = True) -> None:
        """Bring what workers on other machines wrote here, where the folder stands for an address.

        What workers that were killed left aside goes. ``files``: the units' files too, not their seals alone.
        """
        for folder in {self.seals, self.folder} if files else {self.seals}:
            catch_up(folder)
            sweep(folder)

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

    def remove(self, number: int, key: str, names: Iterable[str]) -> None:
        """Remove a unit, its seal first: half removed, it does not exist. Files that are not there are no error."""
        for file in (self._seal(number, key), *(self.path(number, key, name) for name in names)):
            with contextlib.suppress(OSError):
                delete(file)

    def _stem(self, number: int, key: str) -> str:
        return f"{number:05d}-{key}" if self.keyed else f"{number:05d}"

    def _seal(self, number: int, key: str) -> Path:
        return self.seals / f"{self._stem(number, key)}.seal.json"


def _changed(file: Path) -> int | None:
    """When a file's contents were last written [ns], None where there is none."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def _opened(folder: tuple[str, str], seals: tuple[str, str], keyed: bool) -> Sealed:
    return Sealed(brought(*folder), seals=brought(*seals), keyed=keyed)

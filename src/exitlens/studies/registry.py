"""The studies there are: five of our own, loaded when first asked for, and those that a user registers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import cast

from exitlens.errors import ConfigError
from exitlens.report.chapter import Chapter
from exitlens.studies.base import Study
from exitlens.studies.names import HOMES

__all__ = ["STUDIES", "chapters", "register"]


class _Studies(Mapping[str, Study]):
    """Studies by name, in the order in which they run."""

    def __init__(self) -> None:
        self._loaded: dict[str, Study] = {}

    def __getitem__(self, name: str) -> Study:
        if name not in self._loaded:
            self._loaded[name] = cast(Study, import_module(HOMES[name]).STUDY)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(HOMES)

    def __len__(self) -> int:
        return len(HOMES)

    def add(self, study: Study) -> None:
        """Append a study."""
        self._loaded[study.name] = study
        HOMES[study.name] = type(study).__module__

    def remove(self, name: str) -> None:
        """Forget a study that was added."""
        del self._loaded[name], HOMES[name]


STUDIES = _Studies()


def register(study: Study) -> None:
    """Make a study part of ``exitlens run``, after those there are.

    Args:
        study: An instance of the study.

    Raises:
        ConfigError: A study of that name, or a table of one of its names, is there already.
    """
    if study.name in STUDIES:
        raise ConfigError(f"a study named '{study.name}' is there already: give it another name")
    if not study.name.isalpha() or not study.name.islower():
        raise ConfigError(f"'{study.name[:80]}' cannot name a study: use lower-case letters only")
    taken = {table.name for other in STUDIES.values() for table in other.tables if not table.shared}
    for table in study.tables:
        if table.name in taken:
            raise ConfigError(f"another study writes a table '{table.name}' already: give it another name")
    STUDIES.add(study)


def chapters() -> dict[str, Chapter]:
    """The chapter of every study, by the study's name."""
    return {name: study.chapter for name, study in STUDIES.items()}

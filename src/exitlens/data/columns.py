"""Which column of a user's file holds what: the grammar of ``--column question=Prompt,best=Expected``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from exitlens.errors import DataError, InputError
from exitlens.parsing import cut

__all__ = ["QUESTION_ROLES", "STATEMENT_ROLES", "ColumnMap", "column_of", "columns_of_kind", "parse_columns"]

QUESTION_ROLES = ("question", "best", "answer", "correct", "incorrect", "choices", "category", "kind", "id")
STATEMENT_ROLES = ("statement", "label", "topic", "entity", "pair", "negated", "id")
_ROLES = tuple(dict.fromkeys((*QUESTION_ROLES, *STATEMENT_ROLES)))

ColumnMap = Mapping[str, str]
"""A column's name by the role that it has."""


def parse_columns(given: str | Iterable[str] | ColumnMap | None) -> ColumnMap:
    """Columns by role.

    Args:
        given: ``"question=Prompt,best=Expected"``, several such texts, or a mapping; None: nothing is mapped. A comma
            separates where a role and ``=`` follow, so that a column's name may hold commas.

    Returns:
        The columns' names, by role, in the order given; ``answer`` is another word for ``best``.

    Raises:
        InputError: A text without ``=``, a role that does not exist, a role given twice, an empty name.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        pairs = [(str(role), str(name)) for role, name in given.items()]
    else:
        texts = [given] if isinstance(given, str) else list(given)
        pairs = [_pair(part) for text in texts for part in re.split(r",\s*(?=\w+\s*=)", text)]
    found: dict[str, str] = {}
    for role, name in pairs:
        if role not in _ROLES:
            raise InputError(f"--column: no role is named {cut(role)!r}{_nearest(role, _ROLES)}")
        role = "best" if role == "answer" else role
        if role in found:
            raise InputError(f"--column: the role {role!r} is given twice ({cut(found[role])!r} and {cut(name)!r})")
        if not name.strip():
            raise InputError(f"--column: {role}= names no column: write {role}=NAME")
        found[role] = name.strip()
    return found


def _pair(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals:
        raise InputError(f"--column {cut(text)!r} is no role and column: write question=Prompt,best=Expected")
    return role.strip().casefold(), name


def columns_of_kind(columns: ColumnMap, kind: Literal["questions", "statements"]) -> ColumnMap:
    """The part of the mapping that says something of questions, or of statements; ``id`` alone says nothing."""
    roles = QUESTION_ROLES if kind == "questions" else STATEMENT_ROLES
    mine = {role: name for role, name in columns.items() if role in roles}
    return mine if mine.keys() - {"id"} else {}


def column_of(names: Sequence[str], wanted: str, role: str, where: str, *, exact: bool = True) -> str:
    """The one of a file's columns that is meant: by its name as written (where ``exact``), else in any case.

    Raises:
        DataError: No column of that name, or more than one.
    """
    same = [name for name in names if name == wanted] if exact else []
    found = same or [name for name in names if name.strip().casefold() == wanted.strip().casefold()]
    if len(found) > 1:
        raise DataError(f"{where} has the column {cut(wanted)!r} twice; leave one of them out")
    if not found:
        raise DataError(f"{where} has no column {cut(wanted)!r} (for {role}){_nearest(wanted, names)}")
    return found[0]


def _nearest(name: str, known: Sequence[str]) -> str:
    """The nearest names; all of them (the first, where there are many) when nothing is near."""
    folded = {each.casefold(): each for each in reversed(known)}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=2, cutoff=0.5)
    if near:
        return f": did you mean {' or '.join(repr(cut(folded[each], 40)) for each in near)}?"
    listed = ", ".join(repr(cut(each, 40)) for each in known[:12])
    return f"; there are {listed}{f' and {len(known) - 12} more' if len(known) > 12 else ''}"

"""Questions, statements and concept prompts from files, folders, Hub ids and the built-in sets, as frozen records.

    from exitlens import data
    facts = data.read_data("facts-tf", limit=200)
    facts.statements[0].statement, facts.sha256, facts.notes

docs/data.md describes each format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exitlens.lazy import lazy_names

if TYPE_CHECKING:
    from exitlens.data.grouping import groups as groups
    from exitlens.data.reading import BUILTIN as BUILTIN
    from exitlens.data.reading import read_data as read_data
    from exitlens.data.records import ConceptPrompt as ConceptPrompt
    from exitlens.data.records import Dataset as Dataset
    from exitlens.data.records import Question as Question
    from exitlens.data.records import Statement as Statement
    from exitlens.data.sources import read_source as read_source
    from exitlens.data.subset import limited as limited

_HOME = {
    "BUILTIN": "reading",
    "ConceptPrompt": "records",
    "Dataset": "records",
    "Question": "records",
    "Statement": "records",
    "groups": "grouping",
    "limited": "subset",
    "read_data": "reading",
    "read_source": "sources",
}

__all__ = list(_HOME)

__getattr__ = lazy_names(__name__, _HOME)

"""Questions, statements and concept prompts from files, folders, Hub ids and the built-in sets, as frozen records.

    from exitlens import data
    facts = data.read_data("facts-tf", limit=200)
    facts.statements[0].statement, facts.sha256, facts.notes

docs/data.md describes each format.
"""

from exitlens.data.grouping import groups
from exitlens.data.reading import BUILTIN, read_data
from exitlens.data.records import ConceptPrompt, Dataset, Question, Statement
from exitlens.data.sources import read_source
from exitlens.data.subset import limited

__all__ = [
    "BUILTIN",
    "ConceptPrompt",
    "Dataset",
    "Question",
    "Statement",
    "groups",
    "limited",
    "read_data",
    "read_source",
]

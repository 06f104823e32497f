"""What a study is: checks, tables with their columns declared, a run, and a chapter that tells the results.

The smallest study, whole (:mod:`exitlens.report.chapter` has its chapter)::

    class LengthStudy(Study):
        name = "lengths"
        tables = (TableSpec("lengths", "a question", (Field("question_id", "its id"), Field("words", "length"))),)
        chapter = LengthChapter()

        def run(self, ctx: Context) -> None:
            rows = [(q.id, len(q.question.split())) for q in ctx.inputs.questions]
            ctx.write("lengths", pd.DataFrame(rows, columns=["question_id", "words"]))

    exitlens.studies.registry.register(LengthStudy())

``exitlens run`` then runs it after the others, and its tables, figures and findings stand beside theirs.
"""

from __future__ import annotations

from typing import Literal, Protocol

from exitlens.report.chapter import Chapter
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Context
from exitlens.studies.inputs import Inputs
from exitlens.studies.tables import TableSpec

__all__ = ["Need", "Study"]

# What the run has to bring: questions, statements, concept prompts, and the entropies of every layer while the
# questions are answered.
Need = Literal["questions", "statements", "entropies", "concepts"]


class Study(Protocol):
    """A study of ``exitlens run``. Inherit from it; ``name``, ``tables``, ``chapter`` and ``run`` have no default."""

    name: str
    """As ``--only`` names it: lower-case letters; it begins the names of its figures."""
    tables: tuple[TableSpec, ...]
    """Every table that it writes."""
    chapter: Chapter
    """What it tells its reader."""
    needs: tuple[Need, ...] = ("questions",)
    """What it reads."""

    def needs_of(self, config: RunConfig) -> tuple[Need, ...]:
        """What it reads with these settings; ``needs``, where they do not matter."""
        return self.needs

    def check_settings(self, config: RunConfig, inputs: Inputs) -> None:
        """Raise an ExitlensError for what cannot work with any model. Called before the model is loaded."""
        return

    def check(self, ctx: Context) -> None:
        """Raise what would stop this study with this model and these data. Called before any study runs."""
        return

    def run(self, ctx: Context) -> None:
        """Compute, and write the tables with ``ctx.write``. Called again after a kill, it does only what is left."""
        ...

"""What a study's function returns, as a notebook shows it: a few lines, and the views that its tables allow."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pandas as pd

from exitlens.display import Shown
from exitlens.parsing import cut
from exitlens.report.frames import Results
from exitlens.report.notebook import Shape, register_drawing, table_html
from exitlens.studies.registry import chapters

__all__ = ["StudyResult"]


class StudyResult(Shown):
    """Tables of a study. A subclass is a dataclass whose frames are fields, or overrides :meth:`frames`; its ``model``
    is the model's name.
    """

    __slots__ = ()

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables by their names in a run directory."""
        this: Any = self
        named = ((field.name, getattr(this, field.name)) for field in fields(this))
        return {name: frame for name, frame in named if isinstance(frame, pd.DataFrame)}

    def results(self) -> Results:
        """The tables as chapters read them."""
        this: Any = self
        return Results(self.frames(), {"model": {"name": this.model}})

    def findings(self) -> list[str]:
        """What was found in sentences, the answer to the study's question first."""
        found = self.results()
        return [line for chapter in chapters().values() for line in chapter.findings(found)]

    def __repr__(self) -> str:
        tables = ", ".join(f"{name} ({len(frame)} rows)" for name, frame in self.frames().items())
        this: Any = self
        lines = [f"{type(self).__name__} of {cut(this.model)}", f"  tables {cut(tables, 300)}"]
        return "\n".join([*lines, "  .show() draws it, .findings() are sentences, .frames() its pandas DataFrames"])


def _shape(result: Any) -> Shape:
    found: Results = result.results()
    views = [view for chapter in chapters().values() for view in chapter.views(found)]
    rows = [[name, len(frame), ", ".join(map(str, frame.columns))] for name, frame in result.frames().items()]
    told = [[line.split("\n")[0]] for line in result.findings()]
    said = table_html(["findings"], told, f"{type(result).__name__} of {result.model}") if told else ""
    return Shape(views, said + table_html(["table", "rows", "columns"], rows, "" if told else type(result).__name__))


register_drawing(StudyResult, _shape)

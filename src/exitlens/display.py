"""How results introduce themselves: a few lines as text, and in notebooks what the report room draws of them.

Results are made in rooms that know nothing of drawing. They inherit :class:`Shown`; what a notebook shows is found by
name and loaded when a notebook asks, so that no room imports one that comes after it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

__all__ = ["Shown"]

DRAWN_BY: Final = "exitlens.report.notebook"


class Shown:
    """A result that a notebook can show. Its ``repr`` has at most six lines; :meth:`show` draws it."""

    __slots__ = ()

    def show(self, *, widget: bool = False, height: int | None = None) -> Any:
        """The result as an interactive view, for the last line of a notebook's cell.

        Args:
            widget: An anywidget instead of a frame: its state can be read and set from Python. Needs anywidget.
            height: Of the frame [px]; by default what the view needs.

        Returns:
            An object that notebooks display; ``.save(FILE)`` writes it as one HTML file.

        Raises:
            InputError: There is nothing to show.
            MissingExtra: ``widget`` without anywidget.
        """
        return import_module(DRAWN_BY).shown(self, widget=widget, height=height)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:  # noqa: ARG002 - IPython
        found: dict[str, Any] = import_module(DRAWN_BY).mimebundle(self)
        return found

    def _repr_html_(self) -> str:
        found: str = import_module(DRAWN_BY).mimebundle(self)["text/html"]
        return found

"""The component as a notebook widget (anywidget): its view and state are traits, its fallback is a frame."""

from __future__ import annotations

import json
from typing import Any

from exitlens.errors import MissingExtra
from exitlens.report.view_data import View, parse_view
from exitlens.report.view_page import component, frame

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise MissingExtra("the widget needs anywidget: pip install 'exitlens[notebook]'") from error

__all__ = ["ViewWidget"]


class ViewWidget(anywidget.AnyWidget):
    """A view in a live notebook.

    ``view``: the view as JSON. ``state``: what a reader chose (metric, lens, pinned tokens, cell in focus), readable
    and settable. ``theme``: auto, light or dark. Saved notebooks and exports keep the frame that stands beside it.
    """

    _esm = component()
    view = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    theme = traitlets.Unicode("auto").tag(sync=True)
    static = ""

    @classmethod
    def of(cls, made: View, *, static: str = "", **traits: Any) -> ViewWidget:
        """A widget of a view; ``static`` is what viewers without frames and scripts show."""
        widget = cls(view=json.loads(made.to_json()), **traits)
        widget.static = static
        return widget

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        found = bundle[0] if isinstance(bundle, tuple) else bundle
        if found is None:
            return bundle
        made = parse_view(json.dumps(self.view))
        found |= {"text/plain": f"a view of exitlens: {made.title}", "text/html": frame([made], static=self.static)}
        return bundle

"""The component as a notebook widget (anywidget): its view and state are traits, its fallback is a frame."""

from __future__ import annotations

import json
import uuid
from typing import Any

from exitlens.errors import MissingExtra
from exitlens.report.view_data import View, parse_view
from exitlens.report.view_page import frame, widget_module

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

    _esm = widget_module()
    view = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    theme = traitlets.Unicode("auto").tag(sync=True)
    mark = traitlets.Unicode().tag(sync=True)
    static = ""

    @classmethod
    def of(cls, made: View, *, static: str = "", **traits: Any) -> ViewWidget:
        """A widget of a view; ``static`` is what viewers without frames and scripts show."""
        widget = cls(view=json.loads(made.to_json()), mark=f"exitlens-{uuid.uuid4().hex[:12]}", **traits)
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

    def _ipython_display_(self) -> None:
        """Two outputs: the widget, and a frame that is hidden wherever the widget is drawn.

        Of the forms of one output, a notebook without a kernel and nbconvert take the widget's, and show nothing.
        """
        from IPython.display import display

        bundle = self._repr_mimebundle_()
        forms = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
        framed = forms.pop("text/html")
        show: Any = display
        show(forms, raw=True)
        hidden = f"<style>:root:has(.{self.mark}) .in-{self.mark}{{display:none}}</style>"
        show({"text/plain": "", "text/html": f'{hidden}<div class="in-{self.mark}">{framed}</div>'}, raw=True)

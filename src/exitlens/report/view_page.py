"""Views as HTML: a page of their own, and a frame for notebooks. One file, no network, scripts by hash only."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Final

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from exitlens.report.text import visible
from exitlens.report.view_data import View, embedded

__all__ = [
    "OLD_BROWSER",
    "component",
    "frame",
    "old_browser",
    "page",
    "policy",
    "script_of",
    "starter",
    "widget_module",
]

# What says in a notebook's page that it is dark or light, whatever the system prefers: JupyterLab and nbconvert, VS
# Code, Colab, Sphinx's furo, marimo.
_HOSTS: Final = {
    "dark": "[data-jp-theme-light=false],.vscode-dark,html[theme=dark],[data-theme=dark]",
    "light": "[data-jp-theme-light=true],.vscode-light,html[theme=light],[data-theme=light]",
}
# About what a view needs in a column of a notebook [px]: a frame that is not told its height by script keeps it.
_HEIGHTS: Final = {"choices": 920, "decoders": 860, "entropy": 430, "probes": 900, "exits": 760}
_ROW: Final = 22  # of a map [px]
# A frame may ask its page nothing. Of the page's theme it hears by its own height: a multiple of the step, and a third
# of a step more on a dark page, two thirds on a light one (see web/src/page.js).
_STEP: Final = 12
# The other way the frame says how high it is, when it is asked and when that changes. This runs in the notebook's page,
# where plain names would be those of the frame element: hence `window`.
_LISTEN: Final = (
    "const f=this,l=e=>{if(!f.isConnected){window.removeEventListener('message',l);f.heard=0}"
    "else if(e.source==f.contentWindow&&e.data&&e.data.exitlens>0)"
    "f.style.setProperty('--exitlens',Math.ceil(Math.min(e.data.exitlens,2e4)/12)*12+'px')};"
    "if(!f.heard){f.heard=1;window.addEventListener('message',l)}f.contentWindow.postMessage('exitlens','*')"
)


_NO_FRAME: Final = "<p><em>The interactive view is shown where the notebook is run or trusted.</em></p>"


def old_browser(rest: str) -> str:
    """The script of browsers that do not know modules: they run it and skip the component. ``rest``: what it means."""
    line = f"This browser does not know JavaScript modules, {rest}"
    return (
        "document.documentElement.className+=' old';"
        f"document.body.insertAdjacentHTML('afterbegin','<p class=\"notice\">{line}</p>');"
    )


OLD_BROWSER: Final = old_browser("so the interactive views are missing. Figures and tables are complete.")


@functools.cache
def component() -> str:
    """The component's JavaScript, an ES module."""
    return _asset("view.js")


@functools.cache
def starter() -> str:
    """The script of a page, after the component: it draws the views that stand there, and keeps their state."""
    return _asset("page.js")


@functools.cache
def widget_module() -> str:
    """The component as anywidget takes it: an ES module whose default export draws a widget."""
    pages = json.dumps([_HOSTS["dark"], _HOSTS["light"]])
    return f"{component()}\n{_asset('widget.js')}\nexport default globalThis.exitlens.widget({pages});\n"


def _asset(name: str) -> str:
    return resources.files("exitlens.report").joinpath("assets", name).read_text(encoding="utf-8")


def policy(*scripts: str) -> str:
    """A content-security policy under which exactly these inline scripts run, and nothing is fetched."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii") for script in scripts]
    listed = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {listed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def script_of(made: View, name: str, *, framed: bool = False) -> Markup:
    """The view as a JSON script element with the id ``name``, and the place where it is drawn, of about its height."""
    height = _height(made) if framed else _height(made) // 2
    return Markup(
        f'<script type="application/json" id="{html.escape(name)}">{embedded(made)}</script>'
        f'<div class="exitlens-view" data-view="{html.escape(name)}" style="min-height:{height}px"></div>'
    )


@functools.cache
def _environment() -> Environment:
    return Environment(loader=PackageLoader("exitlens.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _height(made: View) -> int:
    """About what the view needs [px]."""
    if made.kind == "map":
        return 600 + _ROW * made.block.arrays["layers"].shape[0]
    return _HEIGHTS.get(made.kind, 640)


def page(views: Sequence[View], *, title: str = "", static: str = "", framed: bool = False) -> str:
    """Views as one HTML document.

    Args:
        views: In their order.
        title: Of the document; by default the first view's.
        static: HTML of what is shown where scripts do not run: escaped by whoever made it.
        framed: Whether it stands in the frame of :func:`frame`.

    Returns:
        The document.
    """
    scripts = (component(), starter(), OLD_BROWSER)
    return (
        _environment()
        .get_template("view.html.j2")
        .render(
            title=visible(title or views[0].title),
            policy=policy(*scripts),
            views=[script_of(made, f"view-{i}", framed=framed) for i, made in enumerate(views, start=1)],
            static=Markup(static),
            framed=framed,
            scripts=[Markup(each) for each in scripts[:2]],
            old=Markup(OLD_BROWSER),
        )
    )


def frame(views: Sequence[View], *, static: str = "", height: int | None = None) -> str:
    """The page of :func:`page` in an ``<iframe srcdoc>``, with ``static`` beside it for viewers that show no frames.

    The style that hides the static part is removed by the viewers that remove frames (GitHub, notebooks that are not
    trusted), so each shows one of the two.
    """
    wanted = height if height is not None else sum(_height(each) for each in views)
    tall = math.ceil(wanted / _STEP) * _STEP
    # A hidden part of its own for each output: the same notebook may hold another version's.
    made = page(views, static=static, framed=True)
    tag = hashlib.sha256(made.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    title = html.escape(visible(views[0].title))
    themes = "".join(
        f":is({hosts}) .exitlens-f{tag}{{height:calc(var(--exitlens,{tall}px) + {_STEP * more // 3}px)!important}}"
        for more, hosts in enumerate(_HOSTS.values(), start=1)
    )
    listen = f' onload="{_LISTEN}"' if height is None else ""
    return (
        f'<style>.exitlens-{tag}{{display:none}}{themes}</style><div class="exitlens-{tag}">{static}{_NO_FRAME}</div>'
        f'<iframe class="exitlens-f{tag}" title="{title}" sandbox="allow-scripts allow-downloads" '
        f'allow="clipboard-write" loading="lazy"{listen} '
        f'style="width:100%;height:var(--exitlens,{tall}px);border:0;color-scheme:normal" srcdoc="{_attribute(made)}">'
        "</iframe>"
    )


def _attribute(text: str) -> str:
    """Escaped for a double-quoted attribute: only what must be, since the data is large."""
    return re.sub(r"[&\"]", lambda found: "&amp;" if found.group() == "&" else "&quot;", text)

"""Pieces of the report as HTML: escaped text, tables with proper headers, figures that follow the page's colours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from exitlens.report.report_css import COLOURS
from exitlens.report.text import is_number, number_text, slug, visible

__all__ = ["bdi", "definitions", "figure", "paragraphs", "table", "text"]

MOST_ROWS = 40


def text(value: object) -> str:
    """Any text, safe inside HTML: escaped, control characters visible, lone surrogates replaced."""
    return escape(visible(value), quote=True)


def bdi(value: object) -> str:
    """Text from data or a model: escaped, and kept from turning the direction of the text around it."""
    return f"<bdi>{text(value)}</bdi>"


def paragraphs(lines: Sequence[str], css: str = "") -> str:
    """One paragraph for each plain text; line breaks in it become spaces."""
    inner = "".join(f"<p>{text(line.replace(chr(10), ' '))}</p>" for line in lines)
    return f'<div class="{css}">{inner}</div>' if css and inner else inner


def table(
    headers: Sequence[str],
    body: Sequence[Sequence[object]],
    *,
    caption: str,
    where: str,
    collapsed: bool = False,
    most: int = MOST_ROWS,
) -> str:
    """A table with a caption, column and row headers; at most ``most`` rows, then where the whole table lies.

    Numbers and texts that begin like one (an interval, a p-value) go to the right. ``collapsed``: inside ``<details>``.
    """
    if not body:
        return ""
    numeric = [all(_numeric(row[i]) for row in body if i < len(row)) for i in range(len(headers))]
    head = "".join(
        f'<th scope="col"{_class("n" if numeric[i] and i else "")}>{text(name)}</th>' for i, name in enumerate(headers)
    )
    lines = []
    for row in body[:most]:
        cells = []
        for i, value in enumerate(row):
            shown = text(number_text(value)) if _number(value) else bdi(value)
            if i == 0:
                cells.append(f'<th scope="row">{shown}</th>')
            else:
                cells.append(f"<td{_class('n' if numeric[i] else 't' if _long(value) else '')}>{shown}</td>")
        lines.append("<tr>" + "".join(cells) + "</tr>")
    cut = f"First {most} of {len(body)} rows; the whole table: " if len(body) > most else "Full precision: "
    label = f"{caption}. {cut}{where}"
    marked = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table>'
        f"<caption>{text(label)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    if not collapsed:
        return marked
    size = f"{len(body)} row{'' if len(body) == 1 else 's'}"
    return f"<details><summary>{text(caption)} ({size}; {text(where)})</summary>{marked}</details>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numeric(value: object) -> bool:
    return (
        _number(value)
        or value is None
        or bool(re.match(r"^(?:[<−+-]? ?[\d.,∞]+(?:e[−-]?\d+)?(?: \[.*\])?|–|)$", str(value)))
    )


def _long(value: object) -> bool:
    return isinstance(value, str) and len(value) > 24


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of terms with their (already safe) HTML; pairs without content are left out."""
    inner = "".join(f"<dt>{text(term)}</dt><dd>{content}</dd>" for term, content in pairs if content)
    return f"<dl>{inner}</dl>" if inner else ""


def flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as ``a.b`` and text, for :func:`definitions`."""
    out: list[tuple[str, str]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            out += flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            out.append((f"{prefix}{key}", ", ".join(bdi(item) for item in value)))
        elif is_number(value) and not isinstance(value, str | bool):
            out.append((f"{prefix}{key}", text(value)))
        else:
            out.append((f"{prefix}{key}", bdi(value)))
    return out


def figure(name: str, svg: str, *, caption: str, alt: str) -> str:
    """The SVG inside the page: its ids made unique, its palette tied to the page's colours, named for a screen reader.

    A text that is not an SVG of ours (no ``<svg``, or holding a script) is replaced by a line that says so.
    """
    start = svg.find("<svg")
    if start < 0 or re.search(r"<\s*(script|foreignObject|iframe)\b", svg, re.IGNORECASE):
        return f'<p class="notice">The figure {text(name)} is not a plain SVG drawing and was left out.</p>'
    body = svg[start:].strip()
    tag = slug(name)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{tag}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{tag}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{tag}-\1"', body)
    body = re.sub(r"<style type=\"text/css\">.*?</style>", "", body, flags=re.DOTALL)
    for label, (light, _) in COLOURS.items():
        body = body.replace(f": {light}", f": var(--fig-{label},{light})")
    body = body.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    width = re.search(r'<svg[^>]*?\bwidth="([\d.]+)pt"', body)
    most = f' style="max-width:{float(width.group(1)) * 4 / 3:.0f}px"' if width else ""
    root = re.match(r"<svg[^>]*>", body)
    if root is not None:
        plain = re.sub(r'\s(width|height)="[^"]*"', "", root.group(0))
        opened = plain[:-1] + f' role="img" aria-label="{text(alt)}" stroke-linejoin="round"{most}>'
        body = opened + body[root.end() :]
    return (
        f'<figure id="figure-{tag}"><div class="wide">{body}</div>'
        f"<figcaption>{bdi(caption)} Files: figures/{text(name)}.svg, .pdf, .png.</figcaption></figure>"
    )

"""``report.html``: one file that tells a run on screen and on paper, with no network and no script but our own.

``templates/report.html.j2`` is the page and ``templates/report.css`` its style. Jinja escapes whatever it inserts; only
the style sheet and the drawings of :mod:`exitlens.report.figure_style` go in as they are.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from exitlens.report import figure_style as style
from exitlens.report.chapter import Chapter, Plate, Sheet
from exitlens.report.frames import Results
from exitlens.report.text import continued, interval_ends, is_number, narrow_legend, number_text, shorten, slug, visible
from exitlens.report.view_page import OLD_BROWSER, component, policy, script_of, starter
from exitlens.report.words import counted, mark, narrow_tables
from exitlens.storage.atomic import write_bytes

__all__ = ["render", "write_report"]

MOST_ROWS: Final = 40  # of a table on the page
MOST_TEXT: Final = 400  # characters of a cell
# Colours of the figures by name: light, then what they become on a dark ground (lighter, the same hue).
COLOURS: Final[Mapping[str, tuple[str, str]]] = {
    "ink": (style.INK, "#e4e8ec"),
    "muted": (style.MUTED, "#9aa5b1"),
    "grid": (style.GRID, "#2d343c"),
    "paper": (style.PAPER, "#15191e"),
    "blue": (style.BLUE, "#4ea8de"),
    "vermilion": (style.VERMILION, "#f0843c"),
    "green": (style.GREEN, "#35c39a"),
    "purple": (style.PURPLE, "#d58fb6"),
    "amber": (style.AMBER, "#e0ab3a"),
    "sky": (style.SKY, "#86cdf3"),
}
# A number, perhaps with its interval or an arrow, a p-value, or a dash: right-aligned.
_NUMERIC: Final = re.compile(r"^(?:[<−+-]? ?[\d.,∞]+(?:e[−-]?\d+)?%?(?: \[.*\]†?)?(?: [▲▼])?|–|)$")


@dataclass(frozen=True, slots=True)
class _Section:
    """A chapter as the template shows it; ``figures``: file name, drawing (None: no SVG of ours), caption."""

    name: str
    chapter: Chapter
    troubles: list[str]
    answer: str
    findings: list[str]
    figures: list[tuple[str, Markup | None, str]]
    views: list[Markup]
    sheets: list[Sheet]


def write_report(
    results: Results, chapters: Mapping[str, Chapter], figures: Mapping[str, str], path: str | os.PathLike[str]
) -> Path:
    """Write the report of a run, whole or not at all; the same arguments give the same bytes.

    Args:
        results: Tables and manifest; tables that are missing leave their part out.
        chapters: The chapters by study, in the order of the sections.
        figures: SVG text by file name, as :func:`exitlens.report.gallery.draw_all` returns it.
        path: The file.

    Returns:
        The path.

    Raises:
        RunError: The file cannot be written.
    """
    place = Path(path)
    write_bytes(place, render(results, chapters, figures).encode("utf-8"))
    return place


def render(results: Results, chapters: Mapping[str, Chapter], figures: Mapping[str, str]) -> str:
    """The report as HTML text.

    Args:
        results: Tables and manifest.
        chapters: The chapters by study, in the order of the sections.
        figures: SVG text by file name.

    Returns:
        The document; the same arguments give the same text.
    """
    manifest = results.manifest
    stages = {name: _mapping(stage) for name, stage in _mapping(manifest.get("stages")).items()}
    homes = {name: _home(name, chapters) for name in [*stages, *figures]}
    sections = []
    for name, chapter in chapters.items():
        troubles = [_trouble(stage, facts) for stage, facts in stages.items() if homes[stage] == name]
        there = any(table in results for table in chapter.own)
        if not there and not any(troubles):
            continue
        made = {plate.name: plate for plate in chapter.figures(results)}
        # A figure that someone added belongs to the study its name begins with.
        drawn = [figure for figure in made if figure in figures]
        drawn += [figure for figure in figures if figure not in made and homes[figure] == name]
        sections.append(
            _Section(
                name,
                chapter,
                [text for text in (*troubles, narrow_tables(results, chapter.own)) if text],
                chapter.answer(results),
                chapter.headline(results),
                [_figure(figure, figures[figure], made.get(figure)) for figure in drawn],
                [
                    script_of(view, f"{slug(name)}-{i}")
                    for i, view in enumerate(chapter.views(results) if there else (), start=1)
                ],
                [sheet for sheet in chapter.tables(results) if sheet.rows] if there else [],
            )
        )
    apart = [_trouble(stage, facts) for stage, facts in stages.items() if homes[stage] is None]
    page = _environment().get_template("report.html.j2")
    # Without views the page holds no script at all, and its policy allows none.
    scripts = (component(), starter(), OLD_BROWSER) if any(section.views for section in sections) else ()
    return page.render(
        model=results.model,
        manifest=manifest,
        data=[_mapping(item) for item in manifest.get("data") or []],
        stages=stages,
        sections=sections,
        troubles=[text for text in apart if text],
        run={key: manifest[key] for key in ("seed", "started", "finished", "version") if manifest.get(key) is not None},
        stage_sheet=_stage_sheet(stages),
        colours=COLOURS,
        policy=policy(*scripts),
        scripts=[Markup(script) for script in scripts],
    )


@functools.cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("exitlens.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"visible": visible, "flat": _flat, "laid_out": _laid_out, "number": number_text, "slug": slug}
    found.filters |= {"moment": _moment, "said": _said, "counted": counted}
    found.tests |= {"finite": is_number}
    css = resources.files("exitlens.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    found.globals |= {"css": Markup(css), "most": MOST_ROWS}
    return found


def _stage_sheet(stages: Mapping[str, Mapping[str, Any]]) -> Sheet:
    rows = [
        [name, stage.get("state"), number_text(stage.get("seconds"), 1),
         visible(stage.get("batches", stage.get("shards"))) or "–",
         ", ".join(visible(version) for version in _mapping(stage.get("made_by"))) or "–"]
        for name, stage in stages.items()
    ]  # fmt: skip
    return Sheet(
        "Stages", ["stage", "state", "seconds", "batches or shards", "made by exitlens"], rows, "manifest.json"
    )


def _home(name: str, chapters: Mapping[str, Chapter]) -> str | None:
    """The study that a stage or a figure belongs to, by the first word of its name."""
    first = re.split(r"[^a-z]+", name.lower())[0]
    return next((study for study, chapter in chapters.items() if first in (study, *chapter.stages)), None)


def _trouble(name: str, stage: Mapping[str, Any]) -> str:
    """What a stage should say that is not done, or that two versions made; empty for any other."""
    state, reason = visible(stage.get("state")), visible(stage.get("reason")).rstrip(".")
    if state == "done":
        return continued(name, _mapping(stage.get("made_by")), "shards" if "shards" in stage else "batches")
    if state == "running":
        state, reason = "not finished", reason or "run the same command again to continue where it stopped"
    return f"Stage {visible(name)} was {state or 'not started'}: {reason or 'no reason was recorded'}."


def _figure(name: str, svg: str, plate: Plate | None) -> tuple[str, Markup | None, str]:
    caption, alt = (plate.caption, plate.alt) if plate is not None else (f"{name}.", name)
    return name, _drawing(slug(name), svg, alt), caption


def _drawing(tag: str, svg: str, alt: str) -> Markup | None:
    """The SVG for the page: its ids made unique, its palette tied to the page's colours, named for a screen reader.

    None for a text that is no SVG drawing of ours (no ``<svg``, or holding a script).
    """
    start = svg.find("<svg")
    if start < 0 or re.search(r"<\s*(script|foreignObject|iframe)\b", svg, re.IGNORECASE):
        return None
    body = svg[start:].strip()
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{tag}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{tag}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{tag}-\1"', body)
    body = re.sub(r"<style type=\"text/css\">.*?</style>", "", body, flags=re.DOTALL)
    for label, (light, _) in COLOURS.items():
        body = body.replace(f": {light}", f": var(--fig-{label},{light})")
    body = body.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    width = re.search(r'<svg[^>]*?\bwidth="([\d.]+)pt"', body)
    size = round(float(width.group(1)) * 4 / 3) if width else 0
    # A figure is never drawn larger than it is; on a small screen a wide one is scrolled rather than made too small.
    most = f' style="max-width:{size}px;min-width:min(30rem,{size}px)"' if width else ""
    root = re.match(r"<svg[^>]*>", body)
    if root is not None:
        plain = re.sub(r'\s(width|height)="[^"]*"', "", root.group(0))
        label = Markup.escape(visible(alt))
        opened = plain[:-1] + f' role="img" aria-label="{label}" stroke-linejoin="round"{most}>'
        body = opened + body[root.end() :]
    return Markup(body)


def _laid_out(sheet: Sheet) -> tuple[list[tuple[str, str]], list[list[tuple[str, str]]], str]:
    """Headings and the rows shown, each cell with its class (``n`` a number, ``t`` a long text); the marks' legend.

    Numbers and texts that begin like one (an interval, a p-value) go to the right.
    """
    numeric = [all(_numeric(row[i]) for row in sheet.rows if i < len(row)) for i in range(len(sheet.headers))]
    # The first column names the row and stays to the left.
    heads = [(head, "n" if numeric[i] and i else "") for i, head in enumerate(sheet.headers)]
    ends = interval_ends(sheet.headers)
    body = []
    for row, n in itertools.zip_longest(sheet.rows[:MOST_ROWS], sheet.n[:MOST_ROWS]):
        line = []
        for i, (value, number) in enumerate(zip(row, numeric, strict=False)):
            text = number_text(value) if _number(value) else shorten(visible(value), MOST_TEXT)
            text += mark(n) if i in ends and is_number(value) else ""
            line.append((text, "n" if number else "t" if isinstance(value, str) and len(value) > 24 else ""))
        body.append(line)
    return heads, body, narrow_legend(text for line in body for text, _ in line)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numeric(value: object) -> bool:
    return _number(value) or value is None or bool(_NUMERIC.match(str(value)))


def _said(line: str) -> Markup:
    """A sentence for the page; what it quotes keeps its direction to itself: two quotes never change places."""
    return Markup(re.sub(r"“([^“”]*)”", r"“<bdi>\1</bdi>”", str(Markup.escape(visible(line)))))


def _moment(value: object) -> str:
    """A time as readers write it: ``2026-11-27T14:02:11+00:00`` → ``2026-11-27 14:02 UTC``; any other text as it is."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(?:\.\d+)?(?:\+00:00|Z)", str(value))
    return f"{found[1]} {found[2]} UTC" if found else visible(value)


def _flat(mapping: object, prefix: str = "") -> list[tuple[str, list[object]]]:
    """Nested settings as ``a.b`` and a list of values."""
    out: list[tuple[str, list[object]]] = []
    for key, value in _mapping(mapping).items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", list(value) if isinstance(value, list | tuple) else [value]))
    return out


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

"""``report.html``: one file that tells a run on screen and on paper, with no network and no script."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pandas import DataFrame

from exitlens.report import html
from exitlens.report.gallery import Plate, plates
from exitlens.report.measured import with_times
from exitlens.report.report_css import CSS
from exitlens.report.sections import ASKED, HOW, OWN_TABLES, TABLES, TITLES
from exitlens.report.text import is_number, number_text, visible
from exitlens.report.words import HEADLINES
from exitlens.storage.atomic import write_bytes

__all__ = ["headlines", "render", "write_report"]

_FINISHED: Final = ("done", "complete", "completed", "ok", "finished")
_BAD: Final = ("failed", "refused", "error", "interrupted", "running", "pending")
# Stages named after what they do rather than after their study.
_ALSO: Final[Mapping[str, str]] = {
    "look": "layers",
    "layer": "layers",
    "judge": "entropy",
    "judgements": "entropy",
    "probe": "probes",
    "extract": "probes",
    "extraction": "probes",
    "score": "decoding",
    "scores": "decoding",
    "exit": "exits",
}
_REASONS: Final = ("reason", "error", "message", "detail")


def write_report(
    manifest: Mapping[str, Any],
    tables: Mapping[str, DataFrame],
    figures: Mapping[str, str],
    path: str | os.PathLike[str],
) -> Path:
    """Write the report of a run, whole or not at all.

    ``manifest`` as in a run directory; ``tables`` by name (missing or empty ones leave their part out); ``figures``:
    SVG text by file name, as :func:`exitlens.report.gallery.draw_all` returns it. Returns the path. The same arguments
    give the same bytes. Raises :class:`exitlens.errors.RunError` when the file cannot be written.
    """
    place = Path(path)
    write_bytes(place, render(manifest, tables, figures).encode("utf-8"))
    return place


def headlines(tables: Mapping[str, DataFrame]) -> dict[str, list[str]]:
    """The findings of each study in sentences, by study; studies that were not run are left out.

    Each finding is a headline, then its details after a line break.
    """
    present = {name: frame for name, frame in tables.items() if len(frame)}
    said = {study: [line for say in says for line in say(present)] for study, says in HEADLINES.items()}
    return {study: lines for study, lines in said.items() if lines}


def render(manifest: Mapping[str, Any], tables: Mapping[str, DataFrame], figures: Mapping[str, str]) -> str:
    """The report as HTML text."""
    present = with_times({name: frame for name, frame in tables.items() if len(frame)}, manifest)
    stages = _mapping(manifest.get("stages"))
    found = headlines(present)
    troubles = {study: _troubles(study, stages) for study in TITLES}
    made = plates(manifest, present)
    shown = [study for study in TITLES if troubles[study] or any(name in present for name in OWN_TABLES[study])]
    sections = [
        _section(study, present, found.get(study, []), troubles[study], _drawn(study, made, figures)) for study in shown
    ]
    other = [
        line for name, stage in stages.items() if _study_of(name) is None for line in _trouble(name, _mapping(stage))
    ]
    model = _mapping(manifest.get("model"))
    name = visible(model.get("name")) or "model not recorded"
    links = "".join(f'<li><a href="#{study}">{html.text(TITLES[study])}</a></li>' for study in shown)
    # Here the headlines only; each section repeats them with their details.
    summary = "".join(
        f'<h3><a href="#{study}">{html.text(TITLES[study])}</a></h3>'
        + html.paragraphs([line.split("\n")[0] for line in lines])
        for study, lines in found.items()
    )
    body = [
        f"<header><h1>Layer by layer: {html.bdi(name)}</h1>{_meta(manifest)}</header>",
        _notices(other),
        f'<nav aria-label="Sections"><ul>{links}<li><a href="#provenance">Provenance</a></li></ul></nav>',
        "<main>",
        f'<section id="findings"><h2>In short</h2>{summary}</section>' if summary else "",
        "" if sections else "<p>No study of this run has results yet.</p>",
        *sections,
        _provenance(manifest, stages),
        "</main>",
    ]
    # The policy makes the promise checkable: nothing is fetched and no script runs, whatever a text may hold.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>exitlens: {html.text(name)}</title><style>{CSS}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _section(
    study: str, tables: Mapping[str, DataFrame], said: list[str], troubles: list[str], figures: list[str]
) -> str:
    parts = [
        f'<section id="{study}"><h2>{html.text(TITLES[study])}</h2>',
        f'<p class="asked">{html.text(ASKED[study])}</p>',
        _notices(troubles),
        html.paragraphs(said, "said"),
        *figures,
    ]
    if any(name in tables for name in OWN_TABLES[study]):
        parts += TABLES[study](tables)
        parts.append(f'<h3>How it was computed</h3><p class="how">{html.text(HOW[study])}</p>')
    return "\n".join(part for part in [*parts, "</section>"] if part)


def _drawn(study: str, made: Iterable[Plate], figures: Mapping[str, str]) -> list[str]:
    mine = [plate for plate in made if plate.study == study]
    known = {plate.name for plate in made}
    out = [
        html.figure(plate.name, figures[plate.name], caption=plate.caption, alt=plate.alt)
        for plate in mine
        if plate.name in figures
    ]
    # A figure that someone added belongs to the study its name begins with.
    for name, svg in figures.items():
        if name not in known and _study_of(name) == study:
            out.append(html.figure(name, svg, caption=f"{name}.", alt=name))
    return out


def _study_of(name: str) -> str | None:
    first = re.split(r"[^a-z]+", name.lower())[0]
    return first if first in TITLES else _ALSO.get(first)


def _troubles(study: str, stages: Mapping[str, Any]) -> list[str]:
    return [
        line for name, stage in stages.items() if _study_of(name) == study for line in _trouble(name, _mapping(stage))
    ]


def _trouble(name: str, stage: Mapping[str, Any]) -> list[str]:
    state = str(stage.get("state", "")).lower()
    reason = next((visible(stage[key]) for key in _REASONS if stage.get(key)), "")
    if state in _FINISHED or (state not in _BAD and not reason):
        return []
    words = {"running": "was not finished", "pending": "was not started", "interrupted": "was interrupted"}
    told = words.get(state, f"was {state}" if state in ("refused", "skipped") else "failed")
    if state in words and not reason:
        reason = "run the same command again to go on where it stopped"
    return [f"Stage {visible(name)} {told}" + (f": {reason.rstrip('.')}." if reason else ": no reason was recorded.")]


def _notices(lines: list[str]) -> str:
    return "".join(f'<p class="notice" role="note">{html.bdi(line)}</p>' for line in lines)


def _meta(manifest: Mapping[str, Any]) -> str:
    data = [_mapping(item) for item in manifest.get("data") or []]
    names = ", ".join(
        html.bdi(item.get("name")) + (f" ({html.text(item['n'])} rows)" if is_number(item.get("n")) else "")
        for item in data
    )
    when = visible(manifest.get("finished") or manifest.get("started"))
    lines = [f"Data: {names}" if names else "", f"Run: {html.text(when)}" if when else ""]
    return "".join(f'<p class="meta">{line}</p>' for line in lines if line)


def _provenance(manifest: Mapping[str, Any], stages: Mapping[str, Any]) -> str:
    parts = ['<section id="provenance"><h2>Provenance</h2>']
    if manifest.get("command"):
        parts.append(f"<h3>Command</h3><pre>{html.text(manifest['command'])}</pre>")
    model = html.flat(_mapping(manifest.get("model")))
    if model:
        parts.append(f"<h3>Model</h3>{html.definitions(model)}")
    for item in manifest.get("data") or []:
        item = _mapping(item)
        notes = "".join(f"<li>{html.bdi(note)}</li>" for note in item.get("notes") or [])
        pairs = html.flat({key: value for key, value in item.items() if key not in ("notes", "name")})
        pairs += [("notes", f"<ul>{notes}</ul>" if notes else "")]
        parts.append(f"<h3>Data: {html.bdi(item.get('name'))}</h3>{html.definitions(pairs)}")
    setting = {
        key: manifest[key] for key in ("seed", "started", "finished", "version") if manifest.get(key) is not None
    }
    parts.append(f"<h3>Run</h3>{html.definitions(html.flat(setting))}" if setting else "")
    for key, name in (("config", "Settings"), ("versions", "Versions"), ("hardware", "Hardware")):
        pairs = html.flat(_mapping(manifest.get(key)))
        parts.append(f"<h3>{name}</h3>{html.definitions(pairs)}" if pairs else "")
    body: list[list[object]] = [
        [name, visible(stage.get("state")), number_text(stage.get("seconds"), 1), visible(stage.get("batches")) or "–"]
        for name, stage in ((name, _mapping(stage)) for name, stage in stages.items())
    ]
    parts.append(html.table(["stage", "state", "seconds", "batches"], body, caption="Stages", where="manifest.json"))
    return "\n".join(part for part in [*parts, "</section>"] if part)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

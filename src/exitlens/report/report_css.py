"""The report's style sheet: one column, screen and paper, light and dark; figures take their colours from it."""

from __future__ import annotations

from typing import Final

from exitlens.report.figure_style import AMBER, BLUE, GREEN, GRID, INK, MUTED, PAPER, PURPLE, SKY, VERMILION

__all__ = ["COLOURS", "CSS"]

# Colours of the figures by name: light, then what they become on a dark ground (lighter, the same hue).
COLOURS: Final[dict[str, tuple[str, str]]] = {
    "ink": (INK, "#e4e8ec"),
    "muted": (MUTED, "#9aa5b1"),
    "grid": (GRID, "#2d343c"),
    "paper": (PAPER, "#15191e"),
    "blue": (BLUE, "#4ea8de"),
    "vermilion": (VERMILION, "#f0843c"),
    "green": (GREEN, "#35c39a"),
    "purple": (PURPLE, "#d58fb6"),
    "amber": (AMBER, "#e0ab3a"),
    "sky": (SKY, "#86cdf3"),
}


def _variables(which: int) -> str:
    return "".join(f"--fig-{name}:{pair[which]};" for name, pair in COLOURS.items())


CSS: Final = (
    """
:root{color-scheme:light dark;"""
    + _variables(0)
    + """--wash:#f5f7f9;--warn:#fdf3e4;--edge:#d98a1f}
@media screen and (prefers-color-scheme:dark){:root{"""
    + _variables(1)
    + """--wash:#1d2329;--warn:#2b2418;--edge:#c98a00}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:2.2rem 1.2rem 4rem;max-width:50rem;background:var(--fig-paper);color:var(--fig-ink);
 font:1rem/1.55 "Source Serif 4","Source Serif Pro",Charter,"Bitstream Charter","Iowan Old Style",Georgia,serif;
 overflow-wrap:break-word}
h1,h2,h3,th,caption,nav,figcaption,summary,.meta,dt{font-family:system-ui,-apple-system,"Segoe UI",Roboto,
 "Helvetica Neue","DejaVu Sans",Arial,sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.01em}
h2{font-size:1.28rem;margin:3rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--fig-grid)}
h3{font-size:1rem;margin:1.7rem 0 .4rem}
h3 a{color:inherit;text-decoration-color:var(--fig-grid);text-underline-offset:.2em}
#findings p{margin:.35rem 0;padding-left:1rem;text-indent:-1rem}
p,ul,ol{margin:.55rem 0}
a{color:var(--fig-blue)}
.meta{color:var(--fig-muted);font-size:.86rem;margin:.1rem 0}
.asked{font-style:italic}
.said{padding:.1rem 0 .1rem 1rem;border-left:3px solid var(--fig-blue)}
.said p{margin:.5rem 0}
.notice{background:var(--warn);border-left:3px solid var(--edge);padding:.6rem .9rem;margin:.9rem 0}
nav ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.9rem}
figure{margin:1.5rem 0;break-inside:avoid}
figure .wide{overflow-x:auto}
figure svg{display:block;width:100%;height:auto;min-width:30rem}
figcaption{font-size:.84rem;line-height:1.45;color:var(--fig-muted);margin-top:.5rem}
.scroll{overflow-x:auto;margin:.7rem 0}
table{border-collapse:collapse;font-size:.85rem;line-height:1.35;min-width:min(100%,20rem)}
caption{text-align:left;color:var(--fig-muted);font-size:.84rem;padding-bottom:.35rem;caption-side:top}
th,td{text-align:left;vertical-align:top;padding:.28rem .8rem .28rem 0;border-bottom:1px solid var(--fig-grid)}
th{font-weight:600;font-size:.8rem}
thead th{border-bottom:1.5px solid var(--fig-muted);white-space:nowrap;vertical-align:bottom}
tbody th{font-weight:500}
.n{text-align:right;font-variant-numeric:tabular-nums lining-nums;white-space:nowrap}
td.t{min-width:9rem;max-width:24rem}
details{margin:.8rem 0;border:1px solid var(--fig-grid);border-radius:4px;padding:.1rem .8rem}
summary{cursor:pointer;font-size:.88rem;padding:.4rem 0}
summary:focus-visible,a:focus-visible,.scroll:focus-visible{outline:2px solid var(--fig-blue);outline-offset:2px}
.how{font-size:.9rem}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.25rem 1.2rem;font-size:.88rem}
dt{color:var(--fig-muted);font-size:.82rem;padding-top:.1rem}
dd{margin:0;min-width:0}
code,pre{font:.84em/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
 overflow-wrap:anywhere;white-space:pre-wrap}
pre{background:var(--wash);padding:.6rem .8rem;border-radius:4px;margin:.4rem 0}
@media print{@page{margin:18mm 16mm}
 body{max-width:none;padding:0;font-size:10pt}
 nav{display:none} h2{break-after:avoid;margin-top:1.6rem} h3{break-after:avoid} tr{break-inside:avoid}
 thead{display:table-header-group} .scroll,figure .wide{overflow:visible}
 figure svg{min-width:0} a{color:inherit;text-decoration:none}
 table{font-size:7.6pt} th{font-size:7.4pt} th,td{padding-right:.5rem} td.t{min-width:0}}
"""
)

"""The look of every figure, and how a figure becomes files: one palette, deterministic bytes, no global state kept.

Figures are plain :class:`matplotlib.figure.Figure` objects made without pyplot, so nothing is shown or registered.
matplotlib reads some settings only from its global ``rcParams``; :func:`styled` sets them for the length of a block,
starting from matplotlib's own defaults rather than from the user's, and puts back what was there.
"""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from exitlens.report.text import figure_text, wrap
from exitlens.storage.atomic import write_bytes

__all__ = [
    "BLUE",
    "DIVERGING",
    "GRID",
    "INK",
    "MUTED",
    "ORDER",
    "PAPER",
    "SEQUENTIAL",
    "VERMILION",
    "WIDTHS",
    "FigureWidth",
    "bottom_legend",
    "drawing",
    "end_labels",
    "figure_width",
    "footnote",
    "layer_axis",
    "narrow",
    "new_figure",
    "on_colour",
    "panels",
    "percent",
    "pick",
    "save",
    "short_number",
    "styled",
    "svg_text",
    "title",
]

INK: Final = "#1f2730"
MUTED: Final = "#69737f"
GRID: Final = "#dfe3e8"
PAPER: Final = "#ffffff"
# Okabe and Ito (2008): told apart with every common colour vision; the order keeps lightness apart too, for print.
BLUE: Final = "#0072b2"
VERMILION: Final = "#d55e00"
GREEN: Final = "#009e73"
PURPLE: Final = "#b25a8c"
AMBER: Final = "#c98a00"
SKY: Final = "#56b4e9"
ORDER: Final = (BLUE, VERMILION, GREEN, PURPLE, AMBER, SKY)
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: Final[tuple[Any, ...]] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
SEQUENTIAL: Final = LinearSegmentedColormap.from_list("exitlens", ["#f4f8fb", "#9ccae3", "#2f86bd", "#08406b"])
DIVERGING: Final = LinearSegmentedColormap.from_list(
    "exitlens-diverging", ["#b44a00", "#f0b98f", "#f7f7f5", "#8fc1de", "#045b91"]
)
FigureWidth: TypeAlias = Literal["column", "page"]
# Inches: one column of a paper of two, and a page (also about the width of the report on a screen). Figures are made
# at the size at which they are printed: text drawn at 7 points is then read at 7 points.
WIDTHS: Final[Mapping[FigureWidth, float]] = {"column": 3.3, "page": 7.0}
_WIDTH: ContextVar[float] = ContextVar("figure width", default=WIDTHS["page"])
_SMALL_TEXT: Final = 7.0  # points: nothing is smaller

_RC: Final[dict[str, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.unicode_minus": True,
    "figure.dpi": 100,
    "figure.facecolor": PAPER,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and is shown in any script
    "svg.hashsalt": "exitlens",  # ids in the file would otherwise differ from run to run
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a question is a dollar
    "text.usetex": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 3,
}
# Settings of windows, servers and dates: none touches what is drawn, and changing the backend has effects of its own.
_LEFT_ALONE: Final = (
    *("backend", "date.epoch", "docstring", "figure.hooks", "figure.max_open", "figure.raise", "interactive"),
    *("keymap.", "savefig.directory", "timezone", "tk.", "toolbar", "webagg."),
)
_LOCK = threading.RLock()
P = ParamSpec("P")


@contextmanager
def styled() -> Iterator[None]:
    """Our settings for the length of the block, from matplotlib's defaults on; then the caller's settings again."""
    settings: Any = {**_defaults(), **_RC}  # the stubs want the name of every setting as a literal
    with _LOCK, matplotlib.rc_context(settings):
        yield


@functools.cache
def _defaults() -> dict[str, Any]:
    return {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith(_LEFT_ALONE)}


def drawing(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator of the functions that draw a figure: they run inside :func:`styled`."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with styled():
            return draw(*args, **kwargs)

    return inside


@contextmanager
def figure_width(name: FigureWidth) -> Iterator[None]:
    """Figures made inside of the block are as wide as a column (3.3 inches) or a page (7 inches)."""
    token = _WIDTH.set(WIDTHS[name])
    try:
        yield
    finally:
        _WIDTH.reset(token)


def narrow() -> bool:
    """Whether figures are now made for a column."""
    return _WIDTH.get() < 5.0


def new_figure(height: float, width: float | None = None) -> Figure:
    """An empty figure (inches) that lays itself out, as wide as figures now are or as ``width`` where that is less."""
    most = _WIDTH.get()
    figure = Figure(figsize=(min(width or most, most), height), layout="constrained")
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.05, h_pad=0.06, hspace=0.06, wspace=0.05)  # type: ignore[call-arg]
    return figure


def panels(count: int, columns: int, height: float, *, extra: float = 0.6, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels in at most ``columns`` columns, each row ``height`` inches; unused ones removed.

    In a column's width there is one column of panels less.

    Args:
        count: Number of panels.
        columns: Most of them beside each other.
        height: Of a row [inches].
        extra: Room for title and legend [inches].
        shared: What ``Figure.subplots`` takes, as ``sharex``.

    Returns:
        The figure and its ``count`` panels.
    """
    count = max(count, 1)
    columns = min(max(columns - narrow(), 1), count)
    rows = -(-count // columns)
    figure = new_figure(rows * height + extra)
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    flat = [axes for row in grid for axes in row]
    for axes in flat[count:]:
        axes.remove()
    for position, axes in enumerate(flat[:count]):
        # The panel above an unused place has to show the labels that a shared axis leaves to the bottom row.
        if position + columns >= count:
            axes.tick_params(labelbottom=True)
    return figure, flat[:count]


def title(figure: Figure, text: object, note: str = "") -> None:
    """A left-aligned title, wrapped to the figure; ``note`` (judge, lens, model, n) on lines of its own below."""
    size = 8.5 if narrow() else 9.5
    room = _room(figure, size)
    lines = wrap(figure_text(text), room, 3 if narrow() else 2)
    if note:
        lines += "\n" + wrap(figure_text(note), room, 5 if narrow() else 2)
    figure.suptitle(lines, x=0.012, ha="left", fontsize=size, linespacing=1.45)


def footnote(figure: Figure, text: str) -> None:
    """Small print below a figure, wrapped to it: what short names stand for."""
    if text:
        lines = wrap(figure_text(text), _room(figure, _SMALL_TEXT), 14)
        figure.supxlabel(lines, x=0.012, ha="left", fontsize=_SMALL_TEXT, color=MUTED, linespacing=1.4)


def bottom_legend(
    figure: Figure, handles: Sequence[Any] | None = None, labels: Sequence[str] | None = None, *, columns: int = 3
) -> None:
    """A legend below the figure, in at most ``columns`` columns and as many as fit; none where nothing has a name.

    Without ``handles`` it names what the first panel shows.
    """
    if handles is None or labels is None:
        handles, labels = figure.axes[0].get_legend_handles_labels() if figure.axes else ([], [])
    if not handles:
        return
    widest = max(len(label) for label in labels) * _letter(8.5) + 0.55  # inches, with the mark before it
    fitting = max(1, min(columns, int(figure.get_figwidth() / widest)))
    figure.legend(handles, labels, loc="outside lower center", ncols=fitting)


def _room(figure: Figure, size: float) -> int:
    """Letters of ``size`` points that a line of the figure holds."""
    return int((figure.get_figwidth() - 0.15) / _letter(size))


def _letter(size: float) -> float:
    """Inches that a letter of DejaVu Sans takes, on average over English text, with a little to spare."""
    return 0.575 * size / 72


def layer_axis(axes: Axes, label: bool = True) -> None:
    """Whole layers on the x axis."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.margins(x=0.02)
    if label:
        axes.set_xlabel("layer")


def short_number(value: float, _: object = None) -> str:
    """A tick's label with no more digits than it needs, and a true minus sign."""
    return f"{round(value, 9):g}".replace("-", "−")


def percent(value: float, _: object = None) -> str:
    """A share as a tick's label in per cent."""
    return short_number(100 * value) + "%"


def pick(index: int) -> dict[str, Any]:
    """Colour, marker and dash of series number ``index``: told apart without colour too."""
    return {
        "color": ORDER[index % len(ORDER)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[(index // 2) % len(DASHES)] if index >= 2 else DASHES[index],
    }


def on_colour(colour: Any) -> str:
    """Ink that reads on a filled cell: near-black or near-white, by the cell's luminance."""
    red, green, blue = to_rgb(colour)
    return "#10151b" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "#fdfdfd"


def end_labels(axes: Axes, labels: Sequence[tuple[float, str, str]], gap: float = 0.06) -> None:
    """Names at the right end of lines, instead of a legend: ``(y, text, colour)``, moved apart until none overlap.

    ``gap`` is the least distance as a fraction of the axes' height. A thin leader joins a moved name to its line.
    """
    low, high = axes.get_ylim()
    span = (high - low) or 1.0
    order = sorted(range(len(labels)), key=lambda i: labels[i][0])
    places = np.array([(labels[i][0] - low) / span for i in order], dtype=float)
    for place in range(1, len(places)):
        places[place] = max(places[place], places[place - 1] + gap)
    if len(places) and places[-1] > 1.0:
        places[-1] = 1.0
        for place in range(len(places) - 2, -1, -1):
            places[place] = min(places[place], places[place + 1] - gap)
    for place, i in zip(places, order, strict=True):
        y, text, colour = labels[i]
        axes.annotate(
            text,
            xy=(1.0, (y - low) / span),
            xytext=(1.035, float(place)),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def svg_text(figure: Figure) -> str:
    """The figure as SVG text; the same figure gives the same text."""
    return _encode(figure, "svg").decode("utf-8")


def _encode(figure: Figure, form: str) -> bytes:
    # A date or a program's version in the file would make two equal runs differ. The canvases are asked directly:
    # `savefig` first draws everything once more for nothing, which doubles the time.
    buffer = io.BytesIO()
    before = figure.dpi
    canvas: Any  # the canvases' own methods carry no types
    with styled():
        _lay_out(figure)
        try:
            if form == "svg":
                hidden = {"Date": None, "Creator": None, "Format": None, "Type": None}
                canvas = FigureCanvasSVG(figure)
                canvas.print_svg(buffer, metadata=hidden)
            elif form == "pdf":
                canvas = FigureCanvasPdf(figure)
                canvas.print_pdf(buffer, metadata={"CreationDate": None, "Creator": None, "Producer": None})
            else:
                figure.set_dpi(_RC["savefig.dpi"])
                canvas = FigureCanvasAgg(figure)
                canvas.print_png(buffer, metadata={"Software": None})
        finally:
            figure.set_dpi(before)
    return buffer.getvalue()


def _lay_out(figure: Figure) -> None:
    """Place everything once: laying out anew for each format takes twice as long as drawing all three."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine(None)


def save(figure: Figure, folder: str | os.PathLike[str], name: str) -> dict[str, Path]:
    """Write ``name.svg``, ``name.pdf`` and ``name.png`` into the folder, each under its name only when whole.

    Args:
        figure: The figure.
        folder: Made where it is missing.
        name: Of the files, without an ending.

    Returns:
        The paths by format.

    Raises:
        RunError: The folder cannot be written.
    """
    paths = {form: Path(folder) / f"{name}.{form}" for form in ("svg", "pdf", "png")}
    for form, path in paths.items():
        write_bytes(path, _encode(figure, form))
    return paths

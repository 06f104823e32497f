"""How far is a long job? The one place that shows it: on the error stream, with rate and time left.

A terminal gets a bar that is redrawn in place and removed at the end; a file, a pipe or a terminal that cannot redraw
gets a line every 15 seconds. The room of a job knows nothing of it: it is given a callback, or opens :func:`progress`
where it has one to wait for itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Literal, Protocol

__all__ = ["StageProgress", "Tick", "counted", "progress"]

Unit = Literal["", "bytes"]


class Tick(Protocol):
    """Call it with how many more are done."""

    def __call__(self, count: int = 1, /, note: str = "") -> None:
        """``count`` more are done; ``note``: what is to be shown beside it."""


class Counted(Protocol):
    """Call it with how many are done in all."""

    def __call__(self, done: int, total: int, /, note: str = "") -> None:
        """``done`` of ``total`` are done; ``note``: what is to be shown beside it."""


def counted(tick: Tick) -> Counted:
    """``tick`` for work that reports how much is done in all (``done, total``)."""
    seen = 0

    def more(done: int, _total: int, /, note: str = "") -> None:
        nonlocal seen
        if done > seen:
            tick(done - seen, note=note)
            seen = done

    return more


def _silent(_count: int = 1, /, note: str = "") -> None:
    pass


@contextlib.contextmanager
def progress(what: str, total: int | None = None, quiet: bool = False, unit: Unit = "") -> Iterator[Tick]:
    """Show a job: ``with progress("generating", total=n) as tick: tick(k)``.

    Args:
        what: what is done; control characters are left out.
        total: how many there are, where it is known.
        quiet: show nothing.
        unit: what is counted.
    """
    if quiet:
        yield _silent
        return
    what = "".join(c for c in what if c.isprintable())
    if not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):  # nothing there can be redrawn
        yield _Lines(what, total, unit).tick
        return
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task
    from rich.text import Text

    console = Console(file=sys.stderr)

    class Line(ProgressColumn):
        def render(self, task: Task) -> Text:
            # One text in the terminal's own colour: it is cut as a whole, and reads on any ground.
            shown = _bar_line(task.description, task.completed, task.total, task.speed, task.time_remaining, unit)
            room = console.width - 1
            line = Text(shown(room, console.encoding.startswith("utf")), no_wrap=True)
            line.truncate(room, overflow="ellipsis")
            return line

    bar = Progress(Line(), console=console, transient=True)
    with bar:
        task = bar.add_task(what, total=total)

        def tick(count: int = 1, /, note: str = "") -> None:
            bar.update(task, advance=count, description=f"{what} ({note})" if note else what)

        yield tick


def _bar_line(
    what: str, done: float, total: float | None, rate: float | None, left: float | None, unit: Unit
) -> Callable[[int, bool], str]:
    """The line of a bar as a function of its width and of whether the terminal knows lines of two weights.

    The bar is told by the weight of its line and not by colour. Numbers stay: the bar and what is done are cut.
    """

    def line(width: int, heavy: bool) -> str:
        numbers = _amount(int(done), unit)
        numbers = numbers if total is None else f"{numbers.removesuffix(' MB')}/{_amount(int(total), unit)}"
        numbers += "" if rate is None else f"  {_amount(rate, unit)}/s"
        numbers += "" if left is None else f"  {_clock(left)} left"
        length = min(24, width - len(numbers) - min(len(what), 18) - 2) if total else 0
        length = length if length >= 5 else 0
        full = round(length * min(done / total, 1.0)) if total else 0
        bar = ("━" if heavy else "#") * full + ("─" if heavy else "-") * (length - full)
        room = max(width - len(bar) - len(numbers) - 2, 8)
        name = what if len(what) <= room else what[: room - 1] + ("…" if heavy else "~")
        return " ".join(filter(None, (name, bar, numbers)))

    return line


def _clock(seconds: float) -> str:
    """``0:07``, ``12:30``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Lines:
    """Progress for a log: at most a line every 15 seconds."""

    every = 15.0

    def __init__(self, what: str, total: int | None, unit: Unit) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.done = 0
        self.begun = self.last = time.monotonic()

    def tick(self, count: int = 1, /, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last = now
        rate = self.done / max(now - self.begun, 1e-9)
        line = f"{self.what}: {_amount(self.done, self.unit)}"
        if self.total is not None:
            line += f" of {_amount(self.total, self.unit)}"
        line += f", {_amount(rate, self.unit)}/s"
        if self.total is not None and rate > 0:
            line += f", {max(self.total - self.done, 0) / rate:.0f} s left"
        line += f" ({note})" if note else ""
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _amount(count: float, unit: Unit) -> str:
    if unit == "bytes":
        return f"{count / 1e6:.1f} MB"
    return str(count) if isinstance(count, int) else f"{count:.3g}"


def _rates(nodes: Mapping[str, float]) -> str:
    """The rates of machines, the first few by name."""
    shown = [f"{name[:24]} {_amount(rate, '')}/s" for name, rate in list(nodes.items())[:4]]
    return ", ".join([*shown, f"{len(nodes) - 4} more"] if len(nodes) > 4 else shown)


class _Report(Protocol):
    """What a stage says of itself, see :class:`exitlens.runs.engine.Progress`."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def nodes(self) -> Mapping[str, float]: ...


class StageProgress(AbstractContextManager["StageProgress"]):
    """One bar (or log line) a stage, one after the other; closes the last when used as a context manager."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._stage: tuple[str, int] | None = None
        self._more: Counted | None = None
        self._open = ExitStack()

    def __call__(self, report: _Report) -> None:
        """Show how far a stage is."""
        self.at(report.stage, report.done, report.total, _rates(report.nodes))

    def at(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` are done in ``stage``; another stage or total begins another bar."""
        if (stage, total) != self._stage:
            self._open.close()
            self._stage = (stage, total)
            self._more = counted(self._open.enter_context(progress(stage, total, self.quiet)))
        if self._more is not None:
            self._more(done, total, note=note)
        if done >= total:
            self._open.close()
            self._stage = self._more = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

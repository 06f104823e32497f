"""Progress of a study's stages in the terminal: one bar (or log line) a stage, with rate and time left."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from exitlens.cli.console import Tick, progress

if TYPE_CHECKING:
    from exitlens.runs.engine import Progress

__all__ = ["StudyProgress"]


class StudyProgress(AbstractContextManager["StudyProgress"]):
    """Call it with each :class:`exitlens.runs.engine.Progress`; closes its bar when used as a context manager."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._stage: str | None = None
        self._done = 0
        self._tick: Tick | None = None
        self._open = ExitStack()

    def __call__(self, report: Progress) -> None:
        """Show how far a stage is."""
        if report.stage != self._stage:
            self._open.close()
            self._stage, self._done = report.stage, 0
            self._tick = self._open.enter_context(progress(report.stage, report.total, self.quiet))
        if self._tick is not None and report.done > self._done:
            self._tick(report.done - self._done)
            self._done = report.done
        if report.done >= report.total:
            self._open.close()
            self._stage = self._tick = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

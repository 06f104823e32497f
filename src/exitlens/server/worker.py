"""Generation in a thread of its own, one request at a time, given up as soon as nobody waits for it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from exitlens.errors import ExitlensError
from exitlens.server.replies import Refusal

__all__ = ["Work", "Worker"]

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Work(Protocol[T_co]):
    """What the worker's thread does for one request, and what comes of it piece by piece."""

    def run(self, alive: Callable[[], bool]) -> Iterator[T_co]:
        """The pieces; ends early when ``alive`` says no."""
        ...


@dataclass(eq=False)
class _Going:
    """A request that runs or waits."""

    # Pieces, then None; or the exception that ended the work.
    pieces: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    gone: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Answers jobs on one model; ``most`` may run or wait at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._going: set[_Going] = set()
        self._stopping = False
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # One thread is the lock: a model's hooks and caches, and a tokenizer, are never used by two answers at once.
        # A daemon, so that a long prompt in the middle of its pass cannot hold up the end of the process.
        self._thread = threading.Thread(target=self._loop, name="exitlens-generate", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> int:
        """Requests that run or wait."""
        return len(self._going)

    async def answer(self, job: Work[T]) -> AsyncGenerator[T, None]:
        """Pieces and answers as they come; closing the iterator ends the work within a token.

        Raises :class:`Refusal`: 429 when too many wait, 503 when the server stops, 400 for what only tokenizer and
        model could tell.
        """
        if self._stopping:
            raise _stopping()
        if len(self._going) >= self._most:
            raise Refusal(429, f"{self._most} requests are being answered already: try again in a moment")
        loop = asyncio.get_running_loop()
        mine = _Going()
        self._going.add(mine)

        def give(piece: T | BaseException | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(mine.pieces.put_nowait, piece)

        def work() -> None:
            try:
                if not mine.gone.is_set():
                    for piece in job.run(lambda: not mine.gone.is_set()):
                        give(piece)
            except Exception as error:  # noqa: BLE001 - handed to the request that waits for it
                give(error)
            finally:
                give(None)

        try:
            self._work.put(work)
            while (piece := await mine.pieces.get()) is not None:
                if isinstance(piece, ExitlensError):
                    raise Refusal(400, str(piece))
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            mine.gone.set()
            self._going.discard(mine)

    def stop(self) -> None:
        """Take nothing more, and tell everybody who waits (from the event loop's thread)."""
        self._stopping = True
        for mine in self._going:
            mine.gone.set()
            mine.pieces.put_nowait(_stopping())

    def close(self, seconds: float = 2.0) -> None:
        """Give up everything that runs or waits, and wait that long for the token being computed."""
        self.stop()
        self._work.put(None)
        self._thread.join(seconds)

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def _stopping() -> Refusal:
    return Refusal(503, "the server is stopping: ask again when it is back")

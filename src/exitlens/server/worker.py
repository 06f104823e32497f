"""Generation in a thread of its own, one answer at a time, given up as soon as nobody waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from exitlens.decoding import Generation, stream
from exitlens.errors import ExitlensError
from exitlens.models.protocol import LayeredModel
from exitlens.server.job import Job
from exitlens.server.replies import Refusal

__all__ = ["Worker"]


class Worker:
    """Answers jobs on one model; ``most`` may run or wait at a time."""

    def __init__(self, lm: LayeredModel, most: int) -> None:
        self.lm, self._most = lm, most
        # One thread is the lock: a model's hooks and caches are never used by two answers at once.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="exitlens-generate")
        self._going: set[threading.Event] = set()

    @property
    def busy(self) -> int:
        """Answers that run or wait."""
        return len(self._going)

    async def answer(self, job: Job) -> AsyncGenerator[str | Generation, None]:
        """Pieces of text as they come, then the whole; closing the iterator ends the work within a token.

        Raises :class:`Refusal`: 429 when too many wait, 400 for what only the model could tell.
        """
        if len(self._going) >= self._most:
            raise Refusal(429, f"{self._most} requests are being answered already: try again in a moment")
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | Generation | BaseException | None] = asyncio.Queue()
        gone = threading.Event()
        self._going.add(gone)

        def give(piece: str | Generation | BaseException | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def work() -> None:
            try:
                if not gone.is_set():
                    for piece in self._stream(job, gone):
                        give(piece)
            except Exception as error:  # noqa: BLE001 - handed to the request that waits for it
                give(error)
            finally:
                give(None)

        try:
            self._thread.submit(work)
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, ExitlensError):
                    raise Refusal(400, str(piece))
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            gone.set()
            self._going.discard(gone)

    def _stream(self, job: Job, gone: threading.Event) -> Any:
        return stream(
            self.lm,
            job.ids,
            decoder=job.decoder,
            max_new_tokens=job.new_tokens,
            stop=job.stop,
            repetition_penalty=job.penalty,
            sampling=job.sampling,
            seed=job.seed,
            alive=lambda: not gone.is_set(),
        )

    def close(self) -> None:
        """Give up everything that runs or waits."""
        for gone in list(self._going):
            gone.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

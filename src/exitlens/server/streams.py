"""What streams share: waiting for a piece while the client is there, and ends that tell what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from starlette.responses import StreamingResponse

from exitlens.server.forms import failure
from exitlens.server.replies import Refusal

__all__ = ["next_of", "streamed", "while_there"]

T = TypeVar("T")

_LOOK = 0.2  # seconds between two looks whether the client is still there


async def next_of(pieces: AsyncGenerator[T, None]) -> T | None:
    """The next piece; None: there is none any more."""
    return await anext(pieces, None)


async def while_there(http: HttpRequest, coming: Coroutine[Any, Any, T]) -> T:
    """What ``coming`` gives, unless the client goes before."""
    task = asyncio.ensure_future(coming)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_LOOK)
            if not task.done() and await http.is_disconnected():
                raise Refusal(499, "the client went away")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def streamed(
    http: HttpRequest,
    pieces: AsyncGenerator[T, None],
    written: Callable[[T], Iterable[str]],
    ending: Callable[[], Iterable[str]] = tuple,
) -> StreamingResponse:
    """Pieces as server-sent events, what follows them, and the end mark.

    The first piece is waited for, so that a refusal is still a status and not half a stream. What goes wrong later is
    the stream's last event.
    """
    try:
        first = await while_there(http, next_of(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    return StreamingResponse(
        _events(first, pieces, written, ending), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _events(
    first: T | None,
    rest: AsyncGenerator[T, None],
    written: Callable[[T], Iterable[str]],
    ending: Callable[[], Iterable[str]],
) -> AsyncIterator[str]:
    try:
        async with contextlib.aclosing(rest):
            piece = first
            while piece is not None:
                for line in written(piece):
                    yield line
                piece = await next_of(rest)
    except Refusal as refusal:
        yield failure(refusal)
        return
    except Exception:
        logging.getLogger("uvicorn.error").exception("an answer broke off")
        yield failure(Refusal(500, "the answer broke off: the server's log says why"))
        return
    for line in ending():
        yield line
    yield "data: [DONE]\n\n"

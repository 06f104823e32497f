"""``/v1/models``, ``/v1/completions`` and ``/v1/chat/completions``, as OpenAI's clients ask for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from exitlens.decoding import parse_decoder
from exitlens.decoding.token_rules import rules_of
from exitlens.models.protocol import LayeredModel
from exitlens.server.forms import ChatForm, CompletionForm, Form, event, failure
from exitlens.server.jobs import Answer, Job, Piece
from exitlens.server.limits import Gate, Limits
from exitlens.server.replies import Refusal, reply
from exitlens.server.schema import ChatRequest, CompletionRequest, Request, parse
from exitlens.server.worker import Worker

__all__ = ["create_app"]

T = TypeVar("T")

_LOOK = 0.2  # seconds between two looks whether the client is still there


def create_app(
    lm: LayeredModel,
    *,
    token: str | None = None,
    decoder: str = "vanilla",
    limits: Limits | None = None,
    generation_config: str | None = None,
) -> FastAPI:
    """An application that serves ``lm``. ``decoder`` is used where a request names none.

    ``generation_config="model"`` applies the checkpoint's own penalties and forbidden tokens to every answer; a
    request's own ``repetition_penalty`` (but 1) stands in place of the checkpoint's. Raises :class:`InputError` for an
    unknown decoder, and for a setting of the checkpoint that cannot be applied.
    """
    rules_of(lm, generation_config)
    limits = limits or Limits()
    parse_decoder(decoder)
    worker = Worker(limits.requests)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    # The pages that describe an interface load scripts from elsewhere: none. Nor is a client redirected: the address
    # would be built from the Host it sent.
    app = FastAPI(
        title="exitlens", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan, redirect_slashes=False
    )
    app.state.worker, app.state.limits = worker, limits
    app.add_middleware(Gate, token=token, limits=limits)
    began = int(time.time())
    card = {"id": lm.name, "object": "model", "created": began, "owned_by": "exitlens"}

    @app.exception_handler(Refusal)
    async def refused(_: HttpRequest, refusal: Refusal) -> JSONResponse:
        return reply(refusal)

    @app.exception_handler(HTTPException)
    async def missing(request: HttpRequest, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        known = "GET /v1/models, POST /v1/completions, POST /v1/chat/completions"
        return reply(Refusal(error.status_code, f"{where[:100]!r} is not here: use {known}"))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _check_model(lm, name)
        return card

    @app.post("/v1/completions")
    async def completions(http: HttpRequest) -> Response:
        return await answer(http, parse(CompletionRequest, await http.body()), CompletionForm)

    @app.post("/v1/chat/completions")
    async def chat(http: HttpRequest) -> Response:
        return await answer(http, parse(ChatRequest, await http.body()), ChatForm)

    async def answer(http: HttpRequest, request: Request, kind: type[Form]) -> Response:
        _check_model(lm, request.model)
        job = Job(lm, request, limits, decoder, generation_config)
        form = kind(lm.name, job.top or 0)
        pieces = worker.answer(job)
        if request.stream:
            # The first piece is waited for, so that a refusal is still a status and not half a stream.
            try:
                first = await _while_there(http, _next(pieces))
            except BaseException:
                await pieces.aclose()
                raise
            usage = request.stream_options is not None and bool(request.stream_options.include_usage)
            return StreamingResponse(_events(first, pieces, job, form, usage), media_type="text/event-stream")
        answers: list[Answer] = []
        async with contextlib.aclosing(pieces):
            while (piece := await _while_there(http, _next(pieces))) is not None:
                if isinstance(piece, Answer):
                    answers.append(piece)
        return JSONResponse(form.whole(answers, job.usage))

    return app


def _check_model(lm: LayeredModel, name: str | None) -> None:
    if not name:
        raise Refusal(400, f"model is missing: send {lm.name!r}", param="model")
    if name != lm.name:
        raise Refusal(404, f"no model {name[:100]!r} here: this server has {lm.name!r}", "model_not_found", "model")


async def _next(pieces: AsyncGenerator[Piece | Answer, None]) -> Piece | Answer | None:
    return await anext(pieces, None)


async def _while_there(http: HttpRequest, coming: Coroutine[Any, Any, T]) -> T:
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


async def _events(
    first: Piece | Answer | None, rest: AsyncGenerator[Piece | Answer, None], job: Job, form: Form, usage: bool
) -> AsyncIterator[str]:
    """Server-sent events: pieces, how each choice ended, the usage where asked for, and the end mark.

    What goes wrong once the stream has begun is its last event: the status is long sent.
    """
    begun: set[int] = set()
    try:
        async with contextlib.aclosing(rest):
            piece = first
            while piece is not None:
                if piece.index not in begun:
                    begun.add(piece.index)
                    for opening in form.opening(piece.index):
                        yield event(opening)
                yield event(form.piece(piece.index, piece.text) if isinstance(piece, Piece) else form.end(piece))
                piece = await _next(rest)
    except Refusal as refusal:
        yield failure(refusal)
        return
    except Exception:
        logging.getLogger("uvicorn.error").exception("an answer broke off")
        yield failure(Refusal(500, "the answer broke off: the server's log says why"))
        return
    if usage:
        yield event(form.usage(job.usage))
    yield "data: [DONE]\n\n"

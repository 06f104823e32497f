"""``/v1/models``, ``/v1/completions`` and ``/v1/chat/completions``, as OpenAI's clients ask for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from exitlens.decoding import Generation, parse_decoder
from exitlens.models.protocol import LayeredModel
from exitlens.server.job import Job, job_of
from exitlens.server.limits import Gate, Limits
from exitlens.server.replies import Refusal, reply
from exitlens.server.schema import ChatRequest, CompletionRequest, read_json, read_request
from exitlens.server.worker import Worker

__all__ = ["create_app"]

_LOOK = 0.2  # seconds between two looks whether the client is still there


def create_app(
    lm: LayeredModel, *, token: str | None = None, decoder: str = "vanilla", limits: Limits | None = None
) -> FastAPI:
    """An application that serves ``lm``. ``decoder`` is used where a request names none.

    Raises :class:`InputError` for an unknown decoder.
    """
    limits = limits or Limits()
    parse_decoder(decoder)
    worker = Worker(lm, limits.requests)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    # The pages that describe an interface load scripts from elsewhere: none.
    app = FastAPI(title="exitlens", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.worker = worker
    app.add_middleware(Gate, token=token, body_bytes=limits.body_bytes)
    began = int(time.time())
    card = {"id": lm.name, "object": "model", "created": began, "owned_by": "exitlens"}

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return reply(refusal)

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> JSONResponse:
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
    async def completions(request: Request) -> Response:
        return await answer(request, CompletionRequest, _Text(lm.name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, ChatRequest, _Chat(lm.name))

    async def answer(request: Request, schema: type[CompletionRequest] | type[ChatRequest], form: _Form) -> Response:
        body = read_json(await request.body())
        _check_model(lm, body.get("model"))
        job = job_of(lm, read_request(schema, body), limits, decoder)
        pieces = worker.answer(job)
        if job.stream:
            # The first piece is waited for, so that a refusal is still a status and not half a stream.
            try:
                first = await _while_there(request, anext(pieces))
            except BaseException:
                await pieces.aclose()
                raise
            return StreamingResponse(_events(first, pieces, job, form), media_type="text/event-stream")
        async with contextlib.aclosing(pieces):
            while True:
                piece = await _while_there(request, anext(pieces))
                if isinstance(piece, Generation):
                    return JSONResponse(form.whole(piece, _usage(job, piece)))

    return app


def _check_model(lm: LayeredModel, name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise Refusal(400, f"model is missing: send {lm.name!r}", param="model")
    if name != lm.name:
        raise Refusal(404, f"no model {name[:100]!r} here: this server has {lm.name!r}", "model_not_found", "model")


async def _while_there(request: Request, coming: Any) -> Any:
    """What ``coming`` gives, unless the client goes before."""
    task = asyncio.ensure_future(coming)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_LOOK)
            if not task.done() and await request.is_disconnected():
                raise Refusal(499, "the client went away")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _events(first: Any, rest: AsyncGenerator[Any, None], job: Job, form: _Form) -> AsyncIterator[str]:
    """Server-sent events, one a piece, then how it ended, the usage where asked for, and the end mark."""
    async with contextlib.aclosing(rest):
        for event in form.opening():
            yield _event(event)
        piece = first
        while isinstance(piece, str):
            yield _event(form.piece(piece))
            piece = await anext(rest)
        yield _event(form.end(piece))
        if job.usage:
            yield _event(form.usage(_usage(job, piece)))
        yield "data: [DONE]\n\n"


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _usage(job: Job, answer: Generation) -> dict[str, int]:
    prompt, new = len(job.ids), len(answer.token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


class _Form(ABC):
    """The shape of answers at one address."""

    kind, streamed, prefix = "", "", ""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def _made(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices, **more}

    @abstractmethod
    def _choice(self, text: str, finish: str | None) -> dict[str, Any]: ...

    @abstractmethod
    def _delta(self, text: str, finish: str | None) -> dict[str, Any]: ...

    def opening(self) -> list[dict[str, Any]]:
        return []

    def whole(self, answer: Generation, usage: dict[str, int]) -> dict[str, Any]:
        return self._made(self.kind, [self._choice(answer.text, _finish(answer))], usage=usage)

    def piece(self, text: str) -> dict[str, Any]:
        return self._made(self.streamed, [self._delta(text, None)])

    def end(self, answer: Generation) -> dict[str, Any]:
        return self._made(self.streamed, [self._delta("", _finish(answer))])

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        return self._made(self.streamed, [], usage=usage)


class _Text(_Form):
    kind, streamed, prefix = "text_completion", "text_completion", "cmpl"

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}

    _delta = _choice


class _Chat(_Form):
    kind, streamed, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}

    def _delta(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish, "logprobs": None}

    def opening(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [self._made(self.streamed, [{"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}])]


def _finish(answer: Generation) -> str:
    return "length" if answer.finish == "length" else "stop"

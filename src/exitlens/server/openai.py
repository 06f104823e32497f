"""``/v1/models``, ``/v1/completions`` and ``/v1/chat/completions``, as OpenAI's clients ask for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from exitlens.models.protocol import LayeredModel
from exitlens.server.forms import ChatForm, CompletionForm, Form, event
from exitlens.server.jobs import Answer, Job, Piece
from exitlens.server.replies import Refusal
from exitlens.server.schema import ChatRequest, CompletionRequest, Request, parse
from exitlens.server.service import Service
from exitlens.server.streams import next_of, streamed, while_there

__all__ = ["add_interface"]


def add_interface(app: FastAPI, service: Service) -> None:
    """Add the addresses under ``/v1``."""
    lm = service.lm
    card = {"id": lm.name, "object": "model", "created": int(time.time()), "owned_by": "exitlens"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _check_model(lm, name)
        return card

    @app.post("/v1/completions")
    async def completions(http: HttpRequest) -> Response:
        return await _answer(service, http, parse(CompletionRequest, await http.body()), CompletionForm)

    @app.post("/v1/chat/completions")
    async def chat(http: HttpRequest) -> Response:
        return await _answer(service, http, parse(ChatRequest, await http.body()), ChatForm)


async def _answer(service: Service, http: HttpRequest, request: Request, kind: type[Form]) -> Response:
    lm = service.lm
    _check_model(lm, request.model)
    job = Job(lm, request, service.limits, service.decoder, service.generation_config)
    form = kind(lm.name, job.top or 0)
    pieces = service.worker.answer(job)
    if request.stream:
        begun: set[int] = set()

        def written(piece: Piece | Answer) -> Iterator[str]:
            if piece.index not in begun:
                begun.add(piece.index)
                for opening in form.opening(piece.index):
                    yield event(opening)
            yield event(form.piece(piece.index, piece.text) if isinstance(piece, Piece) else form.end(piece))

        def ending() -> Iterator[str]:
            if request.stream_options is not None and request.stream_options.include_usage:
                yield event(form.usage(job.usage))

        return await streamed(http, pieces, written, ending)
    answers: list[Answer] = []
    async with contextlib.aclosing(pieces):
        while (piece := await while_there(http, next_of(pieces))) is not None:
            if isinstance(piece, Answer):
                answers.append(piece)
    return JSONResponse(form.whole(answers, job.usage))


def _check_model(lm: LayeredModel, name: str | None) -> None:
    if not name:
        raise Refusal(400, f"model is missing: send {lm.name!r}", param="model")
    if name != lm.name:
        raise Refusal(404, f"no model {name[:100]!r} here: this server has {lm.name!r}", "model_not_found", "model")

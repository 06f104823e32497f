"""The application: OpenAI's interface under ``/v1``, and the live page at ``/``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from exitlens.decoding import parse_decoder
from exitlens.decoding.token_rules import rules_of
from exitlens.models.protocol import LayeredModel
from exitlens.server.limits import Gate, Limits
from exitlens.server.openai import add_interface
from exitlens.server.page import add_page
from exitlens.server.replies import Refusal, reply
from exitlens.server.service import Service
from exitlens.server.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from exitlens.probes import SavedProbe

__all__ = ["create_app"]

_KNOWN = "GET /v1/models, POST /v1/completions, POST /v1/chat/completions, or the page at GET /"


def create_app(
    lm: LayeredModel,
    *,
    token: str | None = None,
    decoder: str = "vanilla",
    limits: Limits | None = None,
    generation_config: str | None = None,
    probe: SavedProbe | None = None,
    run: str | Path | None = None,
) -> FastAPI:
    """An application that serves ``lm``.

    Args:
        lm: The model.
        token: What clients must send; None: only requests that name this machine as their host pass.
        decoder: Used where a request names none.
        limits: What one request may ask for.
        generation_config: ``"model"`` applies the checkpoint's own penalties and forbidden tokens to every answer; a
            request's own ``repetition_penalty`` (but 1) stands in place of the checkpoint's.
        probe: Reads every token of the live page's answers.
        run: A run directory whose report stands at ``/run``.

    Raises:
        InputError: An unknown decoder, or a setting of the checkpoint that cannot be applied.
        ProbeError: A probe of another model or prompt.
        RunError: No run there.
    """
    rules_of(lm, generation_config)
    limits = limits or Limits()
    parse_decoder(decoder)
    if probe is not None:
        from exitlens.studies.probes.predict import check_probe

        check_probe(probe, lm)
    folder = None
    if run is not None:
        from exitlens.runs.directory import RunDirectory

        folder = RunDirectory.read(run).path
    worker = Worker(limits.requests)
    service = Service(lm, worker, limits, decoder, generation_config, probe, folder)

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
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _missing)
    add_interface(app, service)
    add_page(app, service)
    return app


async def _refused(_: HttpRequest, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, Refusal)
    return reply(refusal)


async def _missing(request: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    return reply(Refusal(error.status_code, f"{where[:100]!r} is not here: use {_KNOWN}"))

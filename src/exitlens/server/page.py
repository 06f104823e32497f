"""The live page at ``/``, what it loads, its stream at ``POST /live``, and a run's report at ``/run``.

Everything comes from this server: the policy allows no other, no inline script, no cookie is ever set, and no other
site may frame it or read from it.
"""

from __future__ import annotations

import asyncio
import functools
from importlib import resources
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from exitlens.decoding import decoder_names, parse_decoder
from exitlens.errors import ExitlensError, InputError
from exitlens.report.view_page import old_browser
from exitlens.server.forms import event
from exitlens.server.live import LiveJob, probe_line
from exitlens.server.replies import Refusal
from exitlens.server.schema import LiveRequest, parse
from exitlens.server.service import Service
from exitlens.server.streams import streamed

__all__ = ["add_page"]

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report is a file that anybody may have made: it runs as a site of its own, which cannot ask this server anything.
_REPORT_POLICY: Final = (
    "sandbox allow-scripts allow-downloads allow-modals allow-popups; connect-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_SCRIPT: Final = "text/javascript; charset=utf-8"
_ASSETS: Final = ("view.js", "live.js", "live_page.js")


@functools.cache
def _file(package: str, folder: str, name: str) -> str:
    return resources.files(package).joinpath(folder, name).read_text(encoding="utf-8")


def _sent(text: str, kind: str, policy: str = _POLICY) -> Response:
    return Response(text, media_type=kind, headers={**_HEADERS, "Content-Security-Policy": policy})


def add_page(app: FastAPI, service: Service) -> None:
    """Add the page, its files, its stream and the report."""

    @app.get("/")
    async def page() -> Response:
        return _sent(_file("exitlens.server", "pages", "live.html"), "text/html; charset=utf-8")

    @app.get("/assets/{name}")
    async def asset(name: str) -> Response:
        if name == "live.css":
            return _sent(_file("exitlens.server", "pages", name), "text/css; charset=utf-8")
        if name == "old.js":
            return _sent(old_browser("so nothing can be asked here: use one from 2023 or later."), _SCRIPT)
        if name in _ASSETS:
            return _sent(_file("exitlens.report", "assets", name), _SCRIPT)
        raise Refusal(404, f"no file {name[:80]!r} here: the page loads what it needs")

    @app.get("/live")
    async def about() -> Response:
        return JSONResponse(_about(service), headers={**_HEADERS, "Cache-Control": "no-store"})

    @app.post("/live")
    async def live(http: HttpRequest) -> Response:
        job = LiveJob(service, parse(LiveRequest, await http.body()))
        return await streamed(http, service.worker.answer(job), lambda piece: [event(piece)])

    @app.get("/run")
    async def run() -> Response:
        if service.run is None:
            raise Refusal(404, "no run is opened here: start with exitlens serve --run DIR")
        report = await asyncio.to_thread(_report, service.run)
        return _sent(report, "text/html; charset=utf-8", _REPORT_POLICY)


def _about(service: Service) -> dict[str, Any]:
    """What the page must know before it asks."""
    lm, limits = service.lm, service.limits
    room = limits.new_tokens if lm.context is None else min(limits.new_tokens, lm.context)
    forms = ["text", "question", *(["chat"] if getattr(lm.tokenizer, "chat_template", None) else [])]
    return {
        "model": lm.name,
        "layers": lm.n_layers,
        "decoder": service.decoder,
        "decoders": _decoders(service.decoder),
        "forms": forms,
        "max_tokens": room,
        "probe": None if service.probe is None else probe_line(service.probe),
        "run": None if service.run is None else service.run.name,
    }


def _decoders(first: str) -> list[str]:
    """Decoders to choose from: the server's own first, then each that needs no setting, DoLa with both its ranges."""
    found = [first]
    for name in (*decoder_names(), "dola:low", "dola:high"):
        try:
            parse_decoder(name)
        except InputError:
            continue  # one that must be told its layers
        if name not in found:
            found.append(name)
    return found


def _report(folder: Path) -> str:
    """The run's report; of a run that has none yet, one of the tables that are there. Raises :class:`Refusal`."""
    from exitlens.report.frames import Results
    from exitlens.report.page import render
    from exitlens.runs.directory import RunDirectory
    from exitlens.studies.registry import chapters

    try:
        directory = RunDirectory.read(folder)
        file = directory.path / "report.html"
        if file.is_file():
            # A run that somebody else packed may hold a link to any file of this machine.
            if not file.resolve().is_relative_to(directory.path.resolve()):
                raise InputError("its report is a link to a file outside of it")
            return file.read_text(encoding="utf-8")
        return render(Results(directory.tables(), directory.manifest), chapters(), {})
    except (ExitlensError, OSError, UnicodeDecodeError) as error:
        raise Refusal(404, f"the run at '{folder}' cannot be shown: {error}") from None

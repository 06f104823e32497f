"""`exitlens serve`: an OpenAI-compatible endpoint on this machine, any decoder a field of the request."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from exitlens.cli._load import load_model
from exitlens.cli.console import say
from exitlens.cli.help import add_command
from exitlens.cli.options import (
    DEFAULT_MODEL,
    BaseOption,
    ChatDateOption,
    DecoderOption,
    DeviceOption,
    DtypeOption,
    GenerationConfigOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    TrustOption,
)

__all__ = ["register"]


LIMITS = "Limits"


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(
        app, "serve", serve_command, "A page that shows layers live, and OpenAI's interface",
        "exitlens serve --port 8000",
        "exitlens serve --run exitlens-run --decoder dola:high",
    )  # fmt: skip


def serve_command(
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Any address but this machine's own needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="EXITLENS_TOKEN", help="What clients must send as API key [EXITLENS_TOKEN]."),
    ] = None,
    decoder: DecoderOption = "vanilla",
    watch: Annotated[
        Path | None, typer.Option("--watch", metavar="FILE", help="On the page, each token with P(true) by a probe.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="FOLDER", help="A run whose report the page opens.")
    ] = None,
    generation_config: GenerationConfigOption = None,
    chat_date: ChatDateOption = None,
    model: ModelOption = DEFAULT_MODEL,
    quiet: QuietOption = False,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-prompt-tokens", min=1, help="Longest prompt [the model's context].", rich_help_panel=LIMITS
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest answer.", rich_help_panel=LIMITS)
    ] = 1024,
    max_requests: Annotated[
        int, typer.Option("--max-requests", min=1, help="Requests that run or wait at a time.", rich_help_panel=LIMITS)
    ] = 8,
    max_body: Annotated[
        int, typer.Option("--max-body", min=1, help="Largest request, in bytes.", rich_help_panel=LIMITS)
    ] = 1 << 20,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    base: BaseOption = None,
) -> None:
    """Serve a page to ask a model and see its layers live, at /, and OpenAI's interface to any decoder, at /v1.

    A request may name its decoder: {"model": ..., "prompt": ..., "decoder": "dola:high"}. There is no --json: answers
    are JSON in OpenAI's form. SIGTERM ends it in order, with exit code 0.
    """
    from exitlens.cli._generate_watch import open_watcher
    from exitlens.decoding.contrast.parse import check_decoder

    check_decoder(decoder, model)

    from exitlens.server import Limits, check_address

    token = token or None
    check_address(host, token)
    limits = Limits(max_body, max_prompt_tokens, max_tokens, max_requests)
    probe = None if watch is None else open_watcher(watch, skips=False, qa=True)
    if run is not None:
        from exitlens.runs.directory import RunDirectory

        RunDirectory.read(run)
    # Taken before the model is loaded: a port in use is reported immediately.
    bound = _bound(host, port)

    from exitlens.server import create_app, make_server

    with bound:
        lm = load_model(model, device, dtype, revision, trust_remote_code, quiet, base=base, chat_date=chat_date)
        app = create_app(
            lm, token=token, decoder=decoder, limits=limits, generation_config=generation_config, probe=probe, run=run
        )
        where = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
        say(f"serving {lm.name} at {where}/v1 (decoder {decoder}); the live page is {where}/; stop with Ctrl-C", quiet)
        make_server(app).run(sockets=[bound])


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises InputError where there can be none."""
    from exitlens.errors import InputError

    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise InputError(f"cannot serve on {host}:{port} ({error.strerror or error}): choose another --port") from None
    return found

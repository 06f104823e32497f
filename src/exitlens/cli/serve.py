"""`exitlens serve`: an OpenAI-compatible endpoint on this machine, any decoder a field of the request."""

from __future__ import annotations

from typing import Annotated

import typer

from exitlens.cli.console import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    TrustOption,
    say,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve_command)


def serve_command(
    host: Annotated[
        str, typer.Option("--host", help="Address; any but this machine's own needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option("--token", envvar="EXITLENS_TOKEN", help="What clients must send as their API key.")
    ] = None,
    decoder: Annotated[str, typer.Option("--decoder", help="Where a request names none.")] = "vanilla",
    max_prompt_tokens: Annotated[
        int | None, typer.Option("--max-prompt-tokens", help="Longest prompt taken (default: the model's context).")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer given.")] = 1024,
    max_requests: Annotated[int, typer.Option("--max-requests", help="Requests that may run or wait at a time.")] = 8,
    max_body: Annotated[int, typer.Option("--max-body", help="Largest request, in bytes.")] = 1 << 20,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    quiet: QuietOption = False,
) -> None:
    """Serve a model to OpenAI's clients: /v1/models, /v1/completions and /v1/chat/completions, streamed too.

    A request may name its decoder: {"model": ..., "prompt": ..., "decoder": "dola:high"}.
    """
    import socket

    from exitlens.decoding import parse_decoder
    from exitlens.errors import InputError
    from exitlens.server import Limits, check_address

    token = token or None
    check_address(host, token)
    limits = Limits(max_body, max_prompt_tokens, max_tokens, max_requests)
    parse_decoder(decoder)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Taken before the model is loaded: a port in use is told at once.
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InputError(f"cannot serve on {host}:{port} ({error.strerror or error}): choose another --port") from None

    import uvicorn

    from exitlens.models import load
    from exitlens.server import create_app

    with bound:
        say(f"loading {model}", quiet)
        lm = load(model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
        app = create_app(lm, token=token, decoder=decoder, limits=limits)
        where = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}/v1"
        say(f"serving {lm.name} at {where} (decoder {decoder}); stop with Ctrl-C", quiet)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, server_header=False)
        uvicorn.Server(config).run(sockets=[bound])

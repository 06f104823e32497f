"""What a server takes from whom: addresses, tokens, sizes. Everything here is decided before a request is read."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from exitlens.errors import InputError
from exitlens.server.replies import Refusal, reply

__all__ = ["Gate", "Limits", "check_address", "is_loopback"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Most that one request may ask for. ``prompt_tokens`` None: as much as the model's context.

    Raises :class:`InputError` for a limit below 1.
    """

    body_bytes: int = 1 << 20
    prompt_tokens: int | None = None
    new_tokens: int = 1024
    requests: int = 8

    def __post_init__(self) -> None:
        for name in ("body_bytes", "prompt_tokens", "new_tokens", "requests"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"limit {name}={value} must be at least 1")


def is_loopback(host: str) -> bool:
    """True for an address that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_address(host: str, token: str | None) -> None:
    """Raises :class:`InputError` for an address that others can reach without a token, and for an unfit token."""
    if token is not None and (len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token):
        raise InputError("the token is not fit: use at least 8 printable ASCII characters without spaces")
    if token is None and not is_loopback(host):
        raise InputError(
            f"{host} can be reached from other machines: give --token (or EXITLENS_TOKEN), or serve on 127.0.0.1"
        )


class Gate:
    """The outermost layer: who may ask, under which name, and how much.

    Without a token only requests that name this machine itself as their host pass, so that a page in a browser cannot
    reach the server through a name of its own (DNS rebinding).
    """

    def __init__(self, app: App, token: str | None, body_bytes: int) -> None:
        self.app, self._token, self._limit = app, token, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._who(headers)
            body = await self._body(headers, receive) if scope["method"] == "POST" else b""
        except Refusal as refusal:
            await reply(refusal)(scope, receive, send)
            return
        sent = False

        async def whole() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                return await receive()  # tells when the client goes
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, whole, send)

    def _who(self, headers: dict[bytes, bytes]) -> None:
        if self._token is None:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
            if not is_loopback(name):
                raise Refusal(403, f"host {host!r} is not this machine: ask for 127.0.0.1 or localhost")
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token.encode()):
            raise Refusal(401, "wrong or missing token: send it as 'Authorization: Bearer TOKEN'", "invalid_api_key")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refusal(415, f"content type {kind.decode('latin-1')!r} is not supported: send application/json")
        told = headers.get(b"content-length", b"0")
        too_large = Refusal(413, f"the body is larger than {self._limit} bytes: send less")
        if told.isdigit() and int(told) > self._limit:
            raise too_large
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the connection closed before the whole body had come")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                raise too_large
            if not message.get("more_body"):
                return b"".join(parts)

"""What a server takes from whom: addresses, tokens, sizes. Everything here is decided before a request is read."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from exitlens.errors import InputError
from exitlens.server.replies import Refusal, reply

__all__ = ["Gate", "Limits", "check_address", "is_loopback", "names_this_machine"]

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
    # Seconds for a request's headers, for its body, and for a client to take what is sent to it.
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    read_seconds: float = 20.0
    # Connections without a request at a time: beyond them the one that has waited longest is closed.
    idle_connections: int = 64

    def __post_init__(self) -> None:
        for name in ("body_bytes", "prompt_tokens", "new_tokens", "requests", "idle_connections"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"limit {name}={value} must be at least 1")
        for name in ("header_seconds", "body_seconds", "read_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"limit {name}={getattr(self, name)} must be above 0")


def is_loopback(host: str) -> bool:
    """True for an address that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def names_this_machine(host: str) -> bool:
    """True for a Host header (name or address, with or without a port) that names a loopback address.

    Names are compared without regard to case and to one final dot, and nothing but a port may follow.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(:[0-9]{1,5})?", host)
    return found is not None and is_loopback(found[1].lower().removesuffix("."))


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
    reach the server through a name of its own (DNS rebinding), and none that a browser sends for a page of elsewhere.
    """

    def __init__(self, app: App, token: str | None, limits: Limits) -> None:
        self.app, self._token, self._limits = app, token, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._who(scope["headers"], scope["path"])
            headers = {name.lower(): value for name, value in scope["headers"]}
            body = await self._timely_body(headers, receive) if scope["method"] == "POST" else b""
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

    def _who(self, headers: Sequence[tuple[bytes, bytes]], path: str) -> None:
        given = [value for name, value in headers if name.lower() == b"authorization"]
        if len(given) > 1:
            raise Refusal(400, f"{len(given)} Authorization headers: send one")
        if self._token is None:
            host = b"".join(value for name, value in headers if name.lower() == b"host").decode("latin-1")
            if not names_this_machine(host):
                raise Refusal(403, f"host {host[:80]!r} is not this machine: ask for 127.0.0.1 or localhost")
            # Browsers name the site that asks; programs name none.
            for site in (value.decode("latin-1") for name, value in headers if name.lower() == b"origin"):
                if not names_this_machine(site.partition("://")[2]):
                    raise Refusal(403, f"the site {site[:80]!r} asked for this: open the page itself")
            return
        kind, _, token = (given[0] if given else b"").partition(b" ")
        # A browser cannot send a bearer's token when it opens a page, but it can ask for a password. It then adds it to
        # requests by itself, from other sites too: so never at the interface for programs, and never across sites.
        page = not path.startswith("/v1")
        if page and kind.lower() == b"basic":
            sites = [value for name, value in headers if name.lower() == b"sec-fetch-site"]
            if any(site not in (b"same-origin", b"none") for site in sites) and path != "/":
                raise Refusal(403, "another site asked for this: open the page itself")
            kind, token = b"bearer", _password(token)
        if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token.encode()):
            remedy = "the token is the password, with any name" if page else "send it as 'Authorization: Bearer TOKEN'"
            raise Refusal(401, f"wrong or missing token: {remedy}", "invalid_api_key", browser=page)

    async def _timely_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await self._body(headers, receive)
        except TimeoutError:
            seconds = f"{self._limits.body_seconds:g}"
            raise Refusal(408, f"the body had not come after {seconds} s: send it faster, or less") from None

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refusal(415, f"content type {kind.decode('latin-1')!r} is not supported: send application/json")
        told = headers.get(b"content-length", b"0")
        too_large = Refusal(413, f"the body is larger than {self._limits.body_bytes} bytes: send less")
        if told.isdigit() and int(told) > self._limits.body_bytes:
            raise too_large
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the connection closed before the whole body had come")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.body_bytes:
                raise too_large
            if not message.get("more_body"):
                return b"".join(parts)


def _password(basic: bytes) -> bytes:
    """The password of HTTP's basic scheme; empty for what is not of that form."""
    try:
        return base64.b64decode(basic.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""

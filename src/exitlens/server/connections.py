"""Connections that say nothing and clients that do not read: deadlines and bounds below HTTP; how a server ends."""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from exitlens.server.limits import Limits

__all__ = ["make_server"]

# A client that does not read is noticed only once what is sent to it has nowhere to go: both buffers are kept small.
_BUFFER = 32 << 10
_GRACE = 3  # seconds that a stopping server waits for streams to end


class _Waiting:
    """The connections without a request, the longest waiting first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._since: dict[_Connection, asyncio.TimerHandle] = {}

    def add(self, connection: _Connection) -> None:
        self.remove(connection)
        if len(self._since) >= self.limits.idle_connections:
            longest = next(iter(self._since))
            self.remove(longest)
            longest.transport.abort()
        loop = asyncio.get_running_loop()
        self._since[connection] = loop.call_later(self.limits.header_seconds, self._late, connection)

    def remove(self, connection: _Connection) -> None:
        timer = self._since.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _late(self, connection: _Connection) -> None:
        self._since.pop(connection, None)
        connection.transport.abort()


class _Connection(H11Protocol):
    """uvicorn's connection, with a deadline for a request's headers and for reading what was sent."""

    def __init__(self, *given: Any, waiting: _Waiting, **named: Any) -> None:
        super().__init__(*given, **named)
        self._waiting = waiting
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        connected = transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        transport.set_write_buffer_limits(high=_BUFFER)
        self._waiting.add(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        if cycle is not None and not cycle.response_complete:
            self._waiting.remove(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # A request that came in one packet with the last one has begun already.
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._waiting.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.remove(self)
        self._read_again()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = self._waiting.limits.read_seconds
        self._unread = asyncio.get_running_loop().call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._read_again()
        super().resume_writing()

    def _read_again(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class _Server(uvicorn.Server):
    """Told to stop, it says so to whoever waits; SIGTERM is an orderly end (exit code 0), Ctrl-C is Ctrl-C."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI):
            app.state.worker.stop()
        await super().shutdown(sockets)


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server for :func:`exitlens.server.create_app`'s application, within its limits."""
    protocol = functools.partial(_Connection, waiting=_Waiting(app.state.limits))
    config = uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]  # called as the class would be
        ws="none",
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=_GRACE,
        server_header=False,
    )
    return _Server(config)

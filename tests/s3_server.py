"""An S3 server in a process of its own, and a proxy before it that fails, delays, hides and counts as a test says."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Proxy", "server"]


@contextlib.contextmanager
def server() -> Iterator[int]:
    """The port of moto's S3 server; the process ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=quiet, stderr=quiet)
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, "moto's server ended"
            assert time.monotonic() < end, "moto's server does not answer"
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


class Proxy:
    """Passes requests on. ``rule(method, path, number)`` may return a status to answer with, or the code of a 403, or
    wait, or raise to drop the connection. ``hidden``: headers that the server does not see. ``seen``: (method, path) of
    every request.
    """

    def __init__(self, port: int) -> None:
        self.rule: Callable[[str, str, int], int | str | None] = lambda _method, _path, _number: None
        self.hidden: set[str] = set()
        self.seen: list[tuple[str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.seen.append((self.command, self.path))
                try:
                    status = proxy.rule(self.command, self.path, len(proxy.seen))
                except ConnectionError:
                    self.close_connection = True
                    return
                if status is not None:
                    codes = {403: "AccessDenied", 503: "SlowDown"}
                    code = status if isinstance(status, str) else codes.get(status, "InternalError")
                    status = 403 if isinstance(status, str) else status
                    raw = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                    self._answer(status, {"Content-Type": "application/xml"}, raw)
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in proxy.hidden}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                raw = answer.read()
                skipped = ["transfer-encoding", "connection"]
                if self.command != "HEAD":  # whose length is that of the object
                    skipped.append("content-length")
                self._answer(answer.status, {k: v for k, v in answer.getheaders() if k.lower() not in skipped}, raw)
                upstream.close()

            def _answer(self, status: int, headers: dict[str, str], raw: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "content-length" not in {name.lower() for name in headers}:
                    self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(raw)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Its own address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

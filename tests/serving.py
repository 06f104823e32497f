"""A server for tests: an application on a free port of this machine, for as long as a ``with``."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from exitlens.server import make_server

__all__ = ["running", "until"]


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The application's address, ``http://127.0.0.1:PORT``."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    """Waits until ``true`` says so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)

"""A real cluster of Ray on one machine: a head and other nodes, each a `ray start`, ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # its ports are open to the network while the tests run
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # A node that died is noticed in seconds, one that is slow on a loaded machine is left alone.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class RayNodes:
    """Nodes by name; use as a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="xl-ray-", dir="/tmp"))  # sockets need a short path
        self.port = free_port()
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, name: str, cpus: int, gpus: int = 0, **environment: str) -> None:
        """Start a node with a home, a cache and a working folder of its own, as a machine has."""
        home = self.folder / f"home-{name}"
        home.mkdir()
        own = {"EXITLENS_NODE": name, "HOME": str(home), "EXITLENS_CACHE": str(home / "cache"), **environment}
        where = ["--head", f"--port={self.port}", f"--temp-dir={self.folder}", "--include-dashboard=false"]
        command = [
            sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block",
            "--disable-usage-stats", f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=80000000",
            *(where if not self._nodes else [f"--address={self.address}"]),
        ]  # fmt: skip
        with (self.folder / f"{name}.txt").open("wb") as log:
            self._nodes[name] = subprocess.Popen(
                command, env={**os.environ, **QUIET, **own}, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, cwd=home,
            )  # fmt: skip
        if len(self._nodes) == 1:
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.1)
        raise RuntimeError((self.folder / "head.txt").read_text())

    def alive(self, name: str) -> bool:
        return name in self._nodes

    def kill(self, name: str) -> None:
        """As a machine that loses its power: all of its processes at once."""
        node = self._nodes.pop(name)
        for pid in [*_below(node.pid), node.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait(timeout=30)

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._nodes)):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)


def _below(pid: int) -> list[int]:
    """All processes that a process started, and those that these started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found

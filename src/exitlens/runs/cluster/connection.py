"""A connection to Ray: found or started, quiet, closed to the network, and of one version on all machines."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exitlens.errors import ExitlensError, MissingExtra, RunError
from exitlens.parsing import cut
from exitlens.runs.cluster.address import RayAddress
from exitlens.runs.cluster.worker import About, describe
from exitlens.storage.atomic import alive

__all__ = ["Cluster", "Node", "connect", "differing"]

SECONDS_TO_ANSWER = 5.0
SECONDS_TO_DESCRIBE = 60.0
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # an empty frame of HTTP/2: length 0, type 4
# Ray asks for none of these, and nobody who runs a study waits for them. Read when Ray is imported or starts.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
# A cluster of this machine alone listens on the loopback interface, and takes no call without its own token. Where the
# command was killed, what remains of it looks for its head for seconds, not for minutes.
_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
_FOLDER = "exitlens-ray-"


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster: Ray's id and its name, with what it has to give."""

    id: str
    name: str
    cpus: float
    gpus: float


class Cluster:
    """A connection to a cluster; use as a context manager. ``owned``: it was made here, and ends with it.

    ``before``: what was done on SIGTERM without it.
    """

    def __init__(
        self, ray: Any, address: RayAddress, *, owned: bool, folder: str | None = None, before: Any = None
    ) -> None:
        self.ray = ray
        self.address = address
        self.owned = owned
        self._folder = folder
        self._before = before if owned and _interrupted_by_sigterm() else None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self.owned and self.ray.is_initialized():
            self.ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def nodes(self) -> list[Node]:
        """The machines that are alive; those of one host name are told apart by a number."""
        found: list[Node] = []
        for entry in sorted((n for n in self.ray.nodes() if n["Alive"]), key=lambda n: str(n["NodeID"])):
            has = entry["Resources"]
            found.append(
                Node(entry["NodeID"], str(entry["NodeManagerHostname"]), has.get("CPU", 0.0), has.get("GPU", 0.0))
            )
        seen: dict[str, int] = {}
        named = []
        for node in found:
            seen[node.name] = seen.get(node.name, 0) + 1
            more = sum(other.name == node.name for other in found) > 1
            named.append(Node(node.id, f"{node.name}#{seen[node.name]}" if more else node.name, node.cpus, node.gpus))
        return named

    def on(self, node_id: str) -> Any:
        """Ray's way to name a machine for a task."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id, soft=False)

    def check(self, nodes: Sequence[Node], places: Sequence[str]) -> None:
        """Every machine has the same versions and sees ``places``. Raises RunError that names the first that does not.

        Asked before a model is loaded anywhere: a second a machine, all at once.
        """
        mine = describe(places)
        ask = self.ray.remote(num_cpus=0, max_retries=0)(describe)
        asked = {node.id: ask.options(scheduling_strategy=self.on(node.id)).remote(list(places)) for node in nodes}
        self.ray.wait(list(asked.values()), num_returns=len(asked), timeout=SECONDS_TO_DESCRIBE)
        for node in nodes:
            try:
                about: About = self.ray.get(asked[node.id], timeout=0.1)
            except self.ray.exceptions.GetTimeoutError:
                raise RunError(
                    f"machine {node.name} of the cluster does not answer within {SECONDS_TO_DESCRIBE:.0f} s: look at "
                    "it with `ray status`, or take it out of the cluster"
                ) from None
            except Exception as error:  # noqa: BLE001 - whatever an installation without exitlens, or of another kind, says
                raise RunError(f"machine {node.name} cannot run exitlens: {_first(error)}; {_SAME}") from None
            wrong = differing(mine.versions, about.versions)
            if wrong:
                raise RunError(f"machine {node.name} has {wrong}; {_SAME}")
            if about.missing:
                raise RunError(
                    f"machine {node.name} does not see '{cut(about.missing[0])}': put it where every machine sees it "
                    "under one path, or name a model of the Hub"
                )


_SAME = "install the same versions on every machine (pip install 'exitlens[ray]' with one constraints file)"


def differing(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """The first version that differs, in words, or nothing; of Python, a patch level makes no difference."""
    for name, version in mine.items():
        other = theirs.get(name, "not installed")
        same = version.split(".")[:2] == other.split(".")[:2] if name == "python" else version == other
        if not same:
            return f"{name} {cut(other, 30)}, this machine has {name} {version}"
    return ""


def connect(address: RayAddress, *, cpus: int | None = None) -> Cluster:
    """Find the cluster, or start one on this machine with ``cpus`` to give (default: all).

    Raises:
        MissingExtra: Ray is not installed.
        RunError: Nothing answers at the address, or it is of another version.
    """
    if address.host is not None:
        _answers(address)
    for name, value in {**_QUIET, **(_LOOPBACK if address.host is None else {})}.items():
        os.environ.setdefault(name, value)
    if address.host is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError:
        raise MissingExtra("--engine ray needs Ray: pip install 'exitlens[ray]'") from None
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    # Ray prints what it notices of any worker's death on the standard output, among the results; a run says it itself.
    # The name is Ray's own: one that has another shows these lines again, and nothing else changes.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    if ray.is_initialized():  # a program that holds a connection keeps it
        return Cluster(ray, address, owned=False)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": False}
    folder, before = None, signal.getsignal(signal.SIGTERM)
    try:
        if address.host is None:
            # Sockets lie in it, and the path of a socket has to be short.
            short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 40 else "/tmp"
            _sweep(Path(short))
            folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=short)
            ray.init(num_cpus=cpus, include_dashboard=False, _temp_dir=folder, **quiet)
        else:
            ray.init(address=str(address), **quiet)
    except ExitlensError:
        raise
    except Exception as error:  # noqa: BLE001 - Ray raises what it likes: versions, sockets, time
        with contextlib.suppress(Exception):
            ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
        raise RunError(_refused(address, error)) from None
    return Cluster(ray, address, owned=True, folder=folder, before=before)


def _interrupted_by_sigterm() -> bool:
    """End on SIGTERM as on Ctrl-C, it is what Slurm and Kubernetes send first; whether that can be had.

    Ray's own answer to it is a trace on the error stream.
    """
    if threading.current_thread() is not threading.main_thread():
        return False

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not hinder what ends cleanly now
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    return True


def _sweep(folder: Path) -> None:
    """Remove the folders of commands that were killed, with the sockets and logs of their Ray."""
    for left in folder.glob(f"{_FOLDER}*"):
        pid = left.name.removeprefix(_FOLDER).partition("-")[0]
        if pid.isdecimal() and not alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _answers(address: RayAddress) -> None:
    """Whether a server of Ray's kind (gRPC, and so HTTP/2) listens there: Ray itself would wait for minutes."""
    host = str(address.host).strip("[]")
    try:
        with socket.create_connection((host, address.port), timeout=SECONDS_TO_ANSWER) as asked:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return  # it says nothing before keys are exchanged
            # A connection begins with these words and an empty frame of settings; the server's first frame is its own.
            asked.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
            said = asked.recv(9)
    except OSError as error:
        why = error.strerror or str(error)
        raise RunError(
            f"no Ray cluster answers at '{address}' ({why}): start one with `ray start --head --port={address.port}`, "
            "correct the address, or use --engine ray for this machine alone"
        ) from None
    if said[3:4] != _SETTINGS[3:4]:
        raise RunError(
            f"what answers at '{address}' is no Ray cluster: give the address that `ray start --head` prints, or use "
            "--engine ray for this machine alone"
        )


def _refused(address: RayAddress, error: Exception) -> str:
    text = str(error)
    if "ersion mismatch" in text:
        told = " ".join(text.split())
        return f"the cluster at '{address}' is of another version ({cut(told, 300)}); {_SAME}"
    if address.host is None:
        return f"Ray did not start on this machine: {_first(error)}; use --engine local"
    return (
        f"'{address}' is no cluster that this machine belongs to: {_first(error)}; give the address that `ray start "
        "--head` prints, and run the command on a machine of the cluster"
    )


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "Error" in line), lines[0] if lines else "")
    return cut(last or type(error).__name__, 160)

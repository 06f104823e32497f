"""What `--engine` says: this process, or a cluster of Ray and where it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from exitlens.errors import InputError
from exitlens.parsing import cut

__all__ = ["PORT", "EngineSettings", "RayAddress", "parse_engine"]

PORT = 6379  # of `ray start --head`, where nobody says another
_PLACE = re.compile(r"(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class RayAddress:
    """A cluster: ``host`` and ``port`` of its head; no host: one of this machine alone, started for the run."""

    host: str | None = None
    port: int = PORT

    def __str__(self) -> str:
        return "ray" if self.host is None else f"{self.host}:{self.port}"


def parse_engine(text: str) -> RayAddress | None:
    """The cluster that ``local``, ``ray`` or ``ray://HOST[:PORT]`` means; None for this process.

    Raises:
        InputError: Another word, a host or port that cannot be.
    """
    if text == "local":
        return None
    if text == "ray":
        return RayAddress()
    scheme, _, place = text.partition("://")
    found = _PLACE.fullmatch(place)
    port = PORT if found is None or found["port"] is None else int(found["port"])
    if scheme != "ray" or found is None or not 0 < port < 65536:
        raise InputError(
            f"--engine {cut(repr(text))} is unknown: use local, ray (this machine), or ray://HOST:PORT (a cluster, by "
            "the address that `ray start --head` prints)"
        )
    return RayAddress(found["host"], port)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What ``--engine``, ``--workers`` and ``--deadline`` say."""

    engine: str = "local"
    workers: int | None = None
    deadline: float | None = None

    def check(self) -> None:
        """Raise InputError for an engine that is unknown, and for settings that only workers have."""
        address = parse_engine(self.engine)
        for name, value in (("workers", self.workers), ("deadline", self.deadline)):
            if value is not None and not value > 0:
                raise InputError(f"--{name} {value:g} is too small: give more than 0")
            if value is not None and address is None:
                raise InputError(f"--{name} {value:g} is for --engine ray: add it, or leave --{name} out")

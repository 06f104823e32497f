"""What all addresses of one server share: the model, who works, and what may be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exitlens.models.protocol import LayeredModel
from exitlens.server.limits import Limits
from exitlens.server.worker import Worker

if TYPE_CHECKING:
    from exitlens.probes import SavedProbe

__all__ = ["Service"]


@dataclass(frozen=True, slots=True)
class Service:
    """``decoder`` is used where a request names none; ``probe`` reads every token of the page's answers; ``run`` is the
    directory of a run whose report the page offers.
    """

    lm: LayeredModel
    worker: Worker
    limits: Limits
    decoder: str = "vanilla"
    generation_config: str | None = None
    probe: SavedProbe | None = None
    run: Path | None = None

"""The sum over texts so far, in memory and in a file that is whole at every moment."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from exitlens.errors import ExitlensError, InputError
from exitlens.storage.atomic import write_tensors
from exitlens.storage.tensors import read_tensors

__all__ = ["UNIT", "RunningSum"]

UNIT = 4  # texts that are summed by themselves, before their sum is added to that of the others

_FORMAT = "exitlens-jacobian-sum-1"
_SHARE = 0.05  # of the time may go into writing


class RunningSum:
    """The sum ``[layers, d, d]`` float32 over ``count`` texts, and the ``curve`` measured on the way.

    Every :data:`UNIT` texts are summed from zero and then added, so that others may sum units and the bytes stay.

    Found in ``path`` where one of the same ``key`` lies there. It is written as often as costs no more than a twentieth
    of the time; whatever is lost with a kill is computed again, in the same order.

    Raises:
        InputError: ``path`` holds another fit's sum, or another file.
    """

    def __init__(self, path: Path | str | None, key: str, shape: tuple[int, int, int]) -> None:
        self.path, self.key = None if path is None else Path(path), key
        self._whole, self._part, self.count = torch.zeros(shape), torch.zeros(shape), 0
        self.curve: list[Mapping[str, float]] = []
        self._written = time.monotonic()
        self._cost = 0.0
        if self.path is not None and self.path.exists():
            self._read(self.path)

    @property
    def value(self) -> Tensor:
        """The sum over all texts so far."""
        return self._whole + self._part if self.count % UNIT else self._whole

    def add(self, value: Tensor) -> None:
        """One text more."""
        self._part += value.to(self._part.device)
        self.count += 1
        if self.count % UNIT == 0:
            self._whole += self._part
            self._part.zero_()

    def add_unit(self, value: Tensor, texts: int) -> None:
        """A unit of ``texts`` texts that was summed elsewhere; only the last may have fewer than :data:`UNIT`."""
        (self._whole if texts == UNIT else self._part).add_(value.to(self._whole.device))
        self.count += texts

    def drop_part(self) -> None:
        """Forget the texts of a unit that was begun: it is made again as a whole."""
        self.count -= self.count % UNIT
        self._part.zero_()

    def keep(self, *, last: bool = False) -> bool:
        """Write it down, unless that was done too lately; ``last``: whatever it costs. Whether it was written."""
        begun = time.monotonic()
        if self.path is None or (not last and begun - self._written < self._cost / _SHARE):
            return False
        facts = {"format": _FORMAT, "key": self.key, "count": str(self.count), "curve": json.dumps(self.curve)}
        write_tensors(self.path, {"sum": self._whole, **({"part": self._part} if self.count % UNIT else {})}, facts)
        self._written = time.monotonic()
        self._cost = self._written - begun
        return True

    def _read(self, path: Path) -> None:
        tensors, facts = read_tensors(path)
        if facts.get("format") != _FORMAT:
            raise InputError(f"'{path}' is not the sum of a fit that was stopped: name another file")
        if facts.get("key") != self.key:
            raise InputError(
                f"'{path}' is the sum of another fit (other texts, model or settings): remove it, or name another file"
            )
        try:
            self.count, curve = int(facts["count"]), json.loads(facts["curve"])
            self._whole.copy_(tensors["sum"])
            if self.count % UNIT:
                self._part.copy_(tensors["part"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ExitlensError(f"'{path}' is damaged ({str(error)[:80]}): remove it") from error
        self.curve.extend(curve)

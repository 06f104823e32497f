"""Jacobians of many texts, summed in units of a few: here one after another, or by others who write a unit each.

A sum of floats depends on the order of its additions. It is the same everywhere: a unit's texts in their order from
zero, then the units in theirs; who makes which unit, and when, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exitlens.errors import ModelError, RunError
from exitlens.lenses.jacobian._running_sum import UNIT, RunningSum
from exitlens.lenses.jacobian.text import FitSettings, text_jacobian
from exitlens.models.protocol import LayeredModel
from exitlens.models.pullback import Gradient, Method, gradient_by
from exitlens.parsing import cut
from exitlens.storage.atomic import key_of, write_tensors
from exitlens.storage.tensors import read_tensors

if TYPE_CHECKING:
    from exitlens.storage.sealed import Sealed

__all__ = ["Elsewhere", "Stream", "SumTexts", "add_texts"]

Stream = Callable[[Any, Iterable[Any]], Iterator[tuple[Any, Any]]]
"""Runs a task on jobs, see :meth:`exitlens.runs.engine.Engine.stream`."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Who sums units of texts, and the folder that they write to."""

    stream: Stream
    folder: Path


@dataclass(frozen=True, slots=True)
class _Job:
    """A unit: its texts' token ids, and the number of the first."""

    number: int
    key: str
    texts: list[list[int]]
    first: int

    @property
    def size(self) -> int:
        return len(self.texts)

    @property
    def named(self) -> str:
        return f"texts {self.first} to {self.first + len(self.texts) - 1}"


@dataclass(frozen=True)
class SumTexts:
    """Sums the Jacobians of a unit's texts; ``method``: how gradients are taken, ``product``: in which products.

    ``units``: where a unit's sum is written; ``_how``: the gradient, made once a process.
    """

    layers: tuple[int, ...]
    settings: FitSettings
    method: Method
    product: torch.dtype
    units: Sealed | None = None
    _how: list[Gradient] = field(default_factory=list, compare=False, repr=False)

    def one(self, lm: LayeredModel, number: int, ids: Sequence[int]) -> Tensor:
        """One text's matrices ``[layers, d, d]`` float32. Raises ModelError for NaN, naming text and layer."""
        if not self._how:
            self._how.append(gradient_by(lm, self.method, self.product))
        found = text_jacobian(lm, ids, self.layers, self.settings, self._how[0])
        for layer, matrix in zip(reversed(self.layers), found.flip(0), strict=True):
            if not bool(torch.isfinite(matrix).all()):
                raise ModelError(
                    f"text {number} ({cut(repr(lm.decode(list(ids)[:20])), 40)}): its Jacobian at layer {layer} of "
                    f"{lm.name} holds NaN or infinity: leave the text out, or load it in float32 (this is {lm.dtype})"
                )
        return found

    def run(self, lm: LayeredModel, job: _Job, /) -> None:
        """Write the sum of a unit."""
        if self.units is None:
            raise RunError("a sum of texts needs a folder: give one")
        total = self.one(lm, job.first, job.texts[0])
        for place, ids in enumerate(job.texts[1:], 1):
            total += self.one(lm, job.first + place, ids)
        tensors = {"sum": total}
        self.units.write(job.number, job.key, {"safetensors": partial(write_tensors, tensors=tensors)}, {})


def add_texts(
    lm: LayeredModel,
    texts: Sequence[list[int]],
    total: RunningSum,
    task: SumTexts,
    first: int,
    stop: Callable[[], bool],
    elsewhere: Elsewhere | None = None,
) -> Iterator[int]:
    """Add the texts that ``total`` lacks, until there are no more or ``stop`` says so; how many are in, after each.

    ``first``: the number of the first text, for errors. Units made elsewhere are added, and then removed.
    """
    if elsewhere is None:
        while total.count < len(texts) and not (total.count and stop()):
            total.add(task.one(lm, first + total.count, texts[total.count]))
            yield total.count
        return
    from exitlens.storage.sealed import Sealed

    total.drop_part()
    units = Sealed(elsewhere.folder)
    finished = units.finished()
    ready: dict[int, _Job] = {}
    added: list[_Job] = []

    def jobs() -> Iterator[_Job]:
        for at in range(total.count, len(texts), UNIT):
            if at and stop():
                return
            number = at // UNIT
            job = _Job(number, key_of(total.key, number), list(texts[at : at + UNIT]), first + at)
            if finished(number, job.key) is None:
                yield job
            else:
                ready[number] = job

    def add_ready() -> Iterator[int]:
        """The units that are next, in their order."""
        while (job := ready.pop(total.count // UNIT, None)) is not None:
            tensors, _ = read_tensors(units.path(job.number, job.key, "safetensors"))
            total.add_unit(tensors["sum"], len(job.texts))
            added.append(job)
            yield total.count
            if total.keep():
                _remove(units, added)

    for job, _ in elsewhere.stream(SumTexts(task.layers, task.settings, task.method, task.product, units), jobs()):
        ready[job.number] = job
        yield from add_ready()
    yield from add_ready()
    total.keep(last=True)
    _remove(units, added)


def _remove(units: Sealed, added: list[_Job]) -> None:
    """Units whose sum is kept with that of the others are of no more use."""
    for job in added:
        units.remove(job.number, job.key, ("safetensors",))
    added.clear()

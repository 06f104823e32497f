"""The engine that a command asks for: this process, or workers on a cluster that load the model themselves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from exitlens.errors import InputError
from exitlens.models.hub.catalog import CATALOG
from exitlens.models.protocol import LayeredModel
from exitlens.runs.cluster.address import EngineSettings, parse_engine
from exitlens.runs.cluster.connection import Node
from exitlens.runs.directory import RunDirectory
from exitlens.runs.engine import Engine, LocalEngine, Report

__all__ = ["Maker", "ModelSource", "opened_engine"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """How a process comes to the model: the arguments of :func:`exitlens.models.load`, and an adapter for it."""

    name: str
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    base: str | None = None
    adapter: str | None = None

    def load(self, threads: int | None = None) -> LayeredModel:
        """The model, loaded in this process; ``threads``: of its products, unless they are left as they are."""
        from exitlens.models import load
        from exitlens.studies.exits.files import load_adapted

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        lm: LayeredModel = load(
            self.name, device=self.device, dtype=self.dtype, revision=self.revision,
            trust_remote_code=self.trust_remote_code, base=self.base,
        )  # fmt: skip
        return lm if self.adapter is None else load_adapted(lm, self.adapter)

    def marks(self, lm: LayeredModel) -> Mapping[str, str]:
        """Weights, number types, kind of device: what decides the bytes of results."""
        from exitlens.compute.hardware import product_dtype

        product = product_dtype("fast", lm.device, lm.dtype)
        kinds = {"number type": lm.dtype, "number type of products": product}
        return {
            "fingerprint": lm.fingerprint,
            **{name: str(kind).removeprefix("torch.") for name, kind in kinds.items()},
            "device": lm.device.type,
        }

    @property
    def places(self) -> tuple[str, ...]:
        """The files and folders among its arguments."""
        return tuple(text for text in (self.name, self.base, self.adapter) if text is not None and _is_place(text))

    def elsewhere(self, lm: LayeredModel) -> ModelSource:
        """The same for another process, in whatever folder it stands and whatever its hardware would choose."""

        def whole(text: str | None) -> str | None:
            return str(Path(text).expanduser().absolute()) if text is not None and _is_place(text) else text

        dtype = str(lm.dtype).removeprefix("torch.")
        return ModelSource(
            whole(self.name) or self.name, lm.device.type, dtype, self.revision, self.trust_remote_code,
            whole(self.base), whole(self.adapter),
        )  # fmt: skip


def _is_place(text: str) -> bool:
    return text not in CATALOG and Path(text).expanduser().exists()


class Maker(Protocol):
    """Makes the engine once the model is here."""

    def __call__(
        self,
        lm: LayeredModel,
        directory: RunDirectory | None = None,
        report: Report | None = None,
        *,
        logs: Path | None = None,
        seen: Path | None = None,
    ) -> Engine:
        """The engine. ``logs``, ``seen``: without a run directory, where workers write, and a file they must see."""
        ...


@contextlib.contextmanager
def opened_engine(
    settings: EngineSettings, source: ModelSource | None, say: Callable[[str], None] = lambda _line: None
) -> Iterator[Maker]:
    """Find the cluster and look at its machines, before any model is loaded; what is made ends with the block.

    Raises:
        InputError: A setting, or no ``source`` for workers to load the model from.
        MissingExtra: Ray is not installed.
        RunError: No cluster at the address, machines of other versions or that do not see the model's files.
    """
    settings.check()
    address = parse_engine(settings.engine)
    if address is None:
        yield lambda lm, directory=None, report=None, *, logs=None, seen=None: LocalEngine(lm, directory, report)  # noqa: ARG005
        return
    if source is None:
        raise InputError(
            f"engine '{settings.engine}' loads the model on every worker: give its name, not a model in memory"
        )
    from exitlens.runs.cluster.connection import connect
    from exitlens.runs.cluster.engine import RayEngine
    from exitlens.runs.cluster.workers import Settings

    threads = _threads()
    say("starting Ray on this machine" if address.host is None else f"connecting to the cluster at {address}")
    wanted = None if settings.workers is None else settings.workers * threads
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(connect(address, cpus=wanted))
        nodes = cluster.nodes()
        gpus = _gpus(source, nodes)
        usable = [node for node in nodes if (node.gpus >= gpus if gpus else node.cpus >= threads)]
        places = [str(Path(place).expanduser().absolute()) for place in source.places]
        cluster.check(usable, places)
        how = Settings(settings.workers, threads, gpus, settings.deadline)

        def make(
            lm: LayeredModel,
            directory: RunDirectory | None = None,
            report: Report | None = None,
            *,
            logs: Path | None = None,
            seen: Path | None = None,
        ) -> Engine:
            return stack.enter_context(
                RayEngine(
                    cluster, source.elsewhere(lm), lm, how, directory=directory, report=report, say=say, logs=logs,
                    seen=seen,
                )
            )  # fmt: skip

        yield make


def _threads() -> int:
    """Threads of a worker: one, as several share a machine, unless this process was told how many.

    The last bits of a sum depend on the number of threads: a run of one process with as many has the same bytes.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(told)) if told.isdigit() else 1


def _gpus(source: ModelSource, nodes: list[Node]) -> int:
    """GPUs of a worker: one where the model here runs on one. Raises InputError where the cluster has none."""
    from exitlens.compute.hardware import pick_device

    device = pick_device(source.device)
    if device.type == "cpu":
        return 0
    if device.type != "cuda" or not any(node.gpus for node in nodes):
        raise InputError(
            f"device '{device.type}' is on this machine, and Ray counts no GPU of that kind in the cluster: give "
            "--device cpu, or start Ray's machines with --num-gpus"
        )
    return 1

"""What a fitted probe is: frozen numbers that turn a hidden state into P(true), and where they came from.

A probe is a flat mapping of tensors plus metadata that JSON can hold (``probe.to_tensors()``, :func:`from_tensors`). A
file of it (:func:`save_probe`, :func:`load_probe`) is safetensors, so that nothing in it is ever run; the header's one
entry "exitlens" is JSON: what the probe says of itself (kind, provenance) and, under "about", what the study adds (name
of the model, setting, position, how well it did).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.parsing import cut
from exitlens.storage.atomic import canonical, write_tensors
from exitlens.storage.tensors import json_header, read_tensors

__all__ = [
    "LinearProbe",
    "Probe",
    "Provenance",
    "SavedProbe",
    "from_tensors",
    "introduction",
    "load_probe",
    "register_form",
    "save_probe",
    "stack_provenance",
    "with_provenance",
]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a probe was fitted on. Empty fields were not said and are not checked.

    ``model``: fingerprint of the model; ``layer``: 0..N (None for an ensemble, see ``layers``); ``lens``: transform
    of the state before the probe ("raw" = none); ``prompt``: name or hash of the prompt around the statement;
    ``position``: "last", "mean", "answer" or "every"; ``data``: hash of the statements and labels;
    ``notes``: free words (for CCS: that it is unsupervised and unstable).
    """

    model: str = ""
    layer: int | None = None
    layers: tuple[int, ...] = ()
    lens: str = ""
    prompt: str = ""
    position: str = ""
    data: str = ""
    notes: str = ""

    def check(
        self,
        model: str | None = None,
        *,
        position: str | None = None,
        layer: int | None = None,
        lens: str | None = None,
        prompt: str | None = None,
    ) -> None:
        """Raise :class:`ProbeError` when what is given differs from what the probe was fitted on."""
        known = self.layers if self.layers else (() if self.layer is None else (self.layer,))
        if layer is not None and known and layer not in known:
            words = ", ".join(str(j) for j in known)
            raise ProbeError(f"the probe was fitted at layer {words}, not {layer}: read layer {words}, or fit again")
        for name, mine, theirs in (
            ("model", self.model, model),
            ("position", self.position, position),
            ("lens", self.lens, lens),
            ("prompt", self.prompt, prompt),
        ):
            if theirs is not None and mine and mine != theirs:
                raise ProbeError(
                    f"the probe was fitted on {name} '{mine}', not '{theirs}': use that {name}, or fit the probe again"
                )


class Probe(Protocol):
    """A fitted probe.

    ``predict_proba(states [..., n, d])`` gives P(true) ``[..., n]``; an ensemble wants ``[its layers, n, d]``.
    """

    @property
    def kind(self) -> str:
        """Name of the kind, as in the registry of :mod:`exitlens.probes.kinds`."""
        ...

    @property
    def provenance(self) -> Provenance:
        """What it was fitted on."""
        ...

    def predict_proba(self, states: Tensor) -> Tensor:
        """P(true) of each state."""
        ...

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its numbers, and metadata that JSON can hold; :func:`from_tensors` reads both back."""
        ...

    def check(self, model: str | None = None, *, position: str | None = None, layer: int | None = None) -> None:
        """Raise :class:`ProbeError` unless model, position and layer are those it was fitted on."""
        ...


P = TypeVar("P", bound=Probe)
_READERS: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Any], Provenance], Probe]] = {}
# The modules that register the forms of this package, imported when a file has such a form.
_HOMES = {"ensemble": "exitlens.probes.ensemble", "mlp": "exitlens.probes.kinds.mlp"}


def register_form(form: str, read: Callable[[Mapping[str, Tensor], Mapping[str, Any], Provenance], Probe]) -> None:
    """Name the function that rebuilds probes of one ``form`` (linear, mlp, ensemble)."""
    _READERS[form] = read


def header(form: str, kind: str, provenance: Provenance, **more: Any) -> dict[str, Any]:
    """Metadata that every saved probe carries."""
    return {"format": FORMAT, "form": form, "kind": kind, "provenance": asdict(provenance), **more}


def from_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Probe:
    """Rebuild the probe that ``probe.to_tensors()`` described.

    Raises :class:`ProbeError` when the metadata is of another format or tensors are missing.
    """
    if metadata.get("format") != FORMAT:
        raise ProbeError(f"not a probe of format {FORMAT}: 'format' is {metadata.get('format')!r}; fit the probe again")
    form = metadata.get("form")
    if form in _HOMES:
        import_module(_HOMES[form])
    if form not in _READERS:
        raise ProbeError(f"unknown form of probe {form!r}: known are {', '.join(sorted({*_HOMES, *_READERS}))}")
    fields = dict(metadata.get("provenance", {}))
    fields["layers"] = tuple(fields.get("layers", ()))
    try:
        return _READERS[form](tensors, metadata, Provenance(**fields))
    except KeyError as missing:
        raise ProbeError(f"the probe lacks the tensor or field {missing}: the file is incomplete, fit again") from None
    except TypeError as wrong:
        raise ProbeError(f"the probe's provenance cannot be read ({wrong}): fit the probe again") from None


def width_check(states: Tensor, d: int) -> Tensor:
    """``states`` on the CPU, where probes are; :class:`ProbeError` when their last dimension is not ``d``."""
    if states.shape[-1] != d:
        raise ProbeError(f"states have width {states.shape[-1]}, the probe was fitted on width {d}: use its model")
    return states.cpu()


def with_provenance(probe: P, provenance: Provenance) -> P:
    """The same probe with another provenance."""
    return replace(probe, provenance=provenance)  # type: ignore[type-var]  # every probe is a frozen dataclass


def stack_provenance(probes: tuple[Probe, ...]) -> Provenance:
    """One provenance for several probes that differ in their layer only."""
    first = probes[0].provenance
    layers = tuple(p.provenance.layer for p in probes if p.provenance.layer is not None)
    return replace(first, layer=None, layers=layers)


def introduction(name: str, width: int, kind: str, provenance: Provenance) -> str:
    """The ``repr`` of a probe, in two lines."""
    layers = provenance.layers or (() if provenance.layer is None else (provenance.layer,))
    at = f" of layer {cut(', '.join(map(str, layers)))}" if layers else ""
    facts = {"position": provenance.position, "prompt": provenance.prompt, "notes": provenance.notes}
    said = ", ".join(f"{what} {value!r}" for what, value in facts.items() if value) or "provenance unknown"
    return (
        f"{name} {cut(repr(kind))} for states{at}, width {width}\n"
        f"  {cut(said, 200)}; .predict_proba(states) gives P(true)"
    )


@dataclass(frozen=True, repr=False)
class LinearProbe:
    """``P(true) = sigmoid(x · weight + bias)``; logistic, mass-mean, LDA, CCS and TTPD all end as one.

    ``weight [d]`` acts on the state as the model gives it: any standardisation is folded in.
    """

    kind: str
    weight: Tensor
    bias: float
    provenance: Provenance = field(default_factory=Provenance)

    def __repr__(self) -> str:
        return introduction("LinearProbe", len(self.weight), self.kind, self.provenance)

    def decision(self, states: Tensor) -> Tensor:
        """Log-odds ``[..., n]`` of states ``[..., n, d]``."""
        x = width_check(states, self.weight.shape[0]).to(self.weight.dtype)
        return x @ self.weight + self.bias

    def predict_proba(self, states: Tensor) -> Tensor:
        """P(true) ``[..., n]`` of states ``[..., n, d]``."""
        return torch.sigmoid(self.decision(states))

    def check(self, model: str | None = None, *, position: str | None = None, layer: int | None = None) -> None:
        """See :meth:`Provenance.check`."""
        self.provenance.check(model, position=position, layer=layer)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weight and bias, and the metadata."""
        tensors = {
            "weight": self.weight.contiguous(),
            "bias": torch.tensor([self.bias], dtype=torch.float64),
        }
        return tensors, header("linear", self.kind, self.provenance)


def _read_linear(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], provenance: Provenance) -> LinearProbe:
    return LinearProbe(str(metadata["kind"]), tensors["weight"], float(tensors["bias"][0]), provenance)


register_form("linear", _read_linear)


@dataclass(frozen=True, slots=True)
class SavedProbe:
    """A probe from a file, and what the study wrote about it."""

    probe: Probe
    about: dict[str, Any]
    path: Path

    @property
    def model(self) -> str:
        """Name under which its model was loaded (a model is known by its fingerprint, not by this)."""
        return str(self.about.get("model", ""))

    @property
    def setting(self) -> Literal["few-shot", "zero-shot"]:
        """Whether its statements stood in the instruction's prompt or alone."""
        return "zero-shot" if self.about.get("setting") == "zero-shot" else "few-shot"

    @property
    def position(self) -> str:
        """Where in a statement its states were read."""
        return self.probe.provenance.position or "last"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it reads."""
        where = self.probe.provenance
        return where.layers or (() if where.layer is None else (where.layer,))

    def p_true(self, states: Tensor) -> Tensor:
        """P(true) ``[n]`` of states ``[its layers, n, d_model]``."""
        with torch.no_grad():
            return self.probe.predict_proba(states if self.probe.provenance.layers else states[0])


def save_probe(path: str | Path, probe: Probe, about: Mapping[str, Any]) -> Path:
    """Write ``probe`` as safetensors, whole or not at all; returns the path. Raises RunError when it cannot."""
    file = Path(path).expanduser()
    tensors, metadata = probe.to_tensors()
    entry = canonical({**metadata, "about": dict(about)})
    write_tensors(file, tensors, {"exitlens": entry})
    return file


def load_probe(path: str | Path) -> SavedProbe:
    """Read a probe. Raises ProbeError for a file that is missing, damaged or no probe."""
    file = Path(path).expanduser()
    remedy = f"fit one with exitlens probe --kinds logistic --save '{file}'"
    tensors, entries = read_tensors(file, error=ProbeError, missing=remedy, damaged="fit the probe again")
    metadata = json_header(entries, "exitlens")
    if metadata is None:
        raise ProbeError(f"'{file}' holds tensors but no probe: {remedy}")
    about = metadata.pop("about", {})
    return SavedProbe(from_tensors(tensors, metadata), dict(about) if isinstance(about, dict) else {}, file)

"""Several layers decide together: the mean of their probabilities, or the majority of their votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.parsing import cut
from exitlens.probes.probe import Probe, Provenance, from_tensors, header, register_form, stack_provenance

__all__ = ["Ensemble", "combine", "majority", "make_ensemble"]


def majority(probabilities: Tensor) -> Tensor:
    """Share of layers whose P(true) is above a half ``[..., n]``, from ``[layers, ..., n]``.

    Thresholded at a half it is the vote; an even split (a half) is settled by the mean probability, which moves the
    share by less than one vote.
    """
    votes = (probabilities > 0.5).to(probabilities.dtype).mean(0)
    nudge = (probabilities.mean(0) - 0.5) / (2 * probabilities.shape[0])
    return torch.where(votes == 0.5, votes + nudge, votes)


def combine(probabilities: Tensor, how: Literal["mean", "majority"]) -> Tensor:
    """P(true) ``[..., n]`` of several layers' ``[layers, ..., n]``."""
    return probabilities.mean(0) if how == "mean" else majority(probabilities)


@dataclass(frozen=True, repr=False)
class Ensemble:
    """Probes of several layers, read together. ``how``: "mean" or "majority"."""

    members: tuple[Probe, ...]
    how: Literal["mean", "majority"] = "mean"
    provenance: Provenance = field(default_factory=Provenance)

    def __repr__(self) -> str:
        members = "; ".join(repr(member).partition("\n")[0] for member in self.members)
        return f"Ensemble of {len(self.members)} probes, {self.how}\n  {cut(members, 300)}"

    @property
    def kind(self) -> str:
        """``ensemble-mean`` or ``ensemble-majority``."""
        return f"ensemble-{self.how}"

    def predict_proba(self, states: Tensor) -> Tensor:
        """P(true) ``[n]`` of states ``[layers, n, d]``, its layers in its order."""
        if states.ndim < 3 or states.shape[0] != len(self.members):
            raise ProbeError(
                f"states of shape {tuple(states.shape)} for an ensemble of {len(self.members)} layers: "
                f"give [layers, n, d] of layers {', '.join(map(str, self.provenance.layers))}"
            )
        return combine(torch.stack([p.predict_proba(x) for p, x in zip(self.members, states, strict=True)]), self.how)

    def check(self, model: str | None = None, *, position: str | None = None, layer: int | None = None) -> None:
        """See :meth:`Provenance.check`."""
        self.provenance.check(model, position=position, layer=layer)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors of each member under ``k/``, and the metadata."""
        parts = [p.to_tensors() for p in self.members]
        tensors = {f"{k}/{name}": t for k, (ts, _) in enumerate(parts) for name, t in ts.items()}
        return tensors, header("ensemble", self.kind, self.provenance, how=self.how, members=[m for _, m in parts])


def make_ensemble(members: Sequence[Probe], how: Literal["mean", "majority"] = "mean") -> Ensemble:
    """An ensemble of probes fitted on different layers of the same model and data."""
    if not members:
        raise ProbeError("an ensemble of no probes: give at least one")
    return Ensemble(tuple(members), how, stack_provenance(tuple(members)))


def _read(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], provenance: Provenance) -> Ensemble:
    members = [
        from_tensors({n.split("/", 1)[1]: t for n, t in tensors.items() if n.startswith(f"{k}/")}, m)
        for k, m in enumerate(metadata["members"])
    ]
    how: Literal["mean", "majority"] = "majority" if metadata["how"] == "majority" else "mean"
    return Ensemble(tuple(members), how, provenance)


register_form("ensemble", _read)

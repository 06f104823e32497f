"""From residual streams to the rows that meet the unembedding: the lenses, and the checks on what comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from exitlens.errors import InputError, ModelError, layer_range_error
from exitlens.lenses.tuned import TunedLens
from exitlens.models.protocol import LayeredModel

__all__ = ["Lens", "Translator", "check_hidden", "check_lens", "lens_name", "rows"]


@runtime_checkable
class Translator(Protocol):
    """A lens with parameters of its own, for example :class:`~exitlens.lenses.tuned.TunedLens`."""

    @property
    def name(self) -> str:
        """What tables and captions call it."""
        ...

    def transform(self, h: Tensor, layer: int) -> Tensor:
        """Residual stream ``[..., d_model]`` at ``layer`` < N → what the final norm shall read."""
        ...


Lens = str | Translator


def lens_name(lens: Lens) -> str:
    """``raw``, ``logit`` or the translator's own name."""
    return lens if isinstance(lens, str) else lens.name


def check_lens(lm: LayeredModel, lens: Lens) -> None:
    """Raise :class:`InputError` when ``lens`` is unknown or cannot read this model."""
    if isinstance(lens, str):
        if lens not in ("raw", "logit"):
            raise InputError(f"unknown lens {lens!r}: use raw, logit, or a tuned lens loaded for this model")
        if lens == "raw" and lm.weight.shape[1] != lm.d_model:
            raise InputError(
                f"lens 'raw' needs hidden states as wide as the unembedding ({lm.weight.shape[1]}), "
                f"but {lm.name} has {lm.d_model}: use lens logit"
            )
        return
    if isinstance(lens, TunedLens):
        lens.check(lm.fingerprint, lm.n_layers, lm.d_model, lm.name)


def check_hidden(lm: LayeredModel, hidden: Mapping[int, Tensor]) -> tuple[tuple[int, ...], int]:
    """The layers in order and the number of tokens. Raises :class:`LayerError`, :class:`InputError`."""
    if not hidden:
        raise InputError("no hidden states were given: record at least one layer")
    tokens = len(next(iter(hidden.values())))
    for layer, h in hidden.items():
        if not 0 <= layer <= lm.n_layers:
            raise layer_range_error(layer, 0, lm.n_layers, owner=lm.name)
        if h.dim() != 2 or h.shape[1] != lm.d_model or len(h) != tokens:
            raise InputError(
                f"hidden states of layer {layer} have shape {tuple(h.shape)}: expected ({tokens}, {lm.d_model})"
            )
    return tuple(hidden), tokens


def rows(lm: LayeredModel, lens: Lens, layers: Sequence[int], states: Sequence[Tensor]) -> Tensor:
    """Inputs of the unembedding ``[layers, t, d_head]`` for residual streams ``[t, d_model]``, one a layer.

    Layer N is always read as the model reads it.
    """
    device = lm.weight.device
    states = [h.to(device) for h in states]
    if isinstance(lens, str) and lens == "logit":
        return lm.norm(torch.stack(states))
    out = []
    for layer, h in zip(layers, states, strict=True):
        if layer == lm.n_layers:
            out.append(lm.norm(h))
        elif isinstance(lens, str):
            out.append(h)
        else:
            out.append(lm.norm(lens.transform(h, layer)))
    return torch.stack(out)


def non_finite_error(lm: LayeredModel, layers: Sequence[int], states: Sequence[Tensor], start: int) -> ModelError:
    """The error that says where NaN came in: the first layer whose hidden states hold it, else the readout."""
    for layer, h in sorted(zip(layers, states, strict=True), key=lambda pair: pair[0]):
        wrong = ~torch.isfinite(h).all(dim=1)
        if bool(wrong.any()):
            where = start + int(wrong.nonzero()[0, 0])
            source = "the embedding" if layer == 0 else f"block {layer}"
            return ModelError(
                f"layer {layer} of {lm.name} is the first recorded with NaN or infinite hidden states (token {where}): "
                f"the weights of {source} or before are damaged, or the number type overflows (try dtype float32)"
            )
    bad = ~torch.isfinite(lm.weight).all(dim=1)
    if bool(bad.any()):
        token = int(bad.nonzero()[0, 0])
        return ModelError(
            f"the unembedding of {lm.name} holds NaN or infinity (token id {token}): fetch the model again"
        )
    return ModelError(
        f"the final norm or the lens of {lm.name} gave NaN from finite hidden states: its weights are damaged"
    )

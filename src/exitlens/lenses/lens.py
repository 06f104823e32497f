"""Lenses: from residual streams to the rows that meet the unembedding, and the checks on what comes in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from exitlens.arguments import wrong_kind
from exitlens.errors import InputError, ModelError, layer_range_error
from exitlens.parsing import cut

if TYPE_CHECKING:
    from torch import Tensor

    from exitlens.models.protocol import LayeredModel

__all__ = ["BUILT_IN", "Lens", "LogitLens", "RawLens", "as_lens", "check_hidden", "lens_name", "non_finite_error"]


class Lens(ABC):
    """Reads an inner layer as if it were the last. A lens of one's own needs ``name`` and :meth:`transform`."""

    name: str

    def __repr__(self) -> str:
        return f"{type(self).__name__} {cut(repr(self.name))}"

    @abstractmethod
    def transform(self, h: Tensor, layer: int) -> Tensor:
        """Residual stream ``[..., d_model]`` at ``layer`` < N → what the final norm shall read, of the same shape."""

    def check(self, lm: LayeredModel) -> None:  # noqa: B027 - a lens without parameters fits every model
        """Raise :class:`InputError` when it cannot read this model."""

    def check_layers(self, layers: Sequence[int]) -> None:  # noqa: B027 - most lenses read every layer
        """Raise :class:`InputError` when it cannot read one of ``layers``."""

    @property
    def flops(self) -> float:
        """What :meth:`transform` takes for one state [FLOPs]."""
        return 0.0

    @property
    def identity(self) -> str:
        """What tells this lens from any other: its name and, where it has parameters, a hash of them."""
        return self.name

    def rows(self, lm: LayeredModel, layers: Sequence[int], states: Sequence[Tensor]) -> Tensor:
        """Inputs of the unembedding ``[layers, t, d_head]`` for residual streams ``[t, d_model]``, one a layer.

        Layer N is always read as the model reads it.
        """
        import torch

        pairs = zip(layers, states, strict=True)
        return torch.stack([lm.norm(h if layer == lm.n_layers else self.transform(h, layer)) for layer, h in pairs])


class LogitLens(Lens):
    """``post(W norm(h_j))`` (nostalgebraist 2020): the model's own final norm and unembedding."""

    name = "logit"

    def transform(self, h: Tensor, layer: int) -> Tensor:  # noqa: ARG002 - every layer is read alike
        """``h`` itself."""
        return h

    def rows(self, lm: LayeredModel, layers: Sequence[int], states: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """As :meth:`Lens.rows`, with one call of the norm for all layers: of few tokens, calls cost more than work."""
        import torch

        return lm.norm(torch.stack(list(states)))


class RawLens(LogitLens):
    """``post(W h_j)`` for j < N: without the final norm, as DoLa's published code reads early layers."""

    name = "raw"

    def check(self, lm: LayeredModel) -> None:
        """Raise :class:`InputError` where the unembedding is not as wide as the residual stream."""
        if lm.weight.shape[1] != lm.d_model:
            raise InputError(
                f"lens 'raw' needs hidden states as wide as the unembedding ({lm.weight.shape[1]}), "
                f"but {lm.name} has {lm.d_model}: use lens logit"
            )

    def rows(self, lm: LayeredModel, layers: Sequence[int], states: Sequence[Tensor]) -> Tensor:
        """As :meth:`Lens.rows`, with no norm before layer N."""
        import torch

        pairs = zip(layers, states, strict=True)
        return torch.stack([lm.norm(h) if layer == lm.n_layers else h for layer, h in pairs])


BUILT_IN: Mapping[str, Lens] = {"logit": LogitLens(), "raw": RawLens()}


def as_lens(lens: str | Lens, lm: LayeredModel | None = None) -> Lens:
    """The lens that is given itself or by its built-in name; with ``lm``, checked to fit that model.

    Raises:
        InputError: An unknown name, or a lens that cannot read this model.
    """
    if isinstance(lens, str):
        if lens not in BUILT_IN:
            raise InputError(
                f"unknown lens {lens[:80]!r}: use {', '.join(BUILT_IN)}, or a tuned or Jacobian lens of this model"
            )
        lens = BUILT_IN[lens]
    elif not isinstance(lens, Lens):
        raise wrong_kind("the lens", lens, f"give a Lens, or one of {', '.join(BUILT_IN)}")
    if lm is not None:
        lens.check(lm)
    return lens


def lens_name(lens: str | Lens) -> str:
    """What tables and captions call it."""
    return lens if isinstance(lens, str) else lens.name


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


def non_finite_error(lm: LayeredModel, layers: Sequence[int], states: Sequence[Tensor], start: int) -> ModelError:
    """The error that says where NaN came in: the first layer whose hidden states hold it, else the readout."""
    import torch

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

"""Which matrix does a model multiply by at the end? Its unembedding's own, or what adapters and hooks make of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from exitlens.errors import UnsupportedModel
from exitlens.models.layout.hooks import eval_mode, first_tensor

__all__ = ["HeadMatrix"]

_INFLATED = 50.0  # random states are multiplied by it too: a clamp or a soft cap shows only in large values
_ROWS = 8  # random states a kind
_AT_ONCE = 1024  # unit vectors put through the module in one call


class HeadMatrix:
    """``weight`` and ``bias`` such that ``weight @ x + bias`` is what the unembedding module gives for ``x``.

    Readouts multiply by the matrix in tiles and never call the module, so the two are compared when a model is taken
    in, on random states, on inflated ones and on states of the model. Where the module's own parameters do not say
    what it does (LoRA, hooks, parametrisations, quantised products), the matrix is measured: an affine map is known
    from what it makes of zero and of the unit vectors.
    """

    def __init__(self, model: nn.Module, head: nn.Module, vocab: int, states: Tensor, what: str) -> None:
        """Compare or measure.

        Args:
            model: The model.
            head: Its unembedding module.
            vocab: Tokens; further rows are padding of the matrix and are cut.
            states: Inputs of the module as the model makes them ``[..., d_head]``.
            what: The model and the module, for messages.

        Raises:
            UnsupportedModel: The module is no matrix product.
        """
        self._model, self._head, self._vocab, self._what = model, head, vocab, what
        self._states = states.detach().reshape(1, -1, states.shape[-1])[:, -_ROWS:].clone()
        self._measured: tuple[Tensor, Tensor | None] | None = None
        self._measured_for: tuple[Any, ...] = ()
        with eval_mode(model):
            self._own = self._is_own()
            if not self._own:
                self._measure()

    @property
    def weight(self) -> Tensor:
        """``[vocab, d_head]``, in the model's dtype."""
        weight: Tensor = self._head.weight if self._own else self._current()[0]  # type: ignore[assignment]
        return weight if weight.shape[0] == self._vocab else weight[: self._vocab]

    @property
    def bias(self) -> Tensor | None:
        """``[vocab]``, or None."""
        bias: Tensor | None = getattr(self._head, "bias", None) if self._own else self._current()[1]
        return bias if bias is None or bias.shape[0] == self._vocab else bias[: self._vocab]

    def _current(self) -> tuple[Tensor, Tensor | None]:
        """The measured matrix, measured again where an adapter was trained or switched since."""
        if self._measured is None or self._measured_for != self._mark():
            with eval_mode(self._model):  # and once more, now that no pass in another thread has hooks on it
                if self._measured is None or self._measured_for != self._mark():
                    self._measure()
        assert self._measured is not None
        return self._measured

    def _mark(self) -> tuple[Any, ...]:
        parts = [*self._head.parameters(), *self._head.buffers()]
        held = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parts]
        switches = [str(getattr(self._head, name, "")) for name in ("active_adapters", "disable_adapters")]
        hooks = (*self._head._forward_hooks, -1, *self._head._forward_pre_hooks)
        return (*held, *switches, *hooks)

    def _run(self, x: Tensor) -> Tensor:
        try:
            out = first_tensor(self._head(x))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UnsupportedModel(f"{self._what} does not take states [1, n, d]: {str(error)[:120]}") from error
        if out is None or out.shape[-1] < self._vocab:
            raise UnsupportedModel(f"{self._what} gave no logits of {self._vocab} tokens")
        return out[..., : self._vocab].reshape(-1, self._vocab)

    def _inputs(self) -> list[Tensor]:
        states = self._states
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(1, _ROWS, states.shape[-1], generator=generator).to(states)
        return [random, random * _INFLATED, states, states * _INFLATED, torch.zeros_like(random[:, :1])]

    def _is_own(self) -> bool:
        """Whether the module's parameters, as they stand, give its output."""
        weight: Any = getattr(self._head, "weight", None)
        bias: Any = getattr(self._head, "bias", None)
        if _quantised(weight) or not isinstance(weight, Tensor):  # torchao's and quanto's
            return False
        if weight.dim() != 2 or weight.shape[1] != self._states.shape[-1]:
            return False
        if weight.shape[0] < self._vocab or weight.dtype != self._states.dtype:
            return False
        # One and the same product gives the same bits; what an adapter adds is seen however small it is.
        pairs = ((self._product(x, weight, bias), self._run(x)) for x in self._inputs())
        return all(torch.equal(got, want.to(got.device)) for got, want in pairs)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Of a model spread over devices, the last block may lie on another one than the unembedding.
        return F.linear(x.to(weight.device), weight, bias)[..., : self._vocab].reshape(-1, self._vocab)

    def _measure(self) -> None:
        """Find the affine map, prefer the module's own tensors where they are it, and compare. Under ``eval_mode``."""
        d, states = self._states.shape[-1], self._states
        zero = self._run(torch.zeros(1, 1, d, dtype=states.dtype, device=states.device))[0]
        weight = torch.empty(self._vocab, d, dtype=states.dtype, device=zero.device)
        for first in range(0, d, _AT_ONCE):
            size = min(_AT_ONCE, d - first)
            unit = torch.zeros(1, size, d, dtype=states.dtype, device=states.device)
            unit[0, torch.arange(size), torch.arange(first, first + size)] = 1.0
            weight[:, first : first + size] = (self._run(unit) - zero).t().to(weight.dtype)
        bias = zero.to(states.dtype) if bool(zero.any()) else None
        half = states.dtype in (torch.bfloat16, torch.float16)
        for x in self._inputs():
            want, got = self._run(x).float(), self._product(x.to(weight.device), weight, bias).float()
            bound = (3e-2 if half else 2e-5) * float(want.abs().max().clamp_min(1.0))
            worst = float((got - want.to(got.device)).abs().max())
            if not worst <= bound:
                raise UnsupportedModel(
                    f"{self._what} is no matrix product: for the same states its output and the matrix measured from "
                    f"it differ by {worst:.3g} (allowed {bound:.3g}), so layers cannot be read through it; remove "
                    "what changes it (hooks, dynamic quantisation), or merge it into the weights"
                )
        self._measured, self._measured_for = (weight, bias), self._mark()


def _quantised(weight: Any) -> bool:
    """A tensor of torchao's or quanto's kind, made of plain ones."""
    return bool(is_traceable_wrapper_subclass(weight))

"""What lies behind the last block, as an affine map: projections as they are, norms frozen at their own scale.

A norm divides by a number that it takes from its input. With that number held fixed the norm is affine, so that the
logit of a token splits over the parts of a sum that goes into it. Which kind a norm is, is found by value: its output
for chosen inputs gives gain and bias, and the real state says whether the formula holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exitlens.errors import UnsupportedModel
from exitlens.models.layout.final_path import FinalPath, Injection
from exitlens.models.layout.hooks import eval_mode
from exitlens.models.layout.residual import first_tensor

__all__ = ["Affine", "frozen_norm", "linear_weight", "tail_map"]

_PROBE = 64.0  # size of the inputs that gain and bias are read from: what a norm adds under its root vanishes


@dataclass(frozen=True, slots=True)
class Affine:
    """``x → A x + b`` at each of some rows, applied backwards: to the functions of its output that are wanted.

    ``pull(w)``: ``w [rows, k, d_out]`` → (``w A [rows, k, d_in]``, ``w b [rows, k]``), in float64.
    """

    pull: Callable[[Tensor], tuple[Tensor, Tensor]]

    def then(self, after: Affine) -> Affine:
        """This map, then ``after``."""

        def pull(w: Tensor) -> tuple[Tensor, Tensor]:
            inner, late = after.pull(w)
            out, early = self.pull(inner)
            return out, late + early

        return Affine(pull)


def scaled(factor: float) -> Affine:
    """Multiplication by a number."""
    return Affine(lambda w: (w * factor, w.new_zeros(w.shape[:-1])))


def linear_weight(module: nn.Module, given: Tensor, gave: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """``(W [out, in], b [out] or None)`` with ``gave = W given + b`` to rounding, or None where it is no such product.

    ``given [rows, in]``, ``gave [rows, out]``: what the module was given and gave.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return None
    shapes = (gave.shape[-1], given.shape[-1])
    for matrix in (weight, weight.t()):  # GPT-2's Conv1D keeps its matrix the other way round
        if tuple(matrix.shape) != shapes:
            continue
        want = given.float() @ matrix.float().t()
        if isinstance(bias, Tensor):
            want = want + bias.float()
        if _near(gave.float(), want, half(gave.dtype)):
            return matrix, bias
    return None


def frozen_norm(module: nn.Module, given: Tensor) -> Affine | None:
    """The norm ``module`` at the states ``given [rows, d]``, or None where it is neither an RMS norm nor a LayerNorm.

    RMS norms give ``g ⊙ x / s + b``, LayerNorms the same of ``x`` without its mean; ``s`` is a number a row. Gains of
    any form (``γ``, ``1 + γ``) are met, because they are read from outputs: what is 1 everywhere shows an RMS norm's
    gain and a LayerNorm's bias, what alternates around 0 a LayerNorm's gain. ``s`` is found in the same way, so that
    no formula of it is assumed.
    """
    d = given.shape[-1]
    sign = torch.ones(d, dtype=torch.float64, device=given.device)
    alternating = sign.clone()
    alternating[1::2] = -1.0
    alternating -= alternating.mean()
    zero, flat, waves, gave = (_run(module, x.to(given.dtype)) for x in _inputs(given, sign, alternating))
    if zero is None or flat is None or waves is None or gave is None or gave.shape != given.shape:
        return None
    x = given.double()
    for centred, gain in ((False, flat[0] - zero[0]), (True, (waves[0] - zero[0]) / alternating)):
        centre = x - x.mean(-1, keepdim=True) if centred else x
        rest, ray = gave - zero, centre * gain
        inverse = (ray * rest).sum(-1, keepdim=True) / (ray * ray).sum(-1, keepdim=True).clamp_min(1e-300)
        if bool(torch.isfinite(inverse).all()) and _near(gave, ray * inverse + zero, half(given.dtype)):
            return _norm(gain, inverse, zero[0], centred=centred)
    return None


def _inputs(given: Tensor, flat: Tensor, waves: Tensor) -> Sequence[Tensor]:
    return (flat[None] * 0, flat[None] * _PROBE, waves[None] * _PROBE, given)


def _norm(gain: Tensor, inverse: Tensor, bias: Tensor, *, centred: bool) -> Affine:
    gain, inverse, bias = gain.cpu(), inverse.cpu(), bias.cpu()

    def pull(w: Tensor) -> tuple[Tensor, Tensor]:
        back = w * gain * inverse[:, None]
        # A centred input's mean is taken out of what it is multiplied by instead: w·(x − x̄) = (w − w̄)·x.
        return (back - back.mean(-1, keepdim=True) if centred else back), w @ bias

    return Affine(pull)


def tail_map(model: nn.Module, tail: FinalPath | Injection, h: Tensor, family: str) -> Affine:
    """What leads from the last block of ``model`` to the unembedding, frozen at the states ``h [rows, d]``.

    Raises :class:`UnsupportedModel` for a step that is neither a norm, a linear projection nor a scale.
    """
    if isinstance(tail, Injection) or tail.stream is not None:
        raise UnsupportedModel(
            f"{family}: the last block's output reaches the unembedding through the model's own code, not through a "
            "norm that could be held fixed, so a logit does not split into what each block adds"
        )
    found = scaled(1.0)
    with eval_mode(model, tail.modules):
        for step in tail.steps:
            out = step(h[None])[0]
            if step.module is not None:
                part = _linear(step.module, h, out / step.scale if step.scale != 1.0 else out)
                part = part or frozen_norm(step.module, h)
                if part is None:
                    raise UnsupportedModel(
                        f"{family}: {step.name}, between the last block and the unembedding, is neither an RMS norm, a "
                        "LayerNorm nor a linear projection, so a logit does not split into what each block adds"
                    )
                found = found.then(part)
            if step.scale != 1.0:
                found = found.then(scaled(step.scale))
            h = out
    return found


def _linear(module: nn.Module, given: Tensor, gave: Tensor) -> Affine | None:
    product = linear_weight(module, given, gave)
    if product is None:
        return None
    weight = product[0].detach().double().cpu()
    bias = None if product[1] is None else product[1].detach().double().cpu()
    return Affine(lambda w: (w @ weight, w.new_zeros(w.shape[:-1]) if bias is None else w @ bias))


def _run(module: nn.Module, x: Tensor) -> Tensor | None:
    """The module's output for rows ``[n, d]``, in float64; None where it does not take them."""
    try:
        with torch.no_grad():
            out = first_tensor(module(x[None]))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None
    return None if out is None or out.shape != (1, *x.shape) else out[0].double()


def _near(got: Tensor, want: Tensor, coarse: bool) -> bool:
    bound = 2e-2 if coarse else 1e-4
    return bool((got - want).abs().max() <= bound * want.abs().max().clamp_min(1e-6))


def half(dtype: torch.dtype) -> bool:
    """Whether numbers of this type carry three digits or fewer."""
    return dtype in (torch.bfloat16, torch.float16)

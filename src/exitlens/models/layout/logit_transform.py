"""What a model does to its unembedding's output on the way to the logits: nothing, a scale, a soft cap, a cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from exitlens.errors import UnsupportedModel
from exitlens.models.layout.final_path import scale_between, slack
from exitlens.models.protocol import LogitTransform

__all__ = ["find_logit_transform"]


def find_logit_transform(z: Tensor, logits: Tensor, model: nn.Module, family: str) -> tuple[LogitTransform, int]:
    """The transformation that turns the unembedding's output ``z`` into ``logits``, and the vocabulary's true size.

    Raises :class:`UnsupportedModel` when it is none of those known here.
    """
    vocab = int(logits.shape[-1])
    if z.shape[-1] >= vocab and z.numel() // z.shape[-1] == logits.numel() // vocab:
        z = z[..., :vocab].reshape(logits.shape)  # some pad the matrix to a round number of rows and cut again
        ratio = scale_between(z, logits)
        if ratio is not None and ratio > 0:
            return LogitTransform(ratio, None), vocab
        for scale, cap in _cap_candidates(model):
            logit_transform = LogitTransform(scale, cap)
            got = logit_transform(z.float())
            if float((got - logits.float()).abs().max()) <= 1e-4 * max(1.0, cap) * (100 if slack(z) == 1.0 else 1):
                return logit_transform, vocab
    if not bool(logits.isfinite().any(-1).all()):
        raise UnsupportedModel(
            f"{family}: its logits are not finite on a short text: its weights are damaged, overflow (--dtype float32) "
            "or do not belong to the values in its config.json"
        )
    raise UnsupportedModel(
        f"{family}: the unembedding's output is turned into logits in a way not known here (looked for: unchanged, "
        f"scaled by a constant, soft-capped; it has shape {tuple(z.shape)}, the logits {tuple(logits.shape)})"
    )


def _cap_candidates(model: nn.Module) -> Sequence[tuple[float, float]]:
    config = getattr(model, "config", None)
    values: dict[str, Any] = {}
    for part in (config, getattr(config, "text_config", None)):
        values.update(vars(part) if part is not None else {})
    caps = [float(v) for k, v in values.items() if "cap" in k and isinstance(v, int | float) and v and v > 0]
    caps += [15.0, 30.0, 50.0]
    scales = [1.0] + [
        f
        for k, v in values.items()
        if "scal" in k and isinstance(v, int | float) and v and not isinstance(v, bool)
        for f in (float(v), 1.0 / float(v))
    ]
    return [(s, c) for c in dict.fromkeys(caps) for s in dict.fromkeys(scales)]

"""A decoder on one model: the early layers that it reads there, their logits in one product, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from exitlens.decoding.contrast.base import ContrastDecoder, Decoder, Scores
from exitlens.decoding.contrast.parse import parse_decoder
from exitlens.errors import InputError
from exitlens.lenses.lens_names import open_lens
from exitlens.models.native.runner import logits_of
from exitlens.models.protocol import LayeredModel

__all__ = ["BoundDecoder", "early_layers"]


def early_layers(lm: LayeredModel, decoder: str | Decoder) -> tuple[int, ...]:
    """The layers of ``lm`` that ``decoder`` unembeds at every token beside the last."""
    return parse_decoder(decoder).layers(lm.n_layers, lm.tied)


class BoundDecoder:
    """``decoder`` on ``lm``: ``early`` are the layers whose states it needs.

    ``scoring``: it scores given answers, instead of choosing the next token. Raises as :func:`parse_decoder`, and
    InputError for a lens of another model, or one that cannot read an early layer.
    """

    def __init__(self, lm: LayeredModel, decoder: str | Decoder, *, scoring: bool = False) -> None:
        self.decoder = parse_decoder(decoder)
        if scoring and isinstance(self.decoder, ContrastDecoder):
            self.decoder = self.decoder.for_scoring()
        self.early = early_layers(lm, self.decoder)
        self._lm, self._logits = lm, logits_of(lm)
        self._lens = open_lens(self.decoder.lens, lm)
        self._lens.check_layers(self.early)

    def scores(self, final: Tensor, states: Mapping[int, Tensor]) -> Scores:
        """Scores of final logits ``[batch, vocab]`` (float32) and the states ``[batch, d_model]`` of early layers.

        Raises :class:`InputError` for a decoder of the user's own that gives something else than scores.
        """
        scored: Any = self.decoder(final, self._read(final, states), self._lm.n_layers)
        if not isinstance(scored, Scores):
            kind = type(scored).__name__
            raise InputError(f"decoder {self.decoder.name!r} gave a {kind}: return exitlens.decoding.Scores(tensor)")
        if scored.scores.shape != final.shape:
            raise InputError(
                f"decoder {self.decoder.name!r} gave scores of shape {tuple(scored.scores.shape)}, "
                f"not {tuple(final.shape)}"
            )
        return scored

    def _read(self, final: Tensor, states: Mapping[int, Tensor]) -> Tensor:
        """Logits ``[layers, batch, vocab]`` of the early layers, in the model's dtype."""
        if not self.early:
            return final.new_empty(0, *final.shape)
        # All layers meet the unembedding together: many rows in one product take a third of the time of few in many.
        given = [states[j].to(self._lm.weight.device) for j in self.early]
        if self.decoder.lens == "raw":
            # Below N only the lens says how a state is read, not the layer.
            return self._logits(torch.stack(given), self.early[0], "raw").to(final.device)
        moved = [self._lens.transform(h, layer) for h, layer in zip(given, self.early, strict=True)]
        return self._logits(torch.stack(moved), self.early[0], "logit").to(final.device)

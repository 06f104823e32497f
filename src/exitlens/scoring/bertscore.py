"""BERTScore F1 (Zhang et al. 2020): greedy matching of contextual token embeddings, no idf, no baseline rescaling.

As in the bert-score package: an answer's start and end tokens are candidates for a match but do not count in the
averages. The encoder is loaded elsewhere (``exitlens.models.encoder``); here is the arithmetic.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.models.hub.catalog import DEFAULT_ENCODER
from exitlens.models.protocol import Embedded
from exitlens.scoring.text import check_aligned

__all__ = ["DEFAULT_ENCODER", "BertScorer", "Embedded", "Encoder", "greedy_f1"]

_PAIRS = 256  # pairs matched at once
_KEPT_TOKENS = 200_000  # of remembered texts: about 300 MB at width 384


@runtime_checkable
class Encoder(Protocol):
    """What :class:`BertScorer` needs: ``name`` and ``layer`` are printed with the numbers."""

    @property
    def name(self) -> str:
        """Name or path of the encoder."""

    @property
    def layer(self) -> int:
        """Layer whose states are compared: 0 = embeddings, N = the last."""

    def encode(self, texts: Sequence[str]) -> list[Embedded]:
        """States of every text, on any device; a text without tokens of its own may have only special ones."""


class BertScorer:
    """BERTScore F1 with the encoder named: a :class:`~exitlens.scoring.text.TextMetric`.

    ``encoder``: a catalogue name, a folder, a Hub id, or any :class:`Encoder`. ``layer``: None is the last.
    Texts met before are not encoded again. An empty answer or reference scores 0.
    """

    name = "bertscore"

    def __init__(
        self,
        encoder: str | os.PathLike[str] | Encoder = DEFAULT_ENCODER,
        layer: int | None = None,
        device: str = "auto",
    ) -> None:
        if isinstance(encoder, str | os.PathLike):
            from exitlens.models.encoder import load_encoder

            encoder = load_encoder(encoder, layer=layer, device=device)
        self.encoder: Encoder = encoder
        self._known: OrderedDict[str, Embedded] = OrderedDict()
        self._tokens = 0

    @property
    def label(self) -> str:
        """Encoder and layer, as printed beside the numbers."""
        return f"BERTScore F1 ({self.encoder.name}, layer {self.encoder.layer}, no idf, no rescaling)"

    def pairs(self, answers: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """F1 of each answer against its one reference: ``[n]``. Raises InputError when the lists differ in length."""
        check_aligned(answers, references)
        out = np.zeros(len(answers))
        asked = [i for i in range(len(answers)) if answers[i].strip() and references[i].strip()]
        if not asked:
            return out
        texts = self._embed([text for i in asked for text in (answers[i], references[i])])
        # Pairs of like length together: little padding.
        asked.sort(key=lambda i: (len(texts[answers[i]].counts), len(texts[references[i]].counts), i))
        for start in range(0, len(asked), _PAIRS):
            block = asked[start : start + _PAIRS]
            out[block] = greedy_f1([texts[answers[i]] for i in block], [texts[references[i]] for i in block])
        return out

    def _embed(self, texts: Sequence[str]) -> dict[str, Embedded]:
        """Normalised states of every distinct text; remembers them, the oldest forgotten first."""
        wanted = list(dict.fromkeys(texts))
        new = [text for text in wanted if text not in self._known]
        fresh = {text: _normalised(found) for text, found in zip(new, self.encoder.encode(new), strict=True)}
        out = {text: self._known[text] if text in self._known else fresh[text] for text in wanted}
        for text, found in fresh.items():
            self._known[text] = found
            self._tokens += len(found.counts)
        while self._tokens > _KEPT_TOKENS:
            _, dropped = self._known.popitem(last=False)
            self._tokens -= len(dropped.counts)
        return out


def greedy_f1(answers: Sequence[Embedded], references: Sequence[Embedded]) -> NDArray[np.float64]:
    """F1 of aligned lists of texts with states of unit length: ``[n]`` float64.

    Precision is the mean over the answer's tokens of the best cosine in the reference, recall the reverse. 0 where
    either text has no counted token.
    """
    a, a_real, a_counts = _padded(answers)
    b, b_real, b_counts = _padded(references)
    cosine = a @ b.transpose(1, 2)
    cosine = cosine.masked_fill(~(a_real[:, :, None] & b_real[:, None, :]), -torch.inf)
    precision = _mean(cosine.amax(2), a_counts)
    recall = _mean(cosine.amax(1), b_counts)
    both = precision + recall
    f1 = torch.where(both != 0, 2 * precision * recall / both, torch.zeros_like(both))
    counted = a_counts.any(1) & b_counts.any(1)
    # Rounding can put the cosine of a token with itself a hair above 1.
    f1 = torch.where(counted, f1, torch.zeros_like(f1)).clamp(max=1.0)
    return f1.double().cpu().numpy()


def _normalised(found: Embedded) -> Embedded:
    states = found.states.float()
    return Embedded(states / states.norm(dim=-1, keepdim=True).clamp(min=1e-30), found.counts.bool())


def _padded(texts: Sequence[Embedded]) -> tuple[Tensor, Tensor, Tensor]:
    """States ``[n, t, d]``, which positions are tokens ``[n, t]``, and which count ``[n, t]``."""
    pad = torch.nn.utils.rnn.pad_sequence
    real = pad([torch.ones_like(text.counts) for text in texts], batch_first=True)
    states = pad([text.states for text in texts], batch_first=True)
    return states, real, pad([text.counts for text in texts], batch_first=True)


def _mean(best: Tensor, counts: Tensor) -> Tensor:
    """Mean of ``best [n, t]`` where ``counts``; 0 where nothing counts."""
    kept = torch.where(counts, best, torch.zeros_like(best))
    return kept.sum(1) / counts.sum(1).clamp(min=1)

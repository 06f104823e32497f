"""From scores to the next token: greedy, or sampled with a random stream of each row's own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exitlens.arguments import as_count, wrong_kind
from exitlens.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Sampling", "penalise", "row_generator"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Filters apply in the order temperature, top-k, top-p, min-p, each to what is left.

    Attributes:
        temperature: 0 is greedy decoding.
        top_k: Only this many tokens of the largest probability; 0 is all.
        top_p: Only the most probable tokens that together have this share of the probability.
        min_p: Only tokens with at least this share of the largest probability.

    Raises:
        InputError: A value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        as_count(self.top_k, "top_k", least=0)
        for name in ("temperature", "top_p", "min_p"):
            if not isinstance(getattr(self, name), int | float):
                raise wrong_kind(name, getattr(self, name), "give a number")
        if not 0.0 <= self.temperature < math.inf:
            raise InputError(f"temperature {self.temperature} is out of range: 0 (greedy) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p {self.top_p} is out of range: above 0, at most 1")
        if not 0.0 <= self.min_p <= 1.0:
            raise InputError(f"min_p {self.min_p} is out of range: 0 to 1")

    @property
    def greedy(self) -> bool:
        """True when no randomness is used."""
        return self.temperature == 0.0

    def choose(self, scores: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
        """Next token ``[batch]`` of scores ``[batch, vocab]``; each row draws one number from its own generator."""
        import torch

        if self.greedy:
            return scores.argmax(-1)
        device = scores.device
        probs = self.distribution(scores.cpu() if device.type == "mps" else scores)  # MPS has no float64
        # One uniform number a row, turned into a token by the inverse of the cumulative sum: nothing else matters.
        draws = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators]).to(probs.device)
        cumulative = probs.cumsum(-1)
        at = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
        last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).long().argmax(-1)
        return torch.minimum(at, last).to(device)

    def distribution(self, scores: Tensor) -> Tensor:
        """The probabilities ``[batch, vocab]`` (float64) that tokens are drawn from."""
        import torch

        probs = (scores.double() / max(self.temperature, 1e-8)).softmax(-1)
        if self.top_k and self.top_k < probs.shape[-1]:
            floor = probs.topk(self.top_k, dim=-1).values[:, -1:]
            probs = probs.masked_fill(probs < floor, 0.0)
        if self.top_p < 1.0:
            ordered, order = probs.sort(dim=-1, descending=True, stable=True)
            # A token stays while the mass before it is below top_p, so at least one always does.
            before = ordered.cumsum(-1) - ordered
            drop = before >= self.top_p * ordered.sum(-1, keepdim=True)
            probs = probs.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), 0.0)
        if self.min_p > 0.0:
            probs = probs.masked_fill(probs < self.min_p * probs.amax(-1, keepdim=True), 0.0)
        return probs / probs.sum(-1, keepdim=True)


def row_generator(seed: int, prompt_ids: Sequence[int], occurrence: int) -> torch.Generator:
    """A generator that depends on the seed, the prompt and which of its repetitions this is, and on nothing else."""
    import torch

    key = hashlib.sha256(f"{seed}/{occurrence}/{','.join(map(str, prompt_ids))}".encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(key[:8], "big") >> 1)
    return generator


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Repetition penalty (Keskar et al. 2019) on ``seen [batch, vocab]`` tokens: divided if positive, else multiplied.

    ``−inf`` stays ``−inf``. Returns a new tensor.
    """
    import torch

    if penalty == 1.0:
        return scores
    lowered = torch.where(scores > 0, scores / penalty, scores * penalty)
    return torch.where(seen, lowered, scores)

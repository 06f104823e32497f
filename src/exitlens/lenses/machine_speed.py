"""How fast this machine would read a model of a given shape: timed on a small random one of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from exitlens.lenses.speed import ReadingSpeed, reading_speed
from exitlens.models.checkpoint.loading import wrap
from exitlens.models.checkpoint.pretrained import random_llama

__all__ = ["MachineSpeed", "machine_speed"]

# Small enough for any machine and a few seconds, large enough that products run at the speed that they have in large
# models: 8 layers of 64 tokens are a block of 512 rows.
BLOCKS, WIDTH, VOCAB = 7, 1024, 16384


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """``passing``, ``reading``: products of the blocks and of the unembedding [FLOP/s]. ``per_logit``: the statistics'
    seconds a logit. ``width``, ``dtype``: of the model that was timed.
    """

    passing: float
    reading: float
    per_logit: float
    width: int
    dtype: str


def machine_speed(
    width: int, stats: Sequence[str], dtype: torch.dtype, device: torch.device, *, seconds: float = 4.0
) -> MachineSpeed:
    """Time a random model with :func:`~exitlens.lenses.speed.reading_speed`.

    A readout's time is 2 d / ``reading`` + ``per_logit`` for each logit: the product grows with the width d, the passes
    over logits do not, so a narrow model tells both.

    Args:
        width: Of the model that is planned for; a narrower one is timed where it is wide.
        stats: Statistics to compute.
        dtype: Of the weights.
        device: Where they lie.
        seconds: Time to take, about.
    """
    taken = max(64, min(width, WIDTH) // 64 * 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokenizer = random_llama(width=taken, blocks=BLOCKS, vocab=VOCAB, dtype=dtype)
    lm = wrap(model.to(device), tokenizer, name="a random model")
    found: ReadingSpeed = reading_speed(lm, seconds=seconds, stats=tuple(stats))
    weights = sum(p.numel() for block in lm.blocks for p in block.parameters() if p.dim() > 1)
    logits = (BLOCKS + 1) * lm.weight.shape[0]
    return MachineSpeed(
        passing=2.0 * weights * found.forward_per_second,
        reading=1e9 * found.gflops,
        per_logit=found.statistics_share / found.tokens_per_second / logits,
        width=taken,
        dtype=str(dtype).removeprefix("torch."),
    )

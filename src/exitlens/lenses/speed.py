"""How fast this model can be read on this machine, measured in about two seconds, and what bounds it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from exitlens.compute.hardware import product_dtype
from exitlens.compute.matmul import faster_float32
from exitlens.lenses.kernels.unembed import Unembedding
from exitlens.lenses.read_hidden import readout
from exitlens.models.protocol import LayeredModel

__all__ = ["ReadingSpeed", "reading_speed"]

STATS = ("entropy", "top_k", "logprob", "kl")
LONGEST_PASS = 64  # tokens of the forward pass that is timed
MOST_ROWS = 512  # rows of a block, as the readout takes them


@dataclass(frozen=True)
class ReadingSpeed:
    """Reading all layers (entropy, top-5, log-probability, KL). Shares of a token's time; they add up to 1.

    ``unembedding_seconds``: the product of a block of ``rows`` rows (layers × tokens) with the whole vocabulary, in
    number type ``product``, as PyTorch multiplies it; ``gflops``: its speed. Where product and statistics are one
    compiled kernel, which may take less than PyTorch's product alone, the statistics' share is what goes beyond that.
    ``forward_per_second``: tokens of the forward pass alone.
    """

    tokens_per_second: float
    forward_per_second: float
    unembedding_seconds: float
    rows: int
    gflops: float
    product: str
    forward_share: float
    product_share: float
    statistics_share: float

    @property
    def bound(self) -> str:
        """What takes most of the time."""
        shares = {
            "forward pass": self.forward_share,
            "unembedding product": self.product_share,
            "statistics": self.statistics_share,
        }
        return max(shares, key=lambda name: shares[name])


@torch.no_grad()
def reading_speed(
    lm: LayeredModel, *, seconds: float = 2.0, precision: str = "fast", stats: Sequence[str] = STATS
) -> ReadingSpeed:
    """Time a forward pass, the unembedding product of a block and the readout of all layers, about ``seconds`` in all.

    On a machine on which one block takes longer than its share, fewer rows are timed.
    """
    n = lm.n_layers + 1
    length = min(LONGEST_PASS, lm.context or LONGEST_PASS)
    ids = torch.arange(length, device=lm.device)[None] * 7 % lm.vocab_size
    share = seconds / 4
    hidden = lm.forward(ids, layers="all").hidden
    forward = _timed(lm, lambda: lm.forward(ids, layers="all"), share) / length

    product = product_dtype(precision, lm.weight.device, lm.weight.dtype)
    tokens = 1
    taken = _product(lm, tokens * n, product, 0.0)
    # As many tokens as give a full block, if the time allows.
    tokens = max(1, min(length, MOST_ROWS // n, int(share / max(taken, 1e-9))))
    block = _product(lm, tokens * n, product, share)

    states = {j: h[0, :tokens] for j, h in hidden.items()}
    targets = torch.zeros(tokens, dtype=torch.long)
    whole = _timed(lm, lambda: readout(lm, states, stats=stats, targets=targets, precision=precision), share) / tokens
    product_time = min(block / tokens, whole)
    total = forward + whole
    return ReadingSpeed(
        tokens_per_second=1.0 / total,
        forward_per_second=1.0 / forward,
        unembedding_seconds=block,
        rows=tokens * n,
        gflops=2e-9 * tokens * n * lm.weight.shape[0] * lm.weight.shape[1] / block,
        product=str(product).removeprefix("torch."),
        forward_share=forward / total,
        product_share=product_time / total,
        statistics_share=(whole - product_time) / total,
    )


def _product(lm: LayeredModel, rows: int, product: torch.dtype, seconds: float) -> float:
    head = Unembedding(lm.weight, lm.bias, lm.logit_transform, rows=rows, product=product)
    x = head.rows_of(torch.randn(rows, head.width, device=head.device)).to(product)

    def once() -> None:
        with faster_float32():
            for a, b in head.bounds:
                head.multiply(x, a, b, head.buffer("logits", rows, b - a))

    return _timed(lm, once, seconds)


def _timed(lm: LayeredModel, work: Callable[[], object], seconds: float) -> float:
    """Shortest of the runs that fit ``seconds``, at least one after a first that warms up."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        if lm.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return best

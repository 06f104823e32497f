"""Products of a few rows with a large weight, in every way that products.py and packed.py choose from.

    python benchmarks/products.py                # the built-in model's shapes, float32, all threads
    python benchmarks/products.py --dtype bfloat16
    OMP_NUM_THREADS=1 python benchmarks/products.py

The ways take turns; milliseconds are the least of the turns, since a busy machine only adds. ``chosen`` is what the
product used by the models takes. "oneDNN" is what PyTorch runs where ``torch.backends.mkldnn.matmul.fp32_precision``
allows bf16; ``error`` its largest difference from float64, which shows whether the processor really rounded. "laid out"
is the product of decoding, by a weight that was put in oneDNN's order beforehand (– where that is not done).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from exitlens.compute.matmul import linear
from exitlens.compute.prepacked import packed

SHAPES = [(49152, 576), (1536, 576), (576, 1536)]
ROWS = (1, 2, 4, 8, 16, 64, 512)


def main() -> None:
    options = argparse.ArgumentParser(description="Times of float32 products.")
    options.add_argument("--turns", type=int, default=15)
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    chosen = options.parse_args()
    turns, dtype = chosen.turns, getattr(torch, chosen.dtype)
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{'weight':>14} {'rows':>5} {'plain':>9} {'turned':>9} {'oneDNN':>9} {'chosen':>9} {'laid out':>9}  error")
    generator = torch.Generator().manual_seed(0)
    for v, d in SHAPES:
        w = (torch.randn(v, d, generator=generator) * 0.05).to(dtype)
        laid_out = packed(w)
        for rows in ROWS:
            x = torch.randn(rows, d, generator=generator).to(dtype)
            ways = [lambda: x @ w.T, lambda: (w @ x.T).T, lambda: _onednn(x, w), lambda: linear(x, w)]  # noqa: B023
            if laid_out is not None:
                ways.append(lambda: laid_out(x))  # noqa: B023
            times = [f"{1e3 * t:9.3f}" for t in _turns(ways, turns)] + ["        –"] * (laid_out is None)
            error = float((_onednn(x, w).double() - x.double() @ w.double().T).abs().max())
            print(f"{v:>8} × {d:<4} {rows:>5} " + " ".join(times) + f"  {error:.0e}")


def _onednn(x: Tensor, w: Tensor) -> Tensor:
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    try:
        return x @ w.T
    finally:
        setting.fp32_precision = before


def _turns(ways: list[Callable[[], Tensor]], turns: int) -> list[float]:
    best = [float("inf")] * len(ways)
    for _ in range(turns):
        for i, way in enumerate(ways):
            begun = time.perf_counter()
            way()
            best[i] = min(best[i], time.perf_counter() - begun)
    return best


if __name__ == "__main__":
    main()

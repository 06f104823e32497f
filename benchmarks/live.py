"""What the live page costs: tokens a second of the text with every layer of every token read beside it, and without.

    OMP_NUM_THREADS=1 python benchmarks/live.py

Generation runs on one thread in both. The layers are read by a second thread, so what is measured is how much it takes
away: on a machine with two cores or more its own work is done elsewhere. ``--one-core`` ties the process to one core,
where the reading thread has a lower priority. Both ways take turns in one process; the ratio is the
median over turns of two neighbours. ``behind`` is how long after the last token the last layers came.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch

PROMPT = "What do bees make from nectar?"


def main() -> None:
    options = argparse.ArgumentParser(description="Speed of the live stream.")
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--tokens", type=int, default=48, help="new tokens an answer")
    options.add_argument("--turns", type=int, default=7)
    options.add_argument("--one-core", action="store_true")
    chosen = options.parse_args()
    if chosen.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    import exitlens
    from exitlens.server import Limits
    from exitlens.server.schema import LiveRequest
    from exitlens.server.service import Service
    from exitlens.server.worker import Worker

    lm = exitlens.load(chosen.model)
    lm.model.generation_config.eos_token_id = 10**9  # no answer ends early
    service = Service(lm, Worker(1), Limits())
    asked = LiveRequest(prompt=PROMPT, max_tokens=chosen.tokens)
    plain(lm, chosen.tokens)
    live(service, asked)
    rows = [(plain(lm, chosen.tokens), live(service, asked)) for _ in range(chosen.turns)]
    ratio = statistics.median(with_layers[0] / alone for alone, with_layers in rows)
    alone, seconds = (statistics.median(values) for values in ([r[0] for r in rows], [r[1][0] for r in rows]))
    behind = statistics.median(r[1][1] for r in rows)
    cores = len(os.sched_getaffinity(0))
    print(f"{lm.name}, {lm.n_layers + 1} layers read, generation on {torch.get_num_threads()} thread, {cores} cores")
    print(f"{'':<12}{'tokens/s':>10}{'ms a token':>12}")
    print(f"{'alone':<12}{chosen.tokens / alone:>10.1f}{alone / chosen.tokens * 1e3:>12.1f}")
    print(f"{'streamed':<12}{chosen.tokens / seconds:>10.1f}{seconds / chosen.tokens * 1e3:>12.1f}")
    print(f"slower by {ratio - 1:.1%} (median of {len(rows)} turns); layers behind by {behind:.2f} s at the end")


def plain(lm: Any, tokens: int) -> float:
    """Seconds of the same text without a page: the server's own stream of text."""
    from exitlens.decoding import stream

    began = time.perf_counter()
    for _ in stream(lm, PROMPT, max_new_tokens=tokens):
        pass
    return time.perf_counter() - began


def live(service: Any, asked: Any) -> tuple[float, float]:
    """Seconds to the last token, and from there to the last layers."""
    from exitlens.server.live import LiveJob

    began = time.perf_counter()
    last = began
    for event in LiveJob(service, asked).run(lambda: True):
        if "token" in event:
            last = time.perf_counter()
    return last - began, time.perf_counter() - last


if __name__ == "__main__":
    main()

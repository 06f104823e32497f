"""What the live page costs: tokens a second of the text with every layer of every token read beside it, and without.

    OMP_NUM_THREADS=1 python benchmarks/live.py

Generation runs on one thread in both. The layers are read by a second thread, so what is measured is how much it takes
away: on a machine with two cores or more its own work is done elsewhere. ``--one-core`` ties the process to one core,
where the reading thread's lower priority shows. Both ways take turns in one process; the ratio is the
median over pairs of neighbours. The CPU time of the generating thread leaves out what other processes take from it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any, NamedTuple

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
    alone: list[Took] = []
    streamed: list[Took] = []
    for turn in range(chosen.turns):
        # Who goes first takes turns too: on a busy machine the second of two often waits longer.
        works = [(alone, lambda: plain(lm, chosen.tokens)), (streamed, lambda: live(service, asked))]
        for found, work in works if turn % 2 == 0 else reversed(works):
            found.append(work())
    cores = len(os.sched_getaffinity(0))
    print(f"{lm.name}, {lm.n_layers + 1} layers read, generation on {torch.get_num_threads()} thread, {cores} cores")
    print(f"{'ms a token':<14}{'median':>10}{'best':>10}{'CPU of the generating thread':>32}")
    for name, found in (("alone", alone), ("streamed", streamed)):
        middle, best = (statistic(one.seconds for one in found) for statistic in (statistics.median, min))
        own = statistics.median(one.own for one in found)
        print(
            f"{name:<14}"
            + "".join(f"{x / chosen.tokens * 1e3:>{w}.1f}" for x, w in ((middle, 10), (best, 10), (own, 32)))
        )
    ratio, own = (
        statistics.median(getattr(b, name) / getattr(a, name) for a, b in zip(alone, streamed, strict=True)) - 1
        for name in ("seconds", "own")
    )
    best = min(one.seconds for one in streamed) / min(one.seconds for one in alone) - 1
    print(f"slower by {ratio:.1%} (median of {chosen.turns} pairs), {best:.1%} (best of each), {own:.1%} (CPU)")
    print(f"layers behind by {statistics.median(one.behind for one in streamed):.2f} s at the end")


class Took(NamedTuple):
    """Seconds to the last token, the generating thread's CPU seconds, and seconds from there to the last layers."""

    seconds: float
    own: float
    behind: float = 0.0


def plain(lm: Any, tokens: int) -> Took:
    """The same text without a page: the server's own stream of text."""
    from exitlens.decoding import stream

    began, own = time.perf_counter(), time.thread_time()
    for _ in stream(lm, PROMPT, max_new_tokens=tokens):
        pass
    return Took(time.perf_counter() - began, time.thread_time() - own)


def live(service: Any, asked: Any) -> Took:
    """The text with its layers, as the page's stream gives it."""
    from exitlens.server.live import LiveJob

    began, started = time.perf_counter(), time.thread_time()
    last, own = began, 0.0
    for event in LiveJob(service, asked).run(lambda: True):
        if "token" in event:
            last, own = time.perf_counter(), time.thread_time() - started
    return Took(last - began, own, time.perf_counter() - last)


if __name__ == "__main__":
    main()

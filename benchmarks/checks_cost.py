"""What the checks of every pass cost: reading and decoding with them and without, taking turns in one process.

    python benchmarks/checks_cost.py            # the built-in model, two minutes

Checked in every pass are token ids (inside the embedding), texts (whole characters), the time that a long text is
tokenised in, and statistics (finite). Without them means the same code with each of these replaced by nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

import exitlens
from exitlens import stats
from exitlens.data import read_data
from exitlens.models.text import tokens

_FINE = torch.ones(1, dtype=torch.bool)


@contextmanager
def unchecked() -> Iterator[None]:
    """No check while open."""
    with ExitStack() as stack:
        for name, does in (
            ("check_ids", lambda *_: None),
            ("check_text", lambda *_: None),
            ("in_time", lambda work, _: work()),
        ):
            stack.enter_context(mock.patch.object(tokens, name, does))
        stack.enter_context(mock.patch.object(torch, "isfinite", return_value=_FINE))
        yield


def cost(run: Callable[[], Any], turns: int) -> stats.Interval:
    """Median seconds with the checks over median seconds without, less 1; their order alternates from turn to turn."""
    run()
    spent = np.empty((turns, 2))
    for turn in range(turns):
        for checked in (True, False) if turn % 2 else (False, True):
            with ExitStack() as stack:
                if not checked:
                    stack.enter_context(unchecked())
                began = time.perf_counter()
                run()
                spent[turn, int(checked)] = time.perf_counter() - began

    def ratio(picked: Any) -> float:
        without, within = np.median(spent[picked.astype(int)], axis=0)
        return float(within / without - 1)

    return stats.bootstrap_interval(np.arange(turns), ratio)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--turns", type=int, default=60)
    chosen = options.parse_args()
    lm = exitlens.load(chosen.model)
    questions = [question.question for question in read_data("facts-qa").questions]
    works = {
        "reading 10 questions as one text, all layers": lambda: lm.read(" ".join(questions[:10])),
        "decoding 16 tokens, batch 1": lambda: lm.generate(questions[:1], max_new_tokens=16),
        "decoding 16 tokens, batch 8": lambda: lm.generate(questions[:8], max_new_tokens=16),
    }
    print(f"{lm.name}, {lm.dtype}, {torch.get_num_threads()} threads, {chosen.turns} turns")
    for name, run in works.items():
        found = cost(run, chosen.turns)
        print(f"{name}: {100 * found.value:+.2f}% [{100 * found.low:+.2f}, {100 * found.high:+.2f}]", flush=True)


if __name__ == "__main__":
    main()

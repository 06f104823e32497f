"""Exits and drafts beside plain decoding, taking turns: time a token relative to plain decoding, with an interval.

    python benchmarks/exits_turns.py --heads heads.safetensors --settings fixed:30 classifier:0.98 draft:exit=2
    python benchmarks/exits_turns.py --settings draft:clasp --prompts 8 --tokens 64 --json turns.json --seconds 120
    python benchmarks/exits_turns.py --easy --settings draft:clasp    # deep half of the blocks nearly the identity

Settings: an exit policy as `--exit` takes it (with --heads read by them), `draft:` and what `--speculate` takes,
`+head` behind a draft verifies it by the last layer's head. Every turn runs plain decoding and each setting on the same
prompts, in an order drawn anew. "× plain" is the median over turns of plain's time over the setting's in the same turn,
with an interval from the ranks of the turns (95% or more, from 6 turns on); above 1 is faster. Time a token leaves the
prompt's pass out: (T tokens − 1 token) / (T − 1). "same": answers equal to plain decoding's, token for token.
With --json a run goes on where it stopped (--seconds ends it after a whole turn).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.exits import easy, prompts_for

from exitlens.decoding import generate
from exitlens.exits.draft import parse_draft
from exitlens.exits.policies import parse_policy
from exitlens.exits.rounds import SpeculationTally
from exitlens.exits.session import ExitPrefix
from exitlens.exits.shortlist import ExitReader
from exitlens.exits.speculation import speculate
from exitlens.models import load

Answers = list[Any]


def setting(lm: Any, name: str, prompts: list[str], reader: ExitReader) -> Callable[[int], tuple[Answers, str]]:
    """How to answer under a setting, and a word on what it did."""
    if name == "plain":
        return lambda count: (generate(lm, prompts, max_new_tokens=count, batch_size=1), "")
    if name.startswith("draft:"):
        text, _, head = name.removeprefix("draft:").partition("+")
        draft = parse_draft(text)

        def go(count: int) -> tuple[Answers, str]:
            tally = SpeculationTally()
            made = speculate(lm, prompts, draft, max_new_tokens=count, reader=reader, short=head == "head", tally=tally)
            told = f"{tally.acceptance:.2f} accepted" if tally.drafted else ""
            return made, tally.clasp.text if tally.clasp is not None else told

        return go
    policy = parse_policy(name)

    def leave(count: int) -> tuple[Answers, str]:
        made = generate(
            lm, prompts, max_new_tokens=count, batch_size=1,
            open_with=lambda ids: ExitPrefix(lm, ids, policy, reader=reader, steps=count),
        )  # fmt: skip
        return made, ""

    return leave


def seconds_a_token(go: Callable[[int], tuple[Answers, str]], tokens: int) -> tuple[float, Answers, str]:
    took = []
    for count in (1, tokens):
        begun = time.perf_counter()
        made, told = go(count)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - begun)
    later = max(1, sum(len(answer.token_ids) for answer in made) - len(made))
    return (took[1] - took[0]) / later, made, told


def rows_of(turns: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """A row a setting."""
    rows = []
    for name in names:
        ratios = np.sort([turn["plain"]["seconds"] / turn[name]["seconds"] for turn in turns])
        # The median is between the k-th smallest and the k-th largest but with probability 2·P(Bin(n, 1/2) < k): a
        # turn that the machine disturbed does not widen that.
        k = int(binom.ppf(0.025, len(ratios), 0.5))
        bounds = (float(ratios[k - 1]), float(ratios[-k])) if k else (float("nan"), float("nan"))
        rows.append({
            "setting": name,
            "turns": len(turns),
            "ms": 1e3 * float(np.median([turn[name]["seconds"] for turn in turns])),
            "times_plain": float(np.median(ratios)),
            "low": None if name == "plain" else bounds[0],
            "high": None if name == "plain" else bounds[1],
            "same": float(np.mean([turn[name]["same"] for turn in turns])),
            "told": turns[-1][name]["told"],
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--heads")
    parser.add_argument("--easy", action="store_true")
    parser.add_argument("--settings", nargs="+", required=True)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no turn after so long")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    begun = time.perf_counter()
    lm = load(options.model, device=options.device, dtype=options.dtype)
    lm = easy(lm) if options.easy else lm
    heads = None
    if options.heads:
        from exitlens.studies.exits.files import load_heads

        heads = load_heads(options.heads, lm)
    prompts = prompts_for(lm, options)
    reader = ExitReader(lm, heads)
    names = ["plain", *options.settings]
    ways = {name: setting(lm, name, prompts, reader) for name in names}
    turns: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        turns = json.loads(options.json.read_text())["turns"]
    want = [answer.token_ids for answer in ways["plain"](options.tokens)[0]]
    for go in ways.values():
        go(2)  # warms up
    while len(turns) < options.turns and time.perf_counter() - begun < options.seconds:
        turn: dict[str, Any] = {}
        for name in random.Random(len(turns)).sample(names, len(names)):
            seconds, made, told = seconds_a_token(ways[name], options.tokens)
            same = float(np.mean([a.token_ids == w for a, w in zip(made, want, strict=True)]))
            turn[name] = {"seconds": seconds, "same": same, "told": told}
        turns.append(turn)
        if options.json:
            options.json.write_text(json.dumps({"turns": turns}))
    told = (
        f"{lm.name}, {lm.dtype}, {torch.get_num_threads()} threads, {len(prompts)} prompts of {options.tokens} tokens"
    )
    print(f"{told}\n\n| setting | turns | same | ms a token | × plain | |\n|---|---|---|---|---|---|")
    for row in rows_of(turns, names):
        ratio = "1" if row["low"] is None else f"{row['times_plain']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        print(f"| {row['setting']} | {row['turns']} | {row['same']:.2f} | {row['ms']:.1f} | {ratio} | {row['told']} |")


if __name__ == "__main__":
    main()

"""Statements a second into the store of hidden states, beside transformers and beside the bare forward pass.

    python benchmarks/extraction.py --statements true-false                       # 128 rows, three rounds
    python benchmarks/extraction.py --statements true-false --dtype float32       # the same type on both sides
    python benchmarks/extraction.py --statements true-false --rows 6330 --rounds 1 --ways bare-shared,exitlens
    python benchmarks/extraction.py --statements facts-tf --memory 1000,20000     # peak memory, a process each

Ways, which take turns on the same prompted statements:

- transformers: `output_hidden_states=True`, float32, batches of 16 padded to the longest, all layers' last token kept
  in memory (no file);
- bare: the model's own forward pass over whole texts of equal length, nothing recorded, no logits;
- bare-shared: the same with the prompt's shared beginning run once: the floor of what extraction does;
- exitlens: `extract` into a new store, hashes, index and label words included.

The last three run in `--dtype` (auto: what `exitlens probe` takes on this machine). Then the finished store: one layer
of all statements, and all layers of 16 statements, files as the system cached them.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from exitlens.data import read_data
from exitlens.data.prompts import truth_prompt
from exitlens.data.records import Statement
from exitlens.models import load
from exitlens.models.forward import passes
from exitlens.runs.engine import LocalEngine
from exitlens.runs.hidden_states import StateStore
from exitlens.studies.probes.extraction import extract


def main() -> None:
    """Time every way in turn and print rates and ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--statements", default="facts-tf")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="transformers,bare,bare-shared,exitlens", help="which ways, by commas")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of every way but transformers, which runs in float32")
    parser.add_argument("--memory", help="numbers of statements, by commas; their peak memory instead of times")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(one_peak(args)))
        return
    if args.memory:
        for count in args.memory.split(","):
            command = [sys.executable, *sys.argv, "--one", count]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(done.stdout.strip().splitlines()[-1], flush=True)
        return
    lm = load(args.model, device=args.device, dtype=args.dtype)
    names = args.ways.split(",")
    # The plain way's model, in its own type.
    plain = lm if lm.dtype == torch.float32 else load(args.model, device=args.device, dtype="float32")
    rows = spread(read_data(args.statements).statements, args.rows)
    folder = Path(tempfile.mkdtemp(prefix="exitlens-bench-"))
    stores: list[StateStore] = []

    def ours() -> None:
        stores.append(extract(LocalEngine(lm), rows, folder / str(len(stores))))

    ways: dict[str, Callable[[], Any]] = {
        "transformers": lambda: by_transformers(plain, rows),
        "bare": lambda: bare(lm, rows),
        "bare-shared": lambda: bare_shared(lm, rows),
        "exitlens": ours,
    }
    bare_shared(lm, rows[:16])  # warm
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(args.rounds):
        for name in names:
            seconds[name].append(timed(lm, ways[name]))
            print(f"round {turn + 1} {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    out: dict[str, Any] = {
        "model": lm.name, "device": str(lm.device), "dtype": str(lm.dtype), "rows": len(rows),
        "threads": torch.get_num_threads(),
        "statements_a_second": {name: round(len(rows) / s, 2) for name, s in middle.items()},
        "seconds": {name: [round(min(v), 2), round(max(v), 2)] for name, v in seconds.items()},
    }  # fmt: skip
    if stores:
        for name, value in middle.items():
            if name == "transformers":
                out["times_transformers"] = round(value / middle["exitlens"], 2)
            elif name != "exitlens":
                out[f"time_over_{name}"] = round(middle["exitlens"] / value, 2)
        out |= reads(lm, stores[-1], rows)
        out["largest_difference"] = compare(plain, rows[:16], stores[-1])
    print(json.dumps(out, indent=1))


def reads(lm: Any, store: StateStore, rows: Sequence[Statement]) -> dict[str, float]:
    """Seconds to read one layer of every statement, and every layer of 16."""
    store.layer(0)
    one = [timed(lm, lambda j=j: store.layer(j)) for j in (5, 15, 25) if j <= lm.n_layers]
    few = [s.id for s in rows[:16]]
    some = timed(lm, lambda: store.states(range(lm.n_layers + 1), few))
    return {"read_one_layer_s": round(statistics.median(one), 4), "read_16_statements_s": round(some, 4)}


def spread(statements: Sequence[Statement], count: int) -> list[Statement]:
    """``count`` statements spread evenly; repeated under new ids where there are not enough."""
    if count <= len(statements):
        return [statements[i * len(statements) // count] for i in range(count)]
    return [
        replace(s, id=f"{s.id}#{k}", statement=f"{s.statement[:-1]}, {k}.")
        for k in range(-(-count // len(statements)))
        for s in statements
    ][:count]


def timed(lm: Any, way: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    way()
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def texts(rows: Sequence[Statement]) -> list[str]:
    """The prompted statements."""
    return ["".join(truth_prompt(s.statement)) for s in rows]


@torch.no_grad()
def by_transformers(lm: Any, rows: Sequence[Statement]) -> torch.Tensor:
    """States ``[rows, layers, d]`` the usual way."""
    tokenizer, found = lm.tokenizer, []
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    whole = texts(rows)
    for first in range(0, len(whole), 16):
        batch = tokenizer(whole[first : first + 16], return_tensors="pt", padding=True).to(lm.device)
        out = lm.model(**batch, output_hidden_states=True, use_cache=False)
        found.append(torch.stack([h[:, -1] for h in out.hidden_states], 1).cpu())
    return torch.cat(found)


@torch.no_grad()
def bare(lm: Any, rows: Sequence[Statement]) -> None:
    """Whole texts, equal lengths together, nothing recorded."""
    by_length: dict[int, list[list[int]]] = {}
    for text in texts(rows):
        ids = lm.encode(text)
        by_length.setdefault(len(ids), []).append(ids)
    for length, group in by_length.items():
        step = max(1, min(64, 2048 // length))
        for first in range(0, len(group), step):
            lm.forward(torch.tensor(group[first : first + step], device=lm.device))


@torch.no_grad()
def bare_shared(lm: Any, rows: Sequence[Statement]) -> None:
    """The shared beginning once, then the rest of each text; nothing recorded."""
    for _ in passes(lm, [lm.encode(text) for text in texts(rows)], layers=()):
        pass


def compare(lm: Any, rows: Sequence[Statement], store: StateStore) -> float:
    """Largest difference to transformers' states over the layers below the last, relative to their spread."""
    plain = by_transformers(lm, rows)[:, : lm.n_layers].transpose(0, 1).float()
    mine = torch.from_numpy(store.states(range(lm.n_layers), [s.id for s in rows]))
    return float(((mine - plain).abs().amax((1, 2)) / plain.std((1, 2))).max())


def one_peak(args: argparse.Namespace) -> dict[str, Any]:
    """Extract that many statements; peak memory of this process, and of it before it began."""
    lm = load(args.model, device=args.device, dtype=args.dtype)
    rows = spread(read_data(args.statements).statements, args.one)
    engine = LocalEngine(lm)
    extract(engine, rows[:32], tempfile.mkdtemp(prefix="exitlens-bench-"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begun = time.perf_counter()
    extract(engine, rows, tempfile.mkdtemp(prefix="exitlens-bench-"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "rows": len(rows), "peak_mib": round(peak), "after_32_rows_mib": round(before),
        "seconds": round(time.perf_counter() - begun, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""Every layer of a model at every position: our readout, a plain loop, and peers where they are installed.

    python benchmarks/lens.py                      # the built-in model, 64 TruthfulQA questions with answers
    python benchmarks/lens.py --questions 8 --repeats 5 --memory 1833 100000

The work: entropy, top-5, log-probability of the next token and KL to the final layer, at all layers and positions.
Our work and the others' take turns in one process, so that a busy machine slows all of them; the table gives medians
of tokens per second, and the ratio to the plain loop of the same turn. ``product alone`` is the unembedding of the
same rows with nothing read from the logits: PyTorch's own float32 product, the one that products.py chooses,
and bf16 where the machine has it. No method with that product can be faster here. Peers and the plain loop run in the
model's type (``--dtype``).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STATS = ("entropy", "top_k", "logprob", "kl")


def main() -> None:
    options = argparse.ArgumentParser(description="Speed and memory of reading every layer.")
    options.add_argument("--model", default=None, help="default: the built-in model")
    options.add_argument("--dtype", default="auto", help="type of the model: float32, bfloat16 or auto")
    options.add_argument("--data", default=None, help="default: the built-in questions; or a TruthfulQA csv")
    options.add_argument("--questions", type=int, default=64)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--memory", type=int, nargs="*", default=(), help="peak memory at these numbers of tokens")
    options.add_argument("--memory-child", type=int, default=None, help=argparse.SUPPRESS)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    import exitlens
    from exitlens.models.hub.catalog import CATALOG

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from lens_peers import peers

    from exitlens.compute.hardware import bf16_fast

    name = chosen.model or next(iter(CATALOG))
    if chosen.memory_child is not None:
        print(
            json.dumps(
                _stream(
                    exitlens.load(name, dtype=chosen.dtype), _texts(chosen.data, chosen.questions), chosen.memory_child
                )
            )
        )
        return
    lm = exitlens.load(name, dtype=chosen.dtype)
    texts = _texts(chosen.data, chosen.questions)
    ids = [lm.encode(text) for text in texts]
    tokens = sum(map(len, ids))
    three = [lm.n_layers // 2, 3 * lm.n_layers // 4, lm.n_layers]
    works: dict[str, Callable[[], Any]] = {
        "plain loop": lambda: _plain(lm, ids),
        "exitlens exact": lambda: _ours(lm, ids, "exact", "all"),
        "exitlens fast": lambda: _ours(lm, ids, "fast", "all"),
        "exitlens fast, 3 layers": lambda: _ours(lm, ids, "fast", three),
        "exact without numba": lambda: _without_numba(lm, ids, "exact", "all"),
        "fast without numba": lambda: _without_numba(lm, ids, "fast", "all"),
        "fast without numba, 3 layers": lambda: _without_numba(lm, ids, "fast", three),
        "forward pass alone": lambda: _forward(lm, ids),
        "product alone, float32": lambda: _floor(lm, tokens, torch.float32),
        "product alone, float32 chosen": lambda: _chosen_floor(lm, tokens),
    }
    if bf16_fast(lm.device):
        works["product alone, bf16"] = lambda: _floor(lm, tokens, torch.bfloat16)
    works |= peers(lm, ids)
    _ours(lm, ids[:2], "fast", "all")  # the kernels are compiled, or read from the cache folder
    _ours(lm, ids[:2], "exact", "all")
    seconds: dict[str, list[float]] = {work: [] for work in works}
    for _ in range(chosen.repeats):
        for work, run in works.items():
            start = time.perf_counter()
            run()
            seconds[work].append(time.perf_counter() - start)
    worst = _difference(lm, ids[0][:64])
    rows = []
    for work, times in seconds.items():
        ratio = statistics.median(p / t for p, t in zip(seconds["plain loop"], times, strict=True))
        rows.append({"work": work, "tokens_per_second": tokens / statistics.median(times), "ratio": ratio})
    result: dict[str, Any] = {
        "model": lm.name,
        "tokens": tokens,
        "layers": lm.n_layers + 1,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "largest_error_nats": worst,
    }
    if chosen.memory:
        result["memory"] = [_child(chosen, n) for n in chosen.memory]
    if chosen.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{lm.name} in {lm.dtype}: {len(ids)} texts, {tokens} tokens, {lm.n_layers + 1} layers, "
        f"{result['threads']} threads"
    )
    for row in rows:
        print(f"  {row['work']:30s} {row['tokens_per_second']:9.1f} tokens/s   {row['ratio']:6.2f} x plain loop")
    for work, error in worst.items():
        print(f"  largest error of entropy and KL against float64, {work}: {error:.2g} nats")
    for peak in result.get("memory", []):
        print(f"  {peak['tokens']} tokens: peak {peak['peak_mib']} MiB, {peak['before_mib']} MiB with the model loaded")


def _texts(data: str | None, count: int) -> list[str]:
    from exitlens import data as room

    found = room.read_data(data or "facts-qa")
    return [f"Q: {q.question}\nA: {q.best}" for q in found.questions[:count]]


def _ours(lm: Any, ids: list[list[int]], precision: str, layers: Any) -> Any:
    from exitlens.lenses import read_ids

    return read_ids(lm, ids, layers=layers, stats=STATS, precision=precision)


def _without_numba(lm: Any, ids: list[list[int]], precision: str, layers: Any) -> Any:
    """Ours as it is where numba is not installed."""
    from exitlens.lenses.kernels import compiled as _compiled

    before, _compiled.LEAST = _compiled.LEAST, 1 << 62
    try:
        return _ours(lm, ids, precision, layers)
    finally:
        _compiled.LEAST = before


@torch.no_grad()
def _plain(lm: Any, ids: list[list[int]]) -> list[dict[str, Tensor]]:
    """What one would write first: text by text, layer by layer, whole vocabularies."""
    out = []
    for text in ids:
        hidden = lm.forward(torch.tensor([text], device=lm.device), layers="all").hidden
        final = torch.log_softmax(lm.logits(hidden[lm.n_layers][0], lm.n_layers).float(), -1)
        following = torch.tensor([*text[1:], 0], device=lm.device)[:, None]
        got: dict[str, list[Tensor]] = {name: [] for name in ("entropy", "top", "logprob", "kl")}
        for j in range(lm.n_layers + 1):
            logp = torch.log_softmax(lm.logits(hidden[j][0], j).float(), -1)
            p = logp.exp()
            got["entropy"].append(-(p * logp).sum(-1))
            got["top"].append(logp.topk(5).values)
            got["logprob"].append(logp.gather(-1, following)[:, 0])
            got["kl"].append((final.exp() * (final - logp)).sum(-1))
        out.append({name: torch.stack(parts) for name, parts in got.items()})
    return out


@torch.no_grad()
def _forward(lm: Any, ids: list[list[int]]) -> None:
    from exitlens.lenses import read_texts as reading
    from exitlens.models import forward

    windows = forward.plan_windows([len(text) for text in ids], lm.context, None)
    for batch in forward.window_batches(windows, reading.BATCH_TOKENS):
        reading._run(lm, ids, batch, (lm.n_layers,))


@torch.no_grad()
def _floor(lm: Any, tokens: int, dtype: torch.dtype) -> None:
    weight = lm.weight.detach().to(dtype)
    rows = 512
    x = torch.randn(rows, weight.shape[1], device=weight.device).to(dtype)
    tiles = weight.split(1024)
    out = [torch.empty(rows, len(w), device=weight.device, dtype=dtype) for w in tiles]
    for _ in range(-(-tokens * (lm.n_layers + 1) // rows)):
        for w, o in zip(tiles, out, strict=True):
            torch.mm(x, w.T, out=o)


def _chosen_floor(lm: Any, tokens: int) -> None:
    from exitlens.compute.matmul import faster_float32

    with faster_float32():
        _floor(lm, tokens, torch.float32)


@torch.no_grad()
def _difference(lm: Any, text: list[int]) -> dict[str, float]:
    """Largest error in nats of ours and of the plain loop, from the same hidden states, against float64."""
    from exitlens.lenses import readout

    hidden = {j: h[0] for j, h in lm.forward(torch.tensor([text], device=lm.device), layers="all").hidden.items()}
    ours = {how: readout(lm, hidden, stats=("entropy", "kl"), precision=how) for how in ("exact", "fast")}
    weight = lm.weight.double()
    bias = 0.0 if lm.bias is None else lm.bias.double()
    worst = {"exitlens exact": 0.0, "exitlens fast": 0.0, "plain loop": 0.0}
    final: list[Tensor] = []
    for j in sorted(hidden, reverse=True):
        exact = torch.log_softmax(lm.logit_transform(lm.norm(hidden[j]).double() @ weight.T + bias), -1)
        plain = torch.log_softmax(lm.logits(hidden[j], j).float(), -1)
        final = final or [exact, plain]
        h, h_plain = (-(logp.exp() * logp).sum(-1) for logp in (exact, plain))
        kl, kl_plain = ((f.exp() * (f - logp)).sum(-1) for f, logp in zip(final, (exact, plain), strict=True))
        for name, pair in {
            "exitlens exact": (ours["exact"]["entropy"][j], ours["exact"]["kl"][j]),
            "exitlens fast": (ours["fast"]["entropy"][j], ours["fast"]["kl"][j]),
            "plain loop": (h_plain, kl_plain),
        }.items():
            error = max(float((pair[0] - h).abs().max()), float((pair[1] - kl).abs().max()))
            worst[name] = max(worst[name], error)
    return worst


def _child(chosen: argparse.Namespace, tokens: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--memory-child", str(tokens), "--questions", str(chosen.questions)]
    command += [part for key in ("model", "data", "dtype") if (v := getattr(chosen, key)) for part in (f"--{key}", v)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _stream(lm: Any, texts: list[str], tokens: int) -> dict[str, Any]:
    """Read texts over and over, in portions, until ``tokens`` are read; peak resident memory of this process."""
    from exitlens.lenses import read_ids

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    ids = [lm.encode(text) for text in texts]
    done = 0
    while done < tokens:
        portion: list[list[int]] = []
        for text in ids:
            if done >= tokens:
                break
            portion.append(text[: tokens - done])
            done += len(portion[-1])
        read_ids(lm, portion, stats=STATS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"tokens": done, "peak_mib": peak, "before_mib": before}


if __name__ == "__main__":
    main()

"""The parts of gpu.py: what each measures on the device it is given, and the sizes it takes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench, Work, median
from torch import Tensor

from exitlens.decoding import generate
from exitlens.exits.policies import ExitPolicy
from exitlens.exits.session import ExitPrefix, Tally
from exitlens.lenses import readout
from exitlens.lenses.jacobian.text import FitSettings, rows_jacobian
from exitlens.lenses.kernels import triton as fused
from exitlens.lenses.read_texts import read_windows
from exitlens.models.forward import passes, plan_windows
from exitlens.models.layered import Layered
from exitlens.models.native.runner import runner_of
from exitlens.models.pullback import gradient_of
from exitlens.storage.atomic import write_tensors

# ---- the machine


def machine(bench: Bench) -> None:
    """The ceilings: the largest product and a copy within the device's memory."""
    bench.measure_peak()
    x = bench.random(bench.pick(1 << 30, 1 << 16))
    y = torch.empty_like(x)
    took = median(bench.turns({"copy": lambda: y.copy_(x)}, count=10, warm=3)["copy"])
    n = bench.pick(8192, 256)
    bench.rows.append({"what": f"product {n}³, {str(bench.dtype)[6:]}", "TFLOP/s": bench.peak / 1e12})
    bench.rows.append({"what": "copy, bytes read and written", "TB/s": 2 * x.numel() * x.element_size() / took / 1e12})


def model(bench: Bench) -> None:
    """The model of random weights that the other parts use: seconds until it is checked, and what was found."""
    begun = time.monotonic()
    lm = bench.model()
    bench.sync()
    bench.rows.append({"what": "made and compared with itself [s]", "found": time.monotonic() - begun})
    begun = time.monotonic()
    runner = runner_of(lm)
    for what, found in (
        ("parameters", sum(p.numel() for p in lm.model.parameters())),
        ("layer N against its own logits, allowed", lm.parity.tolerance),
        ("layer N against its own logits, found", lm.parity.max_abs),
        ("blocks run one by one", "yes" if runner is not None else "no"),
        ("cache", lm.cache_kind),
        ("padding changes nothing", lm.pads_exactly),
        ("these checks [s]", time.monotonic() - begun),
    ):
        bench.rows.append({"what": what, "found": found})


# ---- the fused kernel

_TILES = ({}, {"bn": 256, "stages": 3}, {"bm": 64, "warps": 4}, {"bn": 64, "warps": 4}, {"stages": 3})


def kernel(bench: Bench) -> None:
    """The fused kernel against float64, then its time beside the product alone, with other tiles too."""
    if not fused.INSTALLED:
        raise RuntimeError("Triton is not installed, so there is no fused kernel: pip install triton")
    interpreted = bench.device.type == "cpu"
    tiny_tiles = {"bm": 16, "bn": 16, "bk": 16} if interpreted else {}
    rows, width, vocab = bench.pick((1023, 4096, 32000), (17, 40, 131))
    # Triton's interpreter multiplies the bits of bf16 numbers as if they were whole numbers.
    half = torch.float16 if interpreted else torch.bfloat16
    for dtype in (half, torch.float32):
        for bias, cap in ((False, None), (True, 30.0)):
            x = bench.random(rows, width, dtype=dtype, scale=4 / width**0.5 / (cap or 1.0))
            w = bench.random(vocab, width, dtype=dtype)
            b = bench.random(vocab, dtype=torch.float32) if bias else None
            bench.rows.append({"what": f"{str(dtype)[6:]}{', bias and soft-cap' if bias else ''}, errors",
                               **_errors(fused.sums(x, w, b, cap, **tiny_tiles), x, w, b, cap)})  # fmt: skip
    rows = bench.pick(8184, 17)
    x, w = bench.random(rows, width, dtype=half), bench.random(vocab, width, dtype=half)
    out = torch.empty(rows, vocab, device=bench.device, dtype=half)
    works: dict[str, Work] = {"product alone, logits stored": lambda: torch.mm(x, w.T, out=out)}
    for tiles in _TILES[: bench.pick(len(_TILES), 2)]:
        name = ", ".join(f"{k} {v}" for k, v in tiles.items()) or "as built"
        if not interpreted:
            works[f"kernel, {name}"] = lambda tiles=tiles: fused.sums(x, w, None, None, **tiles)
        else:
            works[f"kernel, {name}"] = lambda: fused.sums(x, w, None, None, **tiny_tiles)
    for what, seconds in bench.turns(works, warm=2).items():
        flops, took = 2.0 * rows * width * vocab, median(seconds)
        row = {"what": what, "ms": took * 1e3, "TFLOP/s": flops / took / 1e12, "of the peak": bench.share(flops, took)}
        bench.rows.append(row)


def _errors(got: dict[str, Tensor], x: Tensor, w: Tensor, b: Tensor | None, cap: float | None) -> dict[str, float]:
    z = x.double() @ w.double().T + (0 if b is None else b.double())
    z = z if cap is None else cap * torch.tanh(z)
    log_p = z.log_softmax(1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(1)
    spread = (p * log_p**2).sum(1) - entropy**2
    mean = got["first"] / got["total"]
    found = got["total"].log() - mean
    varied = got["second"] / got["total"] - mean**2
    return {
        "log-sum-exp [nats]": float((got["max"] + got["total"].log() - z.logsumexp(1)).abs().max()),
        "entropy [nats]": float((found - entropy).abs().max()),
        "varentropy [nats²]": float((varied - spread).abs().max()),
        "top-1 agrees": float((got["best"] == z.argmax(1)).double().mean()),
    }


# ---- reading all layers

_SETS = {
    "entropy, max_probability, logprob": ("entropy", "max_probability", "logprob"),
    "the same and kl": ("entropy", "max_probability", "logprob", "kl"),
    "the same and top_k": ("entropy", "logprob", "kl", "top_k"),
}


def read(bench: Bench) -> None:
    """All layers of some texts: the readout alone, beside a plain loop and compiled torch, and with the pass."""
    lm = bench.model()
    tokens, length = bench.pick((8192, 512), (64, 16))
    texts = bench.texts(tokens // length, length)
    n, per = lm.n_layers + 1, 2.0 * lm.weight.numel()
    ids = torch.tensor(texts, device=lm.device)
    parts = [lm.forward(ids[i : i + 4], layers="all").hidden for i in range(0, len(texts), 4)]
    hidden = {j: torch.cat([part[j].flatten(0, 1) for part in parts]) for j in parts[0]}
    del parts
    targets = torch.tensor(texts).flatten()
    plain = _plain(lm)
    compiled = torch.compile(plain, backend=bench.pick("inductor", "eager"), dynamic=False)
    chunk = bench.pick(2048, 32)

    def loop(step: Callable[..., Any]) -> None:
        goal = targets.to(lm.device)
        for h in hidden.values():
            for at in range(0, tokens, chunk):
                step(h[at : at + chunk], goal[at : at + chunk])

    def ours(stats: Sequence[str]) -> Work:
        return lambda: readout(lm, hidden, stats=stats, targets=targets, precision="fast")

    works: dict[str, Work] = {f"readout: {name}": ours(stats) for name, stats in _SETS.items()}
    works["plain loop: entropy, max_probability, logprob"] = lambda: loop(plain)
    works["compiled torch: the same"] = lambda: loop(compiled)
    _read_rows(bench, bench.turns(works, count=3), n * tokens * per, tokens)
    _of_passes(bench, lm, texts, n * tokens * per, tokens)


def _of_passes(bench: Bench, lm: Layered, texts: list[list[int]], readout_flops: float, tokens: int) -> None:
    weights = sum(p.numel() for block in lm.blocks for p in block.parameters())
    windows = plan_windows([len(text) for text in texts], None, None)
    at_once = bench.pick(2048, 32)

    stats = next(iter(_SETS.values()))

    def whole() -> None:
        for _ in read_windows(lm, texts, windows, range(lm.n_layers + 1), stats=stats, batch_tokens=at_once,
                              precision="fast"):  # fmt: skip
            pass

    def bare() -> None:
        for _ in passes(lm, texts, layers=[lm.n_layers], batch_tokens=at_once):
            pass

    found = bench.turns({"the pass alone": bare, "pass and readout of all layers": whole}, count=3)
    flops = 2.0 * weights * tokens
    _read_rows(bench, {"the pass alone": found.pop("the pass alone")}, flops, tokens)
    _read_rows(bench, found, flops + readout_flops, tokens)


def _read_rows(bench: Bench, found: dict[str, list[float]], flops: float, tokens: int) -> None:
    for what, seconds in found.items():
        took = median(seconds)
        bench.rows.append({"what": what, "ms": took * 1e3, "tokens/s": tokens / took, "TFLOP/s": flops / took / 1e12,
                           "of the peak": bench.share(flops, took)})  # fmt: skip


def _plain(lm: Layered) -> Callable[..., Any]:
    norm, head = lm.layout.tail, lm.layout.head

    @torch.no_grad()
    def step(h: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_p = head(norm(h[None]))[0].float().log_softmax(-1)
        p = log_p.exp()
        return -(p * log_p).sum(-1), p.amax(-1), log_p.gather(1, goal[:, None])

    return step


def memory(bench: Bench) -> None:
    """Peak memory of reading all layers of a batch beside the model's own pass over it, logits included."""
    lm = bench.model()
    for rows, length in bench.pick(((1, 512), (4, 512)), ((2, 16),)):
        texts = bench.texts(rows, length)
        ids = torch.tensor(texts, device=lm.device)
        windows = plan_windows([length] * rows, None, None)
        found: dict[str, float] = {}
        for name, stats in {"plain": (), "entropy": ("entropy",), "entropy and kl": ("entropy", "kl")}.items():
            bench.sync()
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            with torch.no_grad():
                if stats:
                    for _ in read_windows(lm, texts, windows, range(lm.n_layers + 1), stats=stats,
                                          batch_tokens=rows * length, precision="fast"):  # fmt: skip
                        pass
                else:
                    lm.model(input_ids=ids, use_cache=False)
            bench.sync()
            what = f"{rows} × {length} tokens, {name}"
            if bench.device.type != "cuda":  # the allocator's peak is known there alone
                bench.rows.append({"what": what, "peak GiB": None, "of plain": None})
                continue
            found[name] = torch.cuda.max_memory_allocated() / 2**30
            bench.rows.append({"what": what, "peak GiB": found[name], "of plain": found[name] / found["plain"]})


# ---- decoding


def decoding(bench: Bench) -> None:
    """Plain and contrastive decoding beside transformers' generate, greedy, all answers of one length."""
    lm = bench.model()
    length, new = bench.pick((64, 32), (8, 3))
    for rows in bench.pick((1, 32), (1, 2)):
        prompts = bench.texts(rows, length)
        ids = torch.tensor(prompts, device=lm.device)
        own: Any = lm.model

        def peer(ids: Tensor = ids, own: Any = own) -> None:
            mask = torch.ones_like(ids)
            with torch.no_grad():
                own.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)

        works: dict[str, Work] = {"transformers' generate": peer}
        for name in ("vanilla", "dola", "sled", "end"):
            works[name] = lambda name=name, prompts=prompts: generate(
                lm, prompts, decoder=name, max_new_tokens=new, batch_size=len(prompts)
            )
        found = bench.turns(works, count=3)
        base = found["transformers' generate"]
        for name, seconds in found.items():
            ratio = median([a / b for a, b in zip(base, seconds, strict=False)])
            bench.rows.append({"batch": rows, "what": name, "ms a step": median(seconds) / new * 1e3,
                               "tokens/s": rows * new / median(seconds), "times generate": ratio,
                               "blocks": "our own" if runner_of(lm) is not None else "the model's"})  # fmt: skip


# ---- early exit


def exits(bench: Bench) -> None:
    """What exiting at half depth saves where every token may: the deep half of the blocks is nearly the identity."""
    lm = bench.model()
    half = lm.n_layers // 2
    deep = [block.get_submodule(name) for block in lm.blocks[half:] for name in ("self_attn.o_proj", "mlp.down_proj")]
    kept = [module.weight.detach().clone() for module in deep]
    try:
        with torch.no_grad():
            for module in deep:
                module.weight.mul_(1e-3)
        _exits(bench, lm, half)
    finally:
        with torch.no_grad():
            for module, weight in zip(deep, kept, strict=True):
                module.weight.copy_(weight)


def _exits(bench: Bench, lm: Layered, half: int) -> None:
    length, new = bench.pick((64, 32), (8, 3))
    policies = {
        "never": ExitPolicy("never"),
        "fixed at half depth": ExitPolicy("fixed", layers=(half,)),
        "entropy, passed at half depth": ExitPolicy("entropy", 100.0, (half,)),
        "cosine, asked at two layers": ExitPolicy("cosine", 0.9, (half, half + 1)),
    }
    for rows in bench.pick((1, 8), (1, 2)):
        prompts = bench.texts(rows, length)
        tallies = {name: Tally() for name in policies}

        def work(name: str, prompts: list[list[int]] = prompts, tallies: dict[str, Tally] = tallies) -> None:
            tallies[name] = Tally()
            generate(lm, prompts, max_new_tokens=new, batch_size=len(prompts),
                     open_with=lambda ids: ExitPrefix(lm, ids, policies[name], tally=tallies[name]))  # fmt: skip

        works: dict[str, Work] = {"plain": lambda p=prompts: generate(lm, p, max_new_tokens=new, batch_size=len(p))}
        works |= {name: lambda name=name: work(name) for name in policies}
        found = bench.turns(works, count=3)
        whole = tallies["never"].blocks or 1
        for name, seconds in found.items():
            ratio = median([a / b for a, b in zip(found["plain"], seconds, strict=False)])
            blocks = tallies[name].blocks / whole if name in tallies else 1.0
            bench.rows.append({"batch": rows, "what": name, "ms a step": median(seconds) / new * 1e3,
                               "times plain": ratio, "blocks run": blocks})  # fmt: skip


# ---- fitting a Jacobian lens


def jacobian(bench: Bench) -> None:
    """Texts of 128 tokens a minute for all layers: what a text costs once, and its rows, from some of them."""
    lm = bench.model()
    length, skip = bench.pick((128, 16), (24, 4))
    ids = bench.texts(1, length)[0]
    layers = range(lm.n_layers)
    how = gradient_of(lm, ids, first=skip, lowest=0, product=bench.dtype)
    out = torch.zeros(lm.n_layers, lm.d_model, lm.d_model, device=lm.device)
    weights = sum(p.numel() for block in lm.blocks for p in block.parameters())
    positions = length - 1 - skip
    held: list[Any] = [how.text(ids, first=skip, lowest=0)]

    def once() -> None:
        held.clear()
        held.append(how.text(ids, first=skip, lowest=0))

    for at_once in bench.pick((256, 512), (16,)):
        settings = FitSettings(length=length, skip=skip, rows=at_once)
        count = min(lm.d_model, at_once)

        def rows(count: int = count, settings: FitSettings = settings) -> None:
            rows_jacobian(held[0], range(count), layers, positions, settings, out)

        found = bench.turns({"once a text": once, "rows": rows}, count=3)
        first, part = median(found["once a text"]), median(found["rows"])
        text = first + part * lm.d_model / count
        bench.rows.append({"rows at once": at_once, "way": how.method, "once a text [s]": first, "a text [s]": text,
                           "texts a minute": 60 / text, "100 texts [min]": text * 100 / 60,
                           "of the peak": bench.share(2.0 * weights * positions * count, part)})  # fmt: skip


# ---- states to disk


def extraction(bench: Bench) -> None:
    """States of all layers and tokens into safetensors files: with the pass, and writing alone."""
    lm = bench.model()
    count, length = bench.pick((64, 128), (4, 16))
    texts = bench.texts(count, length)
    folder = Path(tempfile.mkdtemp(prefix="exitlens-gpu-"))

    def states() -> Any:
        for batch in passes(lm, texts, layers="all", positions="all", batch_tokens=bench.pick(2048, 32)):
            yield {f"layer.{j:02d}": h.flatten(0, 1).contiguous().cpu() for j, h in batch.hidden.items()}

    def whole() -> None:
        for number, part in enumerate(states()):
            write_tensors(folder / f"{number}.safetensors", part)

    ready = list(states())

    def writing() -> None:
        for number, part in enumerate(ready):
            write_tensors(folder / f"{number}.safetensors", part)

    def passing() -> None:
        for _ in states():
            pass

    try:
        size = sum(t.numel() * t.element_size() for part in ready for t in part.values())
        works: dict[str, Work] = {"pass, copy and write": whole, "pass and copy": passing, "write alone": writing}
        for what, seconds in bench.turns(works, count=3).items():
            took = median(seconds)
            bench.rows.append({"what": what, "MB/s": size / took / 1e6, "tokens/s": count * length / took,
                               "MB": size / 1e6})  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Part:
    """What it measures, in a line; its work; and the most seconds it may take."""

    what: str
    work: Callable[[Bench], None]
    seconds: float


_SECONDS = {
    machine: 20,
    model: 40,
    kernel: 75,
    read: 130,
    memory: 25,
    decoding: 100,
    exits: 60,
    jacobian: 70,
    extraction: 40,
}
PARTS = {work.__name__: Part(str(work.__doc__), work, float(most)) for work, most in _SECONDS.items()}

"""Fitting a Jacobian lens, beside a straightforward implementation, in one run.

    python benchmarks/jacobian.py                       # the built-in model, in its own number type and in float32
    python benchmarks/jacobian.py --rows 64 --turns 3   # more of each text's rows
    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/jacobian.py
    python benchmarks/jacobian.py --fit 72 --data lens-eval --keep sum.part   # a real fit, with its held-out curve

The straightforward implementation is what the definition says: the text eight times in a batch, the whole model's graph
(parameters want no gradient), one-hot cotangents at the last layer's channels, eight at a time, gradients of all
layers. Both ways take the same rows of the same text in turns; seconds are the processor's own (all threads together),
the least of the turns, since a busy machine only adds, and are scaled to all rows: ``a text`` has what is done once a
text in it. ``error``: distance from the straightforward way in float32, as a share of J − I.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import exitlens
from exitlens.compute.hardware import describe, product_dtype
from exitlens.lenses.concepts import best_ranks, inner_layers, pass_at, plan_reads, ranks_at, with_rule
from exitlens.lenses.jacobian.text import FitSettings, rows_jacobian
from exitlens.models.layout.hooks import eval_mode
from exitlens.models.pullback import Gradient, gradient_of
from exitlens.studies.lens_training import pieces_of_own

LENGTH, SKIP, BATCH = 128, 16, 8


def main() -> None:
    options = argparse.ArgumentParser(description="Fitting a Jacobian lens: ours and a straightforward way.")
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--rows", type=int, default=32)
    options.add_argument("--turns", type=int, default=2)
    options.add_argument("--fit", type=int, default=0, metavar="N", help="fit on N texts by the model itself instead")
    options.add_argument("--data", help="concept prompts for pass@k along the fit")
    options.add_argument("--keep", help="file of the sum so far: the same command goes on from it")
    chosen = options.parse_args()
    if chosen.fit:
        _fit(chosen)
        return
    facts = describe()
    print(f"{facts['processor']}, {torch.get_num_threads()} of {facts['cores']} cores, {chosen.model}, {LENGTH} tokens")
    reference: Tensor | None = None
    print(f"{'model in':>10} {'way':>28} {'s a text':>9} {'of it once':>10} {'ratio':>6}  error")
    for dtype in dict.fromkeys(("float32", "auto")):
        lm = exitlens.load(chosen.model, dtype=dtype)
        ids = _text(lm)
        plain = [_straight(lm, ids, chosen.rows) for _ in range(chosen.turns)]
        if reference is None:
            reference = plain[0][0]
        _row(lm, "straightforward", plain, chosen.rows, reference, None)
        base = min(_scaled(lm, once, rows, chosen.rows) for _, once, rows in plain)
        product = product_dtype("fast", lm.device, lm.dtype)
        for how in (gradient_of(lm, ids, first=SKIP, product=product), Gradient(lm, "blocks")):
            found = [_ours(how, ids, chosen.rows) for _ in range(chosen.turns)]
            name = f"{how.method}, {str(product).removeprefix('torch.')}" if how.backward else how.method
            _row(lm, name, found, chosen.rows, reference, base)


def _fit(chosen: argparse.Namespace) -> None:
    """A lens on the model's own texts: held-out KL and pass@k each time the number of texts doubles, and the cost."""
    lm = exitlens.load(chosen.model)
    measure = None if chosen.data is None else _pass_at(lm, chosen.data)
    if measure is not None:
        print("logit lens:", measure("logit"), flush=True)
    texts = pieces_of_own(lm, chosen.fit, 1 << 30, length=LENGTH, least=LENGTH - 28, enough=1)
    begun, wall, first = time.process_time(), time.monotonic(), 0

    def tell(_phase: str, done: int, total: int) -> None:
        nonlocal first
        first = first or done  # what an earlier run had done
        each = [seconds / (done - first + 1) for seconds in (time.process_time() - begun, time.monotonic() - wall)]
        print(f"{done} of {total} texts, {each[0]:.1f} s of processor and {each[1]:.1f} s each", flush=True)

    lens, _ = exitlens.fit_jacobian_lens(
        lm, texts.ids, held_out=8, keep=chosen.keep, source=texts.source, measure=measure, progress=tell, say=print
    )
    print(f"{lens.texts} texts: {lens.provenance['curve']}")


def _pass_at(lm: Any, data: str) -> Callable[[Any], dict[str, float]]:
    reads = plan_reads(lm, with_rule(exitlens.read_data(data).concepts, None))
    layers = inner_layers(lm.n_layers)

    def measure(lens: Any) -> dict[str, float]:
        best = best_ranks(ranks_at(lm, reads, lens, layers))
        return {f"pass@{k}": pass_at(best, k) for k in (1, 5, 10, 50)}

    return measure


def _text(lm: Any) -> list[int]:
    words = "The giant anteater eats ants and termites, and walks on its knuckles to keep its long claws sharp. "
    return list(lm.encode(words * 12))[:LENGTH]


def _scaled(lm: Any, once: float, rows: float, count: int) -> float:
    return once + rows * lm.d_model / count


def _row(
    lm: Any, name: str, turns: list[tuple[Tensor, float, float]], count: int, reference: Tensor, base: float | None
) -> None:
    seconds, once = min((_scaled(lm, once, rows, count), once) for _, once, rows in turns)
    added = reference - torch.eye(lm.d_model)[:count]
    error = float((turns[0][0] - reference).norm() / added.norm())
    ratio = "" if base is None else f"{base / seconds:.1f}"
    print(f"{str(lm.dtype)[6:]:>10} {name:>28} {seconds:>9.1f} {once:>10.1f} {ratio:>6}  {error:.1e}", flush=True)


def _ours(how: Gradient, ids: list[int], count: int) -> tuple[Tensor, float, float]:
    lm, out = how.lm, torch.zeros(how.lm.n_layers, how.lm.d_model, how.lm.d_model)
    text, once = _timed(lambda: how.text(ids, first=SKIP))
    settings = FitSettings(rows=32 if how.backward else 16)
    _, rows = _timed(lambda: rows_jacobian(text, range(count), range(lm.n_layers), LENGTH - 1 - SKIP, settings, out))
    return out[:, :count], once, rows


def _straight(lm: Any, ids: list[int], count: int) -> tuple[Tensor, float, float]:
    streams: list[Tensor] = []
    (_, once) = _timed(lambda: streams.extend(_graph(lm, ids)))
    found = torch.zeros(lm.n_layers, count, lm.d_model)

    def rows() -> None:
        for start in range(0, count, BATCH):
            cotangents = torch.zeros(BATCH, LENGTH, lm.d_model, dtype=lm.dtype)
            for i in range(BATCH):
                cotangents[i, SKIP:-1, start + i] = 1.0
            gradients = torch.autograd.grad(streams[-1], streams[:-1], cotangents, retain_graph=True)
            for layer, gradient in enumerate(gradients):
                found[layer, start : start + BATCH] = gradient[:, SKIP:-1].float().mean(1)

    return found, once, _timed(rows)[1]


def _graph(lm: Any, ids: list[int]) -> list[Tensor]:
    streams: list[Tensor] = []

    def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        streams.append(args[0].detach().requires_grad_())
        return (streams[0], *args[1:]), kwargs

    def leave(_module: Any, _args: Any, output: Any) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    handles = [lm.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave) for block in lm.blocks]
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)
    with eval_mode(lm.model), torch.enable_grad():
        lm.body(input_ids=torch.tensor([ids] * BATCH), use_cache=False)
    for handle in handles:
        handle.remove()
    return streams


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.process_time()
    return work(), time.process_time() - begun


if __name__ == "__main__":
    main()

"""Fitting a Jacobian lens: the mean over texts of how the last residual stream moves with each layer's.

Texts are added in a fixed order in float32, and the sum so far is kept aside; a fit that was stopped goes on from it
with the same additions in the same order, and so ends with the same bytes, whoever sums the texts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from exitlens.compute.hardware import product_dtype
from exitlens.compute.memory import free_bytes
from exitlens.errors import InputError
from exitlens.layer_range import Layers, resolve_layers
from exitlens.lenses.jacobian._running_sum import UNIT, RunningSum
from exitlens.lenses.jacobian._text_sums import Elsewhere, Stream, SumTexts, add_texts
from exitlens.lenses.jacobian.lens import JacobianLens
from exitlens.lenses.jacobian.text import LENGTH, ROWS, SKIP, FitSettings
from exitlens.lenses.read_hidden import readout
from exitlens.models.protocol import LayeredModel
from exitlens.models.pullback import Gradient, gradient_of
from exitlens.parsing import cut
from exitlens.storage.atomic import key_of, text_hash

__all__ = ["Elsewhere", "FitReport", "Stream", "fit_jacobian_lens"]

CPU_ROWS = 32  # rows pulled back at once: more no longer make a product faster there, and leave the cache
SHARE = 0.25  # of the free memory, for one batch of rows
HELD_OUT = 8  # texts that the curve is measured on
FLAT = 0.02  # a doubling of the text that lowers the held-out KL by less than this share no longer helps

Progress = Callable[[str, int, int], None]
Measure = Callable[[JacobianLens], Mapping[str, float]]


@dataclass(frozen=True, repr=False)
class FitReport:
    """What a fit did.

    ``curve``: a row each time the number of texts doubled: ``texts``, ``kl`` (nats to the last layer, the mean over
    layers, on ``held_out`` texts of which none was fitted on) and what ``measure`` gave. ``logit_kl``: of the logit
    lens there. ``enough``: after how many texts more of them stopped helping, or None. ``notes``: lines for the reader.
    """

    curve: tuple[Mapping[str, float], ...]
    logit_kl: float
    enough: int | None
    texts: int
    held_out: int
    seconds: float
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        last = f"{self.curve[-1]['kl']:.2f}" if self.curve else "unknown"
        notes = f"\n  {cut('; '.join(self.notes), 200)}" if self.notes else ""
        return (
            f"FitReport: {self.texts} texts fitted on, {self.held_out} held out, {self.seconds:.0f} s\n"
            f"  mean KL to the last layer: {self.logit_kl:.2f} nats with the logit lens, {last} with this one\n"
            f"  .curve has a row each time the number of texts doubled{notes}"
        )


def fit_jacobian_lens(
    lm: LayeredModel,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    name: str = "jacobian",
    estimator: str = "summed",
    layers: Layers = "all",
    length: int = LENGTH,
    skip: int = SKIP,
    rows: int | None = None,
    patterns: int = 1,
    precision: str = "fast",
    held_out: int | None = None,
    time_limit: float | None = None,
    keep: Path | str | None = None,
    source: str = "",
    measure: Measure | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _line: None,
    elsewhere: Elsewhere | None = None,
) -> tuple[JacobianLens, FitReport]:
    """Fit a Jacobian lens: ``J_j = E[∂h_N/∂h_j]`` for each layer below the last.

    The model is left as it is: parameters get no gradient, flags and modes stay.

    Args:
        lm: The model.
        texts: Texts, or their token ids; each is cut at ``length``.
        name: What tables call the lens.
        estimator: ``summed`` (over later targets, as published) or ``same-position``.
        layers: Layers to have matrices of; blocks below the lowest cost nothing.
        length: Tokens of a text [tokens].
        skip: First positions of a text left out [tokens].
        rows: Channels pulled back at once; None: by the memory there is.
        patterns: Sign patterns a text, for ``same-position``.
        precision: ``fast``: bf16 products where the machine is good at them; ``exact``: float32 products.
        held_out: Texts kept for the curve; None: an eighth of them, 8 at most.
        time_limit: Seconds after which no further text is begun.
        keep: A file for the sum so far; a fit that finds its own there goes on from it.
        source: Where the texts come from, for the provenance.
        measure: More to measure for the curve, such as pass@k: the lens so far → numbers by name.
        progress: Called with ``texts``, how many are done, and of how many.
        say: Takes lines for the reader: texts left out, smaller batches, each point of the curve.
        elsewhere: Who sums the texts, where it is not this process: the same bytes.

    Returns:
        The lens, and a report of the fit.

    Raises:
        InputError: No text is long enough, settings that cannot be, ``keep`` holds another fit's sum.
        UnsupportedModel: The model has no gradient.
        ModelError: A Jacobian with NaN; names the text and the layer.

    Source: "Verbalizable Representations Form a Global Workspace in Language Models", Anthropic, July 2026.
    """
    started = time.monotonic()
    settings = FitSettings(estimator, length, skip, rows, patterns, precision).checked()
    plan = _planned(lm, texts, settings, layers, held_out)
    for line in plan.notes:
        say(line)
    total = RunningSum(keep, plan.key(lm), (len(plan.layers), lm.d_model, lm.d_model))
    watch = _Watch(lm, plan.held, plan.layers, measure, say, total.curve)

    def lens_of(provenance: Mapping[str, str]) -> JacobianLens:
        parts = (name, lm.fingerprint, total.value / total.count, plan.layers, lm.n_layers, total.count, estimator)
        return JacobianLens(*parts, provenance)

    until = math.inf if time_limit is None else started + time_limit
    late = _add_texts(lm, plan, total, lambda: watch.look(lens_of({})), until, progress, elsewhere)
    if late:
        say(late)
    notes = (*plan.notes, *([late] if late else []))
    seconds = time.monotonic() - started
    report = FitReport(tuple(watch.curve), watch.logit_kl, watch.enough(), total.count, len(plan.held), seconds, notes)
    return lens_of(_provenance(lm, plan, report, source)), report


@dataclass(frozen=True)
class _Plan:
    """What is fitted on what, and how; ``notes``: lines for the reader."""

    settings: FitSettings
    layers: tuple[int, ...]
    held: list[list[int]]
    fitted: list[list[int]]
    how: Gradient
    product: torch.dtype
    notes: list[str]

    def key(self, lm: LayeredModel) -> str:
        """What a sum that was kept must have been made of to be this fit's."""
        parts = (str(lm.dtype), self.layers, dataclasses.asdict(self.settings), self.how.method, str(self.product))
        return key_of(lm.fingerprint, *parts, self.held, self.fitted, UNIT)


def _planned(
    lm: LayeredModel,
    texts: Sequence[str] | Sequence[Sequence[int]],
    settings: FitSettings,
    layers: Layers,
    held_out: int | None,
) -> _Plan:
    wanted = _below_last(layers, lm)
    ids, notes = _usable(lm, texts, settings)
    kept_out = _held_out(len(ids), held_out)
    held, fitted = ids[:kept_out], ids[kept_out:]
    product = product_dtype(settings.precision, lm.device, lm.dtype)
    how = gradient_of(lm, fitted[0], first=settings.skip, lowest=wanted[0], product=product)
    batch, line = _rows_at_once(lm, settings, len(wanted))
    notes += [text for text in (how.note, line) if text]
    return _Plan(dataclasses.replace(settings, rows=batch), wanted, held, fitted, how, product, notes)


def _add_texts(
    lm: LayeredModel,
    plan: _Plan,
    total: RunningSum,
    look: Callable[[], None],
    until: float,
    progress: Progress | None,
    elsewhere: Elsewhere | None,
) -> str:
    """Add the texts that ``total`` lacks, measuring whenever their number doubled; a line where time was up."""
    every = len(plan.fitted)
    task = SumTexts(plan.layers, plan.settings, plan.how.method, plan.product)
    late = partial(_is_over, until)
    for count in add_texts(lm, plan.fitted, total, task, len(plan.held), late, elsewhere):
        if (count >= 4 and count & (count - 1) == 0) or count == every:
            look()
        total.keep()
        if progress is not None:
            progress("texts", count, every)
    if not total.curve or total.curve[-1]["texts"] != total.count:
        look()
    total.keep(last=True)
    return f"time was up after {total.count} of {every} texts" if total.count < every else ""


def _is_over(until: float) -> bool:
    return time.monotonic() > until


# ---- checks and choices made before the work


def _below_last(layers: Layers, lm: LayeredModel) -> tuple[int, ...]:
    wanted = tuple(sorted(resolve_layers(layers, lm.n_layers, owner=lm.name)))
    wanted = tuple(layer for layer in wanted if layer < lm.n_layers)
    if not wanted:
        raise InputError(f"layer {lm.n_layers} of {lm.name} is the model itself: name a layer below it")
    return wanted


def _usable(
    lm: LayeredModel, texts: Sequence[str] | Sequence[Sequence[int]], settings: FitSettings
) -> tuple[list[list[int]], list[str]]:
    """Token ids of the texts with a valid position, cut; and a line that says how many have none."""
    length = min(settings.length, lm.context or settings.length)
    least = settings.skip + 2
    found: list[list[int]] = []
    short: list[tuple[int, int]] = []
    for i, text in enumerate(texts):
        ids = lm.encode(text) if isinstance(text, str) else list(cast(Sequence[int], text))
        for v in ids:
            if not 0 <= v < lm.vocab_size:
                raise InputError(
                    f"text {i} holds token id {v}, out of the vocabulary of {lm.name} (0..{lm.vocab_size - 1})"
                )
        if len(ids) < least:
            short.append((i, len(ids)))
        else:
            found.append(ids[:length])
    remedy = f"the first {settings.skip} positions and the last are left out, so a text needs {least} tokens"
    if not found:
        first = f"; text {short[0][0]} has {short[0][1]}" if short else ""
        raise InputError(
            f"none of {len(texts)} texts is long enough ({remedy}{first}): give longer texts or skip fewer"
        )
    if not short:
        return found, []
    which = ", ".join(str(i) for i, _ in short[:5]) + (", …" if len(short) > 5 else "")
    return found, [f"{len(short)} of {len(texts)} texts are too short and left out ({which}): {remedy}"]


def _held_out(n: int, asked: int | None) -> int:
    """How many of ``n`` texts the curve is measured on."""
    if asked is None:
        return min(HELD_OUT, n // 8)
    if not 0 <= asked < n:
        raise InputError(f"held_out {asked} of {n} texts leaves none to fit: use 0 to {n - 1}")
    return asked


def _rows_at_once(lm: LayeredModel, settings: FitSettings, n_layers: int) -> tuple[int, str]:
    """Channels pulled back at once, and a line where memory allows fewer than would be taken."""
    best = min(lm.d_model, settings.rows or (CPU_ROWS if lm.device.type == "cpu" else ROWS))
    free = free_bytes(lm.device)
    matrices = 3 * 4 * n_layers * lm.d_model**2
    if free is None:
        return best, ""
    if matrices > free:
        raise InputError(
            f"the matrices of {n_layers} layers take {matrices / 2**30:.1f} GiB, and {free / 2**30:.1f} are free: fit "
            "fewer layers (--layers), or use a machine with more memory"
        )
    row = row_bytes(lm, settings.length)
    fits = max(1, int(SHARE * (free - matrices) // row))
    if fits >= best:
        return best, ""
    return fits, f"smaller batches: {fits} rows at a time instead of {best}, {free / 2**30:.1f} GiB of memory are free"


def row_bytes(lm: LayeredModel, length: int) -> int:
    """What one row keeps while it is pulled back through a block: inputs and outputs of its products, and attention."""
    widths = sum(p.shape[-1] + p.shape[-2] for p in lm.blocks[-1].parameters() if p.dim() >= 2)
    heads = getattr(getattr(lm, "config", None), "num_attention_heads", None)
    heads = heads if isinstance(heads, int) and heads > 0 else max(1, lm.d_model // 64)
    return length * (2 * widths + 4 * heads * length) * (torch.finfo(lm.dtype).bits // 8)


# ---- how well it reads so far


class _Watch:
    """The held-out curve: KL to the last layer each time the number of texts has doubled."""

    def __init__(
        self,
        lm: LayeredModel,
        held: Sequence[Sequence[int]],
        layers: tuple[int, ...],
        measure: Measure | None,
        say: Callable[[str], None],
        curve: list[Mapping[str, float]],
    ) -> None:
        self.lm, self.layers, self.measure, self.say, self.curve = lm, layers, measure, say, curve
        recorded = [*layers, lm.n_layers]
        parts: list[dict[int, Tensor]] = []
        with torch.no_grad():
            for ids in held:
                hidden = lm.forward(torch.tensor([list(ids)], device=lm.device), layers=recorded).hidden
                parts.append({j: hidden[j][0] for j in recorded})
        self.states = {j: torch.cat([part[j] for part in parts]) for j in recorded} if parts else {}
        self.logit_kl = self._kl("logit")

    def _kl(self, lens: str | JacobianLens) -> float:
        if not self.states:
            return math.nan
        kl = readout(self.lm, self.states, lens=lens, stats=("kl",))["kl"]
        return float(kl[:-1].double().mean())

    def look(self, lens: JacobianLens) -> None:
        """Measure the lens so far and say what was found."""
        if any(point["texts"] == lens.texts for point in self.curve):
            return  # measured before the fit was stopped
        point = {"texts": lens.texts, "kl": self._kl(lens), **(self.measure(lens) if self.measure is not None else {})}
        self.curve.append(point)
        told = ", ".join(f"{name} {value:.4g}" for name, value in point.items() if name != "texts")
        flat = self.enough()
        more = f"; more text stopped helping after {flat}" if flat is not None else ""
        self.say(f"after {lens.texts} texts, on held-out text: {told} (logit lens: kl {self.logit_kl:.4g}){more}")

    def enough(self) -> int | None:
        """The first number of texts whose doubling lowered the KL by less than :data:`FLAT` of it."""
        for a, b in zip(self.curve, self.curve[1:], strict=False):
            if b["texts"] == 2 * a["texts"] and b["kl"] > (1 - FLAT) * a["kl"]:
                return int(a["texts"])
        return None


def _provenance(lm: LayeredModel, plan: _Plan, report: FitReport, source: str) -> dict[str, str]:
    settings = plan.settings
    product = plan.product if plan.how.method == "native" else lm.dtype
    notes = {
        "model": lm.name,
        "source": source,
        "skip": str(settings.skip),
        "length": str(settings.length),
        "precision": str(product).removeprefix("torch."),
        "seconds": f"{report.seconds:.0f}",
        "held_out": str(report.held_out),
        "kl_before": f"{report.logit_kl:.4f}",
        "kl_after": f"{report.curve[-1]['kl']:.4f}",
        "curve": json.dumps(list(report.curve)),
        "texts": json.dumps([text_hash(str(text)) for text in plan.fitted[: report.texts]]),
    }
    if settings.estimator == "same-position":
        notes["patterns"] = str(settings.patterns)
    if report.enough is not None:
        notes["enough"] = str(report.enough)
    return notes

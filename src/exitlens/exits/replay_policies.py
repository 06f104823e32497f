"""What exiting early would save and cost, worked out from one full pass: no policy needs a second run of the model.

``Signals`` holds what each exit showed at each token; a policy and a threshold turn them into an exit layer a token,
and a :class:`Cost` into work saved, the cost of exit checks included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.errors import InputError
from exitlens.exits.heads import ExitHeads
from exitlens.exits.policies import ExitPolicy, entropy_of
from exitlens.exits.shortlist import ExitReader
from exitlens.lenses.lens import Lens, as_lens
from exitlens.models.protocol import LayeredModel

__all__ = [
    "Cost",
    "Outcome",
    "Signals",
    "apply_policy",
    "block_widths",
    "caught_up",
    "oracle",
    "oracle_at",
    "signals_of",
]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Signals:
    """What the exits showed. ``layers [E]`` are the exits, ``tokens T`` the positions whose next token is predicted.

    ``top [E+1, T]``: top token at each exit and at layer N (last row). ``values[kind] [E, T]``: each policy's signal
    (``cosine`` is NaN at the first exit; ``classifier`` only with a scorer). An exit at layer N is a head's there.
    ``question [T]`` and ``step [T]``: which answer a token belongs to, and its place in it.
    """

    layers: tuple[int, ...]
    n_layers: int
    top: Array
    values: Mapping[str, Array]
    question: Array
    step: Array

    @property
    def tokens(self) -> int:
        """Number of positions."""
        return int(self.top.shape[1])


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of one token: ``block`` for one block, ``unembed`` for a row of logits, ``head`` for a classifier's check.

    ``exit_unembed`` is what logits cost at an exit (less than ``unembed`` with a shortlist); None: the same.
    """

    block: float
    unembed: float
    head: float = 0.0
    exit_unembed: float | None = None

    @classmethod
    def of(
        cls, lm: LayeredModel, heads: ExitHeads | None = None, context: int = 128, *, lens: str | Lens = "logit"
    ) -> Cost:
        """Counted from the model's own weights: two per weight and token, plus attention over ``context`` positions.

        An exit without a head costs the unembedding and what its ``lens`` takes.
        """
        inside = sum(p.numel() for p in lm.blocks[0].parameters() if p.dim() > 1)
        mixing = 4.0 * context * lm.d_model
        at_exit = None
        if heads is not None:  # the shortlist's rows of the unembedding, and the translator's two thin matrices
            at_exit = 2.0 * len(heads.shortlist) * lm.d_model + 4.0 * heads.down.shape[1] * lm.d_model
        elif as_lens(lens).flops:
            at_exit = 2.0 * lm.weight.numel() + as_lens(lens).flops
        return cls(2.0 * inside + mixing, 2.0 * lm.weight.numel(), 2.0 * lm.d_model, at_exit)

    @property
    def at_exit(self) -> float:
        """Logits at an exit."""
        return self.unembed if self.exit_unembed is None else self.exit_unembed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy does to each token: ``exit [T]`` (layer), ``agrees [T]`` with the full model, ``flops [T]``.

    ``checks [T]``: exit checks of it. ``exited [T]``: by an exit (a head at layer N is one). ``full`` is the
    full model's FLOPs per token. ``flops`` counts the blocks up to the exit; what a deferred cache runs later is
    :func:`caught_up`.
    """

    policy: str
    exit: Array
    agrees: Array
    flops: Array
    full: float
    checks: Array
    exited: Array

    @property
    def flops_saved(self) -> float:
        """Share of the full model's FLOPs saved (negative when exit checks cost more than it saves)."""
        return 1.0 - float(self.flops.mean()) / self.full

    def layers_saved(self, n_layers: int) -> float:
        """Share of blocks not run."""
        return 1.0 - float(self.exit.mean()) / n_layers


@torch.no_grad()
def signals_of(
    lm: LayeredModel,
    hidden: Mapping[int, Tensor],
    question: Sequence[int] | Array,
    step: Sequence[int] | Array,
    *,
    layers: Sequence[int] | None = None,
    reader: ExitReader | None = None,
    texts: Sequence[Sequence[int]] | None = None,
    places: Sequence[int] | Array | None = None,
    block_rows: int = 64,
) -> Signals:
    """Signals of recorded states: ``hidden[layer]`` is ``[T, d_model]`` at every exit and at layer N.

    ``layers``: the exits (default: all that were recorded; N is one where ``reader`` has a head there). Raises
    ``texts``, a question's token ids each, with ``places [T]``, where in its text a state stands: heads read the text's
    tokens too, as decoding does. Raises :class:`InputError` when layer N or every exit is missing.
    """
    n, read = lm.n_layers, reader or ExitReader(lm)
    end = n + 1 if read.last else n
    exits = tuple(sorted(j for j in (hidden if layers is None else layers) if 1 <= j < end and j in hidden))
    if n not in hidden or not exits:
        raise InputError(f"exit analysis needs states at layer {n} and at one exit at least; got {sorted(hidden)}")
    total = int(hidden[n].shape[0])
    top = np.zeros((len(exits) + 1, total), dtype=np.int64)
    values = {kind: np.zeros((len(exits), total)) for kind in ("probability", "margin", "entropy")}
    for at in range(0, total, block_rows):
        part = slice(at, at + block_rows)
        top[-1, part] = lm.logits(hidden[n][part], n).argmax(-1).cpu().numpy()
        for e, layer in enumerate(exits):
            if texts is not None and places is not None:
                mine = [texts[int(q)] for q in np.asarray(question)[part]]
                shown = read.show_at(hidden[layer][part], layer, mine, np.asarray(places)[part].tolist())
            else:
                shown = read.show(hidden[layer][part], layer)
            log_p = shown.z.log_softmax(-1)
            pair = log_p.topk(2, dim=-1).values.exp().cpu().numpy()
            top[e, part] = shown.top().cpu().numpy()
            values["probability"][e, part] = pair[:, 0]
            values["margin"][e, part] = pair[:, 0] - pair[:, 1]
            values["entropy"][e, part] = entropy_of(log_p).cpu().numpy()
    cosine = np.full((len(exits), total), np.nan)
    for e in range(1, len(exits)):
        a, b = hidden[exits[e]].float(), hidden[exits[e - 1]].float()
        cosine[e] = torch.cosine_similarity(a, b, dim=-1).cpu().numpy()
    patience = np.ones((len(exits), total))
    for e in range(1, len(exits)):
        patience[e] = np.where(top[e] == top[e - 1], patience[e - 1] + 1, 1)
    values |= {"cosine": cosine, "patience": patience}
    if read.classifier is not None:
        values["classifier"] = np.stack([read.classifier(hidden[j], j).float().cpu().numpy() for j in exits])
    return Signals(exits, n, top, values, np.asarray(question), np.asarray(step))


def apply_policy(signals: Signals, policy: ExitPolicy, cost: Cost, *, steps: int = 1) -> Outcome:
    """The exit of every token under ``policy`` and what it costs; ``steps`` is T of a decaying threshold.

    Raises :class:`InputError` when the signal was not recorded or an exit was not.
    """
    wanted = policy.exits(signals.n_layers, last=signals.n_layers in signals.layers)
    for layer in wanted:
        if layer not in signals.layers:
            raise InputError(f"exit layer {layer} was not recorded: recorded are {', '.join(map(str, signals.layers))}")
    rows = [signals.layers.index(layer) for layer in wanted]
    if policy.layers and policy.kind in ("cosine", "patience") and rows != list(range(len(signals.layers))):
        # These compare with the exit before, so they are recorded for one set of exits only.
        raise InputError(f"{policy.kind} was recorded for exits {signals.layers}, not {wanted}: record those")
    exits_here = np.zeros((len(rows), signals.tokens), dtype=bool)
    if policy.kind == "fixed":
        exits_here[:] = True
    elif rows:
        if policy.kind not in signals.values:
            raise InputError(f"no signal for exit policy {policy.kind!r}: the classifier needs trained heads")
        value = signals.values[policy.kind][rows]
        limit = np.array([policy.limit(int(s), steps) for s in signals.step]) if policy.decay else policy.threshold
        with np.errstate(invalid="ignore"):
            exits_here = value <= limit if policy.rule.at_most else value >= limit
    return _outcome(signals, policy.name, rows, exits_here, cost, policy)


def oracle(signals: Signals, cost: Cost) -> Outcome:
    """The bound: each token exits at the first exit from which on all agree with layer N, and exit checks are free."""
    settled = np.logical_and.accumulate((signals.top[:-1] == signals.top[-1])[::-1], axis=0)[::-1]
    return _outcome(signals, "oracle", list(range(len(signals.layers))), settled, cost, None)


def oracle_at(signals: Signals, cost: Cost, agreement: float) -> Outcome:
    """The bound at less than full agreement: the tokens with the deepest saturation layer exit first, wrong or not."""
    bound = oracle(signals, cost)
    allowed = int((1.0 - agreement) * signals.tokens)
    wrong = signals.top[0] != signals.top[-1]
    late = np.argsort(-bound.exit * wrong, kind="stable")[:allowed]
    exits = bound.exit.copy()
    exits[late] = np.minimum(exits[late], signals.layers[0])
    agrees = bound.agrees.copy()
    agrees[late] &= ~wrong[late]
    exited = bound.exited.copy()
    exited[late] = True
    flops = exits * cost.block + np.where(exited, cost.at_exit, cost.unembed)
    return Outcome("oracle", exits, agrees, flops.astype(np.float64), bound.full, np.zeros(signals.tokens), exited)


def block_widths(exit_layer: Array, question: Array, step: Array) -> Array:
    """Blocks ``[T, w]`` that ``defer`` runs at each token with ``w`` tokens at once: itself, and those before it in
    its answer that had exited below that block.
    """
    depths = np.asarray(exit_layer).astype(np.int64)
    order = np.lexsort((step, question))
    starts = np.flatnonzero(np.r_[True, np.diff(question[order]) != 0])
    ends = np.r_[starts[1:], len(order)]
    out = np.zeros((len(depths), int(max(ends - starts, default=0)) + 1), dtype=np.int64)
    for begin, end in zip(starts, ends, strict=True):
        depth = depths[order[begin:end]]
        for t in range(end - begin):
            # A token that exited at d waits at the input of block d + 1 and joins every block from there on.
            waiting = np.sort(depth[:t][depth[:t] < depth[t]])
            edges = np.r_[0, waiting, depth[t]]
            np.add.at(out[order[begin + t]], np.arange(1, len(edges)), np.diff(edges))
            depth[:t][depth[:t] < depth[t]] = depth[t]
    return out


def caught_up(exit_layer: Array, question: Array, step: Array) -> Array:
    """Blocks ``[T]`` that ``defer`` runs at each token for the tokens before it, which had exited below its exit.

    What is never caught up is what exiting early saves for good.
    """
    widths = block_widths(exit_layer, question, step)
    return widths @ np.maximum(np.arange(widths.shape[1]) - 1, 0)


def _outcome(
    signals: Signals, name: str, rows: list[int], exits_here: Array, cost: Cost, policy: ExitPolicy | None
) -> Outcome:
    n, tokens = signals.n_layers, signals.tokens
    exited: Array = np.asarray(exits_here.any(0)) if rows else np.zeros(tokens, dtype=bool)
    first = exits_here.argmax(0) if rows else np.zeros(tokens, dtype=np.int64)
    exits = np.array([signals.layers[r] for r in rows] or [n])
    exit_layer = np.where(exited, exits[first], n)
    chosen = np.where(exited, np.array(rows or [0])[first], len(signals.layers))
    agrees = signals.top[chosen, np.arange(tokens)] == signals.top[-1]
    checks = np.where(exited, first + 1, len(rows))
    flops = exit_layer * cost.block
    if policy is not None and policy.needs_logits:
        flops = flops + checks * cost.at_exit + np.where(exited, 0.0, cost.unembed)
    else:
        per_check = cost.head if policy is not None and policy.kind in ("classifier", "cosine") else 0.0
        flops = flops + checks * per_check + np.where(exited, cost.at_exit, cost.unembed)
    return Outcome(name, exit_layer, agrees, flops.astype(np.float64), n * cost.block + cost.unembed, checks, exited)

"""Which sub-layers to skip now: chosen while decoding, from the last verified token, by a dynamic programme over depth.

After CLaSp (Chen et al. 2025, arXiv 2505.24196). ``best(i, k)`` is the state after piece i of the stack with k pieces
skipped; it is the closer, by cosine, of "run piece i on best(i − 1, k)" and "skip it from best(i − 1, k − 1)" to the
state of the full stack there. A piece is an attention or an MLP; where both read the block's input, the block. All k go
through a piece in one batch, the full stack (k = 0) among them, so a choice costs one pass of as many rows. Drafts are
verified as all others are: what is chosen changes the speed and never a token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exitlens.decoding.loop import BatchRun, Row
from exitlens.decoding.session import NativePrefix
from exitlens.exits.clasp_switch import Plan, Switch
from exitlens.exits.draft import Clasp, Draft
from exitlens.exits.rounds import Rounds, SpeculationTally
from exitlens.exits.shortlist import ExitReader
from exitlens.models.native.runner import KV, Runner, Shared

__all__ = ["ClaspRounds", "Costs", "Piece", "measured_costs", "pieces_of", "skip_plans"]

_PLAIN = Draft()  # skips nothing: the verification of no draft


@dataclass(frozen=True, slots=True)
class Piece:
    """What is run or skipped as one: sub-layers of block ``block`` (1..N)."""

    block: int
    attention: bool
    mlp: bool


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds for one token: an attention, an MLP, a draft's logits."""

    attention: float
    mlp: float
    head: float

    def of(self, piece: Piece) -> float:
        """Of one piece."""
        return self.attention * piece.attention + self.mlp * piece.mlp


def pieces_of(runner: Runner) -> list[Piece]:
    """Every attention and MLP in the order in which they run; whole blocks where the two run side by side."""
    blocks = range(1, runner.n_layers + 1)
    if runner.family.parallel:
        return [Piece(j, True, True) for j in blocks]
    return [Piece(j, sub == "attention", sub == "mlp") for j in blocks for sub in ("attention", "mlp")]


@torch.no_grad()
def measured_costs(runner: Runner, context: Shared, logits: Callable[[Tensor], object]) -> Costs:
    """Timed on the first few blocks, the better of two turns: a few milliseconds.

    An attention takes longer than its weights say, the more so the longer the ``context``. ``logits``: of states
    ``[1, d_model]``, as drafts read them.
    """
    where = runner.where(context.length, 1)
    kv = runner.new_kv(1, context.length + 1, context)
    x = runner.embed(torch.zeros(1, 1, dtype=torch.long, device=runner.lm.device), where)
    few = range(1, min(4, runner.n_layers) + 1)

    def seconds(work: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(2):
            begun = time.perf_counter()
            work()
            if x.is_cuda:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - begun)
        return best

    attention = seconds(lambda: runner.run(x, kv, where, last=few[-1], skip=((), few)))
    mlp = seconds(lambda: runner.run(x, kv, where, last=few[-1], skip=(few, ())))
    return Costs(attention / len(few), mlp / len(few), seconds(lambda: logits(x[:, 0])))


@torch.no_grad()
def skip_plans(
    runner: Runner, context: Shared, token: int, pieces: Sequence[Piece], most: int, costs: Costs
) -> list[Plan]:
    """The best way to skip exactly k pieces for each k of 1..``most``, for ``token`` after ``context``.

    ``Plan.overlap``: probability that a token drawn from this draft's distribution is accepted, on this one token.
    """
    n, p, rows = runner.n_layers, context.length, most + 1
    where = runner.where(p, 1)
    x = runner.embed(torch.tensor([[token]], device=runner.lm.device), where)
    own = runner.new_kv(rows, p + 1, context)
    skipped: list[Tensor] = []  # a piece: [most + 1], whether the best way with k skips skips it
    states = x
    for piece in pieces:
        held = len(states)
        j = piece.block
        without_it = () if piece.attention else (j,), () if piece.mlp else (j,)
        run = runner.run(states, own.first(held), where, first=j, last=j, skip=without_it)[j]
        width = min(held + 1, rows)
        with_it = _closeness(run, run[:1])
        without = _closeness(states, run[:1])
        kept = torch.full((width,), -torch.inf, device=run.device)
        kept[:held] = with_it
        spared = torch.full((width,), -torch.inf, device=run.device)
        spared[1:] = without[: width - 1]
        skip = spared > kept
        grown = torch.cat([run, run[-1:]])[:width]  # the last one was not reached yet: it can only come from a skip
        shifted = torch.cat([states[:1], states])[:width]
        states = torch.where(skip[:, None, None], shifted, grown)
        skipped.append(torch.nn.functional.pad(skip, (0, rows - width)))
    chosen = torch.stack(skipped).cpu().numpy()
    probability = runner.logits(states[:, 0], n).float().softmax(-1)
    overlap = torch.minimum(probability, probability[:1]).sum(-1).tolist()
    close = _closeness(states, states[:1]).tolist()
    total = sum(costs.of(piece) for piece in pieces) + costs.head
    plans = []
    for k in range(1, rows):
        left, saved = k, 0.0
        attention, mlp = [], []
        for piece, row in zip(reversed(pieces), chosen[::-1], strict=True):
            if row[left]:
                left -= 1
                saved += costs.of(piece)
                attention += [piece.block] if piece.attention else []
                mlp += [piece.block] if piece.mlp else []
        draft = Draft(skip_attention=tuple(sorted(attention)), skip_mlp=tuple(sorted(mlp)))
        plans.append(Plan(draft, k, 1.0 - saved / total, overlap[k], close[k]))
    return plans


def _closeness(states: Tensor, full: Tensor) -> Tensor:
    """Cosine ``[rows]`` of each state to the full stack's, in float32."""
    return torch.cosine_similarity(states[:, 0].float(), full[:, 0].float(), dim=-1)


def _context(kv: KV, row: int, length: int) -> Shared:
    """The first ``length`` positions of one row of ``kv``, what it shares with others included."""
    mine = KV([k[row : row + 1] for k in kv.keys], [v[row : row + 1] for v in kv.values])
    own = Shared.of(mine, length - kv.past)
    if kv.shared is None:
        return own
    both = kv.shared
    return Shared(
        [torch.cat(pair, dim=2) for pair in zip(both.keys, own.keys, strict=True)],
        [torch.cat(pair, dim=1) for pair in zip(both.values, own.values, strict=True)],
        length,
    )


class ClaspRounds(Rounds):
    """Rounds whose draft is chosen anew as the text goes on, and plain steps where no draft is faster.

    Args:
        run: what is the same for all rows.
        prefix: what the rows begin with.
        given: the options.
        reader: logits of the last layer where it has a head there.
        tally: what was run, added up.
        short: verify by the last layer's head.
        switch: says when to draft; one for all batches of a call.
    """

    def __init__(
        self,
        run: BatchRun,
        prefix: NativePrefix,
        given: Clasp,
        reader: ExitReader,
        tally: SpeculationTally,
        short: bool,
        switch: Switch,
    ) -> None:
        self.pieces = pieces_of(prefix.runner)
        self.most = given.limit(len(self.pieces))
        super().__init__(run, prefix, _PLAIN, reader, tally, short)
        self.given, self.switch = given, switch
        self.longest = given.length
        self._begun: float | None = None  # when the prompts' pass began, until it is accounted for
        self._turn = 0  # rows take turns in being chosen on

    def use(self, draft: Draft) -> None:
        """Draft so from the next round on; a draft that skips nothing is a plain step."""
        self.draft = draft
        skips = draft.skip_attention or draft.skip_mlp
        self.first = draft.first(self.n) if skips else 0

    def go(self, rows: list[Row]) -> None:
        """Run ``rows`` to their ends."""
        self._begun = time.perf_counter()
        super().go(rows)

    def advance(self, rows: list[Row], active: np.ndarray) -> None:
        """One round: a plain step, or a choice of sub-layers and a drafted round."""
        switch, begun = self.switch, time.perf_counter()
        if self._begun is not None:
            switch.idle(begun - self._begun)
            self._begun = None
        what = switch.next(len(active)) if self.useful(rows, active) else "plain"
        if what == "choose":
            self._choose(rows, active)
            begun = time.perf_counter()
            what = "plain" if switch.draft is None else "draft"
        if what == "plain" or switch.draft is None:
            self._step(rows)
            switch.stepped(len(active), time.perf_counter() - begun)
            return
        if switch.draft != self.draft:
            self.use(switch.draft)
        length = max(1, min(self.length, self.useful(rows, active)))
        before = self.tally.accepted
        best = self.round(rows, active, length)
        held = (self.tally.accepted - before) / len(active)
        switch.drafted(len(active), length, held, time.perf_counter() - begun)
        self.length = min(self.longest, length + 1) if best == length else max(1, best + 1)

    def _step(self, rows: list[Row]) -> None:
        """One token a row, as plain decoding makes it and at its cost: no state is kept for drafts."""
        d, run, runner = self.d, self.run, self.prefix.runner
        where = runner.where(torch.from_numpy(d.lengths), 1)
        tokens = torch.tensor([row.new[-1] for row in rows], device=run.lm.device)
        kept, read = runner.step(tokens, d.kv, where)
        state, everyone = kept[self.n][:, 0], np.arange(len(rows))
        d.passed(tokens)
        self.tally.blocks += len(rows) * self.n
        self.tally.rounds += 1
        self.tally.lengths.append(0)
        if self.short:
            logits = self.reader.show(state, self.n, everyone).whole(run.lm.vocab_size)
            self.tally.short += len(rows)
        else:
            logits = runner.logits(state, self.n).float() if read is None else read
            self.tally.unembeddings += len(rows)
        chosen = run.sampling.choose(logits, [row.generator for row in rows]).tolist()
        for row, token in zip(rows, chosen, strict=True):
            run.accept(row, token)
        self.reader.add(everyone, chosen)

    def _choose(self, rows: list[Row], active: np.ndarray) -> None:
        """Let the switch choose among the best ways to skip, as the last verified token of one row shows them."""
        begun = time.perf_counter()
        row = int(active[self._turn % len(active)])
        self._turn += 1
        at = int(self.d.lengths[row]) - 1
        token = [*rows[row].ids, *rows[row].new][at]
        runner = self.prefix.runner
        context = _context(self.d.kv, row, at)
        costs = measured_costs(runner, context, self._logits)
        plans = skip_plans(runner, context, token, self.pieces, self.most, costs)
        if self.switch.draft is None:
            self.length = 1  # a trial begins with short rounds: one that fails costs little, and good drafts soon grow
        self.switch.offer(plans, time.perf_counter() - begun)

    def _logits(self, states: Tensor) -> object:
        """What a draft reads of its last states."""
        if self.reader.last:
            return self.reader.show(states, self.n)
        return self.prefix.runner.logits(states, self.n)

"""Rounds of drafting and verifying on one batch, in one cache, and the count of what they ran."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from exitlens.decoding.loop import BatchRun, Row
from exitlens.decoding.session import NativePrefix
from exitlens.exits.clasp_switch import ClaspReport
from exitlens.exits.depth_cache import Depths
from exitlens.exits.draft import Draft
from exitlens.exits.shortlist import ExitLogits, ExitReader

__all__ = ["Rounds", "SpeculationTally"]


@dataclass(slots=True)
class SpeculationTally:
    """Rounds, tokens drafted, drafts accepted and block × token work, over all rows."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    blocks: int = 0
    unembeddings: int = 0
    short: int = 0  # rows over a head's shortlist
    lengths: list[int] = field(default_factory=list)
    clasp: ClaspReport | None = None  # of drafts chosen while decoding

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were kept."""
        return self.accepted / self.drafted if self.drafted else 0.0


class Rounds:
    """One batch: draft, verify, crop, until every row has finished.

    Args:
        run: what is the same for all rows.
        prefix: what the rows begin with.
        draft: the first draft; :meth:`use` takes another.
        reader: logits at the draft's exit, and of the last layer where it has a head there.
        tally: what was run, added up.
        short: verify by the last layer's head.
    """

    def __init__(
        self,
        run: BatchRun,
        prefix: NativePrefix,
        draft: Draft,
        reader: ExitReader,
        tally: SpeculationTally,
        short: bool,
    ) -> None:
        self.short = short
        self.run, self.prefix, self.tally = run, prefix, tally
        self.reader = reader
        self.n = run.lm.n_layers
        self.longest = self.length = draft.length  # tokens drafted a round: at most, and in the next one
        self.use(draft)
        self.greedy = run.sampling.greedy
        self.d: Depths

    def use(self, draft: Draft) -> None:
        """Draft so from the next round on."""
        self.draft, self.first = draft, draft.first(self.n)

    @torch.no_grad()
    def go(self, rows: list[Row]) -> None:
        """Run ``rows`` to their ends."""
        run = self.run
        # Drafts may reach past the last answer token before they are cut back.
        inner = self.prefix.session([self.n], run.limit + self.longest + 1)
        hidden = inner.start([row.ids for row in rows])
        self.d = Depths(self.prefix.runner, inner.kv, inner.lengths)
        logits = self.prefix.runner.logits(hidden[self.n], self.n).float()
        chosen = run.sampling.choose(logits, [row.generator for row in rows])
        for row, token in zip(rows, chosen.tolist(), strict=True):
            run.accept(row, token)
        self.reader = self.reader.bind([[*row.ids, *row.new] for row in rows])
        while True:
            going = np.array([i for i, row in enumerate(rows) if row.finish is None], dtype=np.int64)
            if not len(going):
                return
            if len(going) < len(rows):  # as plain decoding does: rows that are done cost nothing more
                self.d.select(going)
                self.reader.keep(going)
                rows = [rows[i] for i in going]
            self.advance(rows, np.arange(len(rows)))

    def advance(self, rows: list[Row], active: np.ndarray) -> None:
        """One round; the next drafts more where all of a row's drafts held, and fewer where they failed."""
        length = min(self.length, self.useful(rows, active))
        best = self.round(rows, active, length)
        self.length = min(self.longest, length + 1) if best == length else max(1, best + 1)

    def useful(self, rows: list[Row], active: np.ndarray) -> int:
        """Most drafts a row that may still be said, and whose positions the model has."""
        wanted = max(self.run.limit - len(rows[i].new) for i in active) - 1
        context = self.run.lm.context
        return wanted if context is None else min(wanted, context - 1 - int(self.d.lengths[active].max()))

    def round(self, rows: list[Row], active: np.ndarray, length: int) -> int:
        """Draft ``length`` tokens a row (0: a step of plain decoding), verify, crop; most drafts that a row held."""
        d, run = self.d, self.run
        start = d.lengths[active].copy()
        drafts, shares = self._propose(rows, active, length)
        before = d.blocks_run
        d.advance(active, self.first + 1, self.n)
        self.tally.blocks += d.blocks_run - before
        at = torch.from_numpy(start[:, None] + np.arange(length + 1)[None])
        # A step without a draft reads the states as plain decoding does.
        states = d.states[torch.from_numpy(active)[:, None], at] if length else d.last(active)
        if self.short:  # a draft's own tokens are in the shortlist or the text: what a row may say does not change here
            shown = self.reader.show(states.view(len(active) * (length + 1), -1), self.n, np.repeat(active, length + 1))
            final = shown.whole(run.lm.vocab_size).view(len(active), length + 1, -1)
            self.tally.short += len(active) * (length + 1)
        else:
            final = self.prefix.runner.logits(states, self.n).float().view(len(active), length + 1, -1)
            self.tally.unembeddings += len(active) * (length + 1)
        best = 0
        kept = np.zeros(len(active), dtype=np.int64)
        for i, r in enumerate(active):
            row = rows[r]
            tokens, held = self._verify(row, final[i], drafts[i], None if shares is None else shares[i])
            best = max(best, held)
            self.tally.accepted += held
            self.tally.drafted += length
            for token in tokens:
                if row.finish is None:
                    run.accept(row, token)
                    self.reader.add(active[i : i + 1], [token])
            kept[i] = start[i] + 1 + held
        d.crop(active, kept)
        self.tally.rounds += 1
        self.tally.lengths.append(length)
        return best

    def _propose(self, rows: list[Row], active: np.ndarray, length: int) -> tuple[list[list[int]], Tensor | None]:
        """``length`` draft tokens a row, and the distributions ``[rows, length, vocab]`` they were drawn from."""
        d = self.d
        token = torch.tensor([rows[i].new[-1] for i in active])
        drafts: list[list[int]] = [[] for _ in active]
        shares = []
        for step in range(length + 1):
            d.append(active, token)
            before = d.blocks_run
            if self.first:
                d.advance_last(active, self.first)
            if step == length:  # the last draft is only brought to where verification begins
                self.tally.blocks += d.blocks_run - before
                break
            shown = self._draft_logits(active)
            self.tally.blocks += d.blocks_run - before
            if shown.ids is None:
                self.tally.unembeddings += len(active)
            else:
                self.tally.short += len(active)
            if self.greedy:
                token = shown.top().cpu()
            else:
                share = self.run.sampling.distribution(shown.whole(self.run.lm.vocab_size))
                shares.append(share)
                own = [rows[i].generator for i in active]
                token = torch.cat([torch.multinomial(s.cpu(), 1, generator=g) for s, g in zip(share, own, strict=True)])
            for mine, t in zip(drafts, token.tolist(), strict=True):
                mine.append(t)
        return drafts, torch.stack(shares, 1) if shares else None

    def _draft_logits(self, active: np.ndarray) -> ExitLogits:
        if self.draft.exit is not None:
            return self.reader.show(self.d.last(active), self.first, active)
        x = self.d.draft_rest(active, self.first, self.draft.skip_attention, self.draft.skip_mlp)
        if self.reader.last:  # a draft needs no more than the shortlist: verification corrects it
            return self.reader.show(x, self.n, active)
        return ExitLogits(self.prefix.runner.logits(x, self.n).float())

    def _verify(self, row: Row, final: Tensor, draft: list[int], share: Tensor | None) -> tuple[list[int], int]:
        """Tokens to add (accepted drafts and one of the model's own) and how many drafts held."""
        if self.greedy:
            want = final.argmax(-1).tolist()
            held = 0
            while held < len(draft) and draft[held] == want[held]:
                held += 1
            return [*draft[:held], want[held]], held
        p = self.run.sampling.distribution(final)
        for k, (token, q) in enumerate(zip(draft, () if share is None else share, strict=True)):
            ratio = float(p[k, token] / q[token])
            if float(torch.rand((), generator=row.generator, dtype=torch.float64)) < ratio:
                continue
            left = (p[k] - q).clamp_min(0.0)
            left = left if float(left.sum()) > 0 else p[k]
            return [*draft[:k], int(torch.multinomial(left.cpu(), 1, generator=row.generator))], k
        return [*draft, int(torch.multinomial(p[len(draft)].cpu(), 1, generator=row.generator))], len(draft)

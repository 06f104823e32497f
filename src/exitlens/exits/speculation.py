"""Lossless decoding with a draft from the model itself: propose tokens cheaply, verify them together, keep what holds.

A draft exits at a layer (LayerSkip: Elhoushi et al. 2024) or skips sub-layers (Draft & Verify: Zhang et al. 2023). Its
states up to the first skipped place are exact and are kept: verification takes all drafted tokens from there through
the rest of the model in one batch, in the same cache. Greedy output is token for token that of plain decoding; sampled
output keeps its distribution (rejection sampling: Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from exitlens.decoding.loop import BatchRun, Generation, Row
from exitlens.decoding.sampling import Sampling
from exitlens.decoding.session import NativePrefix
from exitlens.errors import InputError, UnsupportedModel
from exitlens.exits.depth_cache import Depths
from exitlens.exits.draft import Draft
from exitlens.exits.shortlist import ExitLogits, ExitReader
from exitlens.models.native.runner import runner_of
from exitlens.models.protocol import LayeredModel

__all__ = ["SpeculationTally", "speculate"]


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

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were kept."""
        return self.accepted / self.drafted if self.drafted else 0.0


def speculate(
    lm: LayeredModel,
    prompts: Sequence[str],
    draft: Draft,
    *,
    max_new_tokens: int = 50,
    stop: Sequence[str] = (),
    batch_size: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    chat: bool = False,
    reader: ExitReader | None = None,
    short: bool = False,
    tally: SpeculationTally | None = None,
) -> list[Generation]:
    """Answer every prompt as :func:`~exitlens.decoding.generate` would, by drafts.

    ``reader`` gives logits at the draft's exit (a trained head); the model's own norm and unembedding by default.
    ``short``: verification reads the last layer by its head in ``reader`` as well. The answers are then those of
    exiting at layer N (exit policy ``fixed:N``), not of plain decoding. Raises
    :class:`UnsupportedModel` for a model whose blocks cannot be run apart, and what ``generate`` raises.
    """
    runner = runner_of(lm)
    if runner is None:
        raise UnsupportedModel(f"{lm.name}: its blocks cannot be run apart, so it cannot draft: decode plainly")
    draft.first(lm.n_layers)
    if short and (reader is None or not reader.last):
        raise InputError(f"verification over a shortlist needs a trained exit head at layer {lm.n_layers}")
    run = BatchRun(lm, max_new_tokens=max_new_tokens, stop=stop, sampling=sampling, seed=seed)
    rows = run.rows(prompts, chat=chat)
    counts = tally or SpeculationTally()
    for batch, prefix in run.batches(rows, batch_size, lambda ids: NativePrefix(runner, ids)):
        _Rounds(run, prefix, draft, reader or ExitReader(lm), counts, short).go(batch)
    return [run.result(row) for row in rows]


class _Rounds:
    """One batch: draft, verify, crop, until every row has finished."""

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
        self.run, self.prefix, self.draft, self.tally = run, prefix, draft, tally
        self.reader = reader
        self.n = run.lm.n_layers
        self.first = draft.first(self.n)
        self.greedy = run.sampling.greedy
        self.d: Depths

    @torch.no_grad()
    def go(self, rows: list[Row]) -> None:
        """Run ``rows`` to their ends."""
        run = self.run
        # Drafts may reach past the last answer token before they are cut back.
        inner = self.prefix.session([self.n], run.limit + self.draft.length + 1)
        hidden = inner.start([row.ids for row in rows])
        self.d = Depths(self.prefix.runner, inner.kv, inner.lengths)
        logits = self.prefix.runner.logits(hidden[self.n], self.n).float()
        chosen = run.sampling.choose(logits, [row.generator for row in rows])
        for row, token in zip(rows, chosen.tolist(), strict=True):
            run.accept(row, token)
        active = np.array([i for i, row in enumerate(rows) if row.finish is None], dtype=np.int64)
        self.reader = self.reader.bind([[*row.ids, *row.new] for row in rows])
        length = self.draft.length
        while len(active):
            length = self._round(rows, active, length)
            active = active[[rows[i].finish is None for i in active]]

    def _round(self, rows: list[Row], active: np.ndarray, length: int) -> int:
        d, run = self.d, self.run
        start = d.lengths[active].copy()
        drafts, shares = self._propose(rows, active, length)
        before = d.blocks_run
        d.advance(active, self.first + 1, self.n)
        self.tally.blocks += d.blocks_run - before
        at = torch.from_numpy(start[:, None] + np.arange(length + 1)[None])
        states = d.states[torch.from_numpy(active)[:, None], at]
        if self.short:  # a draft's own tokens are in the shortlist or the text: what a row may say does not change here
            shown = self.reader.show(states.flatten(0, 1), self.n, np.repeat(active, length + 1))
            final = shown.whole(run.lm.vocab_size).view(len(active), length + 1, -1)
            self.tally.short += len(active) * (length + 1)
        else:
            final = self.prefix.runner.logits(states, self.n).float()
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
        return min(self.draft.length, length + 1) if best == length else max(1, best + 1)

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
        return ExitLogits(self.prefix.runner.logits(x, self.n).float())

    def _verify(self, row: Row, final: Tensor, draft: list[int], share: Tensor | None) -> tuple[list[int], int]:
        """Tokens to add (accepted drafts and one of the model's own) and how many drafts held."""
        if self.greedy or share is None:
            want = final.argmax(-1).tolist()
            held = 0
            while held < len(draft) and draft[held] == want[held]:
                held += 1
            return [*draft[:held], want[held]], held
        p = self.run.sampling.distribution(final)
        for k, token in enumerate(draft):
            q = share[k]
            ratio = float(p[k, token] / q[token])
            if float(torch.rand((), generator=row.generator, dtype=torch.float64)) < ratio:
                continue
            left = (p[k] - q).clamp_min(0.0)
            left = left if float(left.sum()) > 0 else p[k]
            return [*draft[:k], int(torch.multinomial(left.cpu(), 1, generator=row.generator))], k
        return [*draft, int(torch.multinomial(p[len(draft)].cpu(), 1, generator=row.generator))], len(draft)

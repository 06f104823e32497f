"""Lossless decoding with a draft from the model itself: propose tokens cheaply, verify them together, keep what holds.

A draft exits at a layer (LayerSkip: Elhoushi et al. 2024) or skips sub-layers (Draft & Verify: Zhang et al. 2023), the
same ones throughout or chosen as the text goes on (CLaSp: Chen et al. 2025). Its states up to the first skipped place
are exact and are kept: verification takes all drafted tokens from there through the rest of the model in one batch, in
the same cache. Greedy output is token for token that of plain decoding; sampled output keeps its distribution
(rejection sampling: Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Sequence

from exitlens.decoding.generation import Generation
from exitlens.decoding.loop import BatchRun
from exitlens.decoding.sampling import Sampling
from exitlens.decoding.session import NativePrefix
from exitlens.errors import InputError, UnsupportedModel
from exitlens.exits.clasp import ClaspRounds, pieces_of
from exitlens.exits.clasp_switch import Switch
from exitlens.exits.draft import Clasp, Draft
from exitlens.exits.rounds import Rounds, SpeculationTally
from exitlens.exits.shortlist import ExitReader
from exitlens.models.native.runner import Runner, runner_of
from exitlens.models.protocol import LayeredModel

__all__ = ["SpeculationTally", "check_draft", "speculate"]


def speculate(
    lm: LayeredModel,
    prompts: Sequence[str | Sequence[int]] | str,
    draft: Draft | Clasp,
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

    ``reader`` gives logits at the draft's exit (a trained head), and those of a draft that skips sub-layers
    where it has a head at layer N; the model's own norm and unembedding by default.
    ``short``: verification reads the last layer by its head in ``reader`` as well. The answers are then those of
    exiting at layer N (exit policy ``fixed:N``), not of plain decoding. Raises
    :class:`UnsupportedModel` for a model whose blocks cannot be run apart, and what ``generate`` raises.
    """
    runner = check_draft(lm, draft)
    if short and (reader is None or not reader.last):
        raise InputError(f"verification over a shortlist needs a trained exit head at layer {lm.n_layers}")
    run = BatchRun(lm, max_new_tokens=max_new_tokens, stop=stop, sampling=sampling, seed=seed)
    rows = run.rows([prompts] if isinstance(prompts, str) else prompts, chat=chat)
    counts = tally or SpeculationTally()
    reader = reader or ExitReader(lm)
    # A choice runs sub-layers one at a time, so compiled blocks make it less faster than they make a plain step.
    costs = 3.0 if runner.compiled is None else 12.0
    switch = None if isinstance(draft, Draft) else Switch(draft, costs)
    if switch is not None and not runner.can_share(max((len(row.ids) for row in rows), default=0) + max_new_tokens):
        raise UnsupportedModel(
            f"{lm.name}: its attention sees a window shorter than these texts, so clasp cannot choose: use exit=LAYER"
        )
    for batch, prefix in run.batches(rows, batch_size, lambda ids: NativePrefix(runner, ids)):
        if isinstance(draft, Draft):
            Rounds(run, prefix, draft, reader, counts, short).go(batch)
        else:
            ClaspRounds(run, prefix, draft, reader, counts, short, switch or Switch(draft)).go(batch)
    if switch is not None:
        counts.clasp = switch.close()
    return [run.result(row) for row in rows]


def check_draft(lm: LayeredModel, draft: Draft | Clasp) -> Runner:
    """The runner of ``lm``'s blocks, where it can be drafted for so.

    Raises :class:`UnsupportedModel` for blocks that cannot be run apart, :class:`LayerError` or :class:`InputError` for
    what the model does not have.
    """
    runner = runner_of(lm)
    if runner is None:
        raise UnsupportedModel(f"{lm.name}: its blocks cannot be run apart, so it cannot draft: decode plainly")
    if isinstance(draft, Draft):
        draft.first(lm.n_layers)
    else:
        draft.limit(len(pieces_of(runner)))
    return runner
